"""A process for one round of one client: EXPERIMENT ROOT CLIENT CALL ANSWER; a call and an answer are frames."""

from __future__ import annotations

import sys
from pathlib import Path

from fedsim.ends import ClientEnd
from fedsim.experiment import load
from fedsim.simulation.setup import prepare


def main() -> None:
    experiment, root, client, call, answer = sys.argv[1:]
    end = ClientEnd(prepare(load(Path(experiment))), int(client), Path(root))
    end.hear(Path(call).read_bytes())
    Path(answer).write_bytes(b"".join(end.answer()))
