"""A process for one round of one client: EXPERIMENT ROOT CLIENT CALL ANSWER; a call and an answer are frames."""

from __future__ import annotations

import sys
from pathlib import Path

from fedsim.ends.client import ClientEnd
from fedsim.ends.store import Store
from fedsim.experiment import load
from fedsim.simulation.setup import prepare


def main() -> None:
    experiment, root, client, call, answer = sys.argv[1:]
    setup = prepare(load(Path(experiment)))
    end = ClientEnd(setup, int(client), Store(Path(root), setup.run, int(client)))
    end.hear(Path(call).read_bytes())
    Path(answer).write_bytes(b"".join(end.answer()))
