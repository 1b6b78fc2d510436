"""What a run shows while it runs: a live bar in a terminal, at most about twenty plain lines elsewhere."""

from __future__ import annotations

from math import ceil
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from fedsim.cli import text
from fedsim.errors import StoppedError
from fedsim.ledger import Cost
from fedsim.simulation.run import Metrics
from fedsim.simulation.setup import Setup
from fedsim.wire.frame import HEADER_BYTES

LINES = 20
FIXED = 70
"""Columns that the bar's neighbours take in a narrow terminal."""
WIDE = 125


class Stop:
    """Set by Ctrl-C; the run stops after the round that is being played. A second Ctrl-C stops at once."""

    asked = False


class View:
    """Watches a run, as ``fedsim.simulation.run.Observer`` says. rounds: how many it has seen played."""

    def __init__(self, console: Console, stop: Stop, folder: Path, resumed: bool = False) -> None:
        self.console, self.stop, self.folder, self.resumed = console, stop, folder, resumed
        self.rounds = 0
        self.metrics: Metrics = {}
        self.total = self.every = 1
        self.dense_frame = 0
        self.bar = TaskID(0)
        self.wide = console.width >= WIDE
        room = console.width - FIXED - (60 if self.wide else 0)
        columns: list[ProgressColumn] = [TextColumn("  round {task.completed}/{task.total}"), BarColumn(min(room, 30))]
        self.progress = Progress(
            *(columns if room >= 5 else columns[:1]),
            TextColumn("{task.fields[words]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> View:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, setup: Setup, metrics: Metrics) -> None:
        """Print what runs."""
        self.metrics, self.total = metrics, setup.experiment.rounds
        self.every = lines_every(self.total, setup.experiment.run.evaluate_every)
        self.dense_frame = HEADER_BYTES + 4 * setup.task.dim
        self._line(text.headline(setup))
        words = text.measures(metrics, brief=True)
        self.bar = self.progress.add_task("", total=self.total, completed=metrics["round"], words=words)

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """Move the bar; stop here if Ctrl-C was pressed."""
        self.rounds += 1
        if self.rounds == 1 and round > 1:
            self._line(f"continues after round {round - 1}")
        elif self.rounds == 1 and self.resumed:
            self._line("starts again from its first round: it has no checkpoint yet")
        if self.console.is_terminal:
            self.progress.update(self.bar, completed=round, words=self._words(up, down, brief=not self.wide))
        elif round % self.every == 0 or round == self.total:
            self._line(f"round {round}/{self.total}  {self._words(up, down, brief=False, round=round)}")
        if self.stop.asked:
            raise StoppedError(f"after round {round}; `fedsim resume {self.folder}` goes on from there")

    def evaluated(self, metrics: Metrics) -> None:
        """Remember the newest measures."""
        self.metrics = metrics

    def _words(self, up: Cost, down: Cost, brief: bool, round: int | None = None) -> str:
        measured = self.metrics["round"]
        return (
            text.measures(self.metrics, brief)
            + (f" (round {measured})" if round not in (None, measured) else "")
            + f"  up {text.size(up.frame_bytes)}  down {text.size(down.frame_bytes)}"
            + ("" if brief else self._saving(up + down))
        )

    def _saving(self, sent: Cost) -> str:
        """How many times fewer bytes than the same frames uncompressed; nothing where that is none."""
        times = sent.frames * self.dense_frame / max(sent.frame_bytes, 1)
        return f"   {times:.1f}x fewer bytes a round than uncompressed" if times >= 1.05 else ""

    def _line(self, line: str) -> None:
        self.console.print(f"  {line}", highlight=False, markup=False, emoji=False, soft_wrap=True)


def lines_every(total: int, evaluate_every: int) -> int:
    """Rounds between two plain lines: a twentieth of all, on rounds that are evaluated where those are frequent.

    >>> lines_every(400, 10), lines_every(405, 10), lines_every(30, 10), lines_every(5, 1)
    (20, 30, 2, 1)
    """
    every = ceil(total / LINES)
    return ceil(every / evaluate_every) * evaluate_every if evaluate_every <= every else every
