"""A process of a sweep: it plays the runs that it is given, one after another; see ``fedsim.sweep.pool``."""

from __future__ import annotations

import os
import select
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from fedsim.errors import DivergedError, FedsimError, StoppedError, one_line
from fedsim.experiment import from_table, parse_toml
from fedsim.ledger import Cost
from fedsim.simulation.run import Metrics, Result, resume, run
from fedsim.simulation.setup import Setup
from fedsim.sweep.pool import Told, Work, said

OFTEN = 0.2
"""Seconds between two words about a run."""

Tell = Callable[[Told], None]


class Watcher:
    """Says how far a run is, as ``fedsim.simulation.run.Observer``; stops it once nobody listens or asks for more."""

    def __init__(self, tell: Tell, dismissed: Callable[[], bool]) -> None:
        self.tell, self.dismissed = tell, dismissed
        self.metrics: Metrics = {}
        self.round = 0
        self.said = 0.0

    def started(self, setup: Setup, metrics: Metrics) -> None:
        """The newest evaluation; a run that was resumed starts with one."""
        self.evaluated(metrics)

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """Say so now and then. Raises StoppedError."""
        self.round = round
        if (now := time.monotonic()) - self.said >= OFTEN:
            self.said = now
            self.tell(said("playing", self.metrics, round))
        if self.dismissed():
            raise StoppedError(f"after round {round}")

    def evaluated(self, metrics: Metrics) -> None:
        """Remember."""
        self.metrics = metrics


def play(work: Work, watcher: Watcher) -> Told:
    """Play a run, from wherever its folder says; the last word on it. Nothing is raised but what ends the process."""
    folder = Path(work.folder)
    try:
        result = _result(work, folder, watcher)
    except StoppedError:
        return said("stopped", watcher.metrics, watcher.round)
    except DivergedError as error:
        return Told("diverged", reason=one_line(str(error)))
    except FedsimError as error:
        return Told("failed", reason=one_line(str(error)))
    except Exception as error:  # whatever it is, the other runs of the sweep go on
        reason = one_line(f"{type(error).__name__}: {error}")
        return Told("failed", reason=f"{reason}; `fedsim resume {folder}` shows more")
    return said("finished", result.metrics[-1], result.metrics[-1]["round"])


def _result(work: Work, folder: Path, watcher: Watcher) -> Result:
    if (folder / "experiment.toml").exists():
        return resume(folder, watcher)
    experiment = from_table(parse_toml(work.experiment.encode(), "the experiment of a sweep"))
    return run(experiment, folder, watcher)


def serve(given: BinaryIO, answers: BinaryIO) -> None:
    """Play what comes in, line by line, until nothing more comes."""

    def tell(told: Told) -> None:
        answers.write(msgspec.json.encode(told) + b"\n")
        answers.flush()

    def dismissed() -> bool:
        # No work is sent while there is some: that there is something to read means that the pipe has ended.
        return bool(select.select([given], [], [], 0)[0])

    while line := given.readline():
        tell(play(msgspec.json.decode(line, type=Work), Watcher(tell, dismissed)))


def main() -> None:
    """Answers go where standard output went; what a user's own parts print does not."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
