"""What a sweep shows while it runs: a line for every run that ends and, in a terminal, bars of those that are going."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim.cli import text
from fedsim.cli.play import print_line
from fedsim.sweep.grid import Point
from fedsim.sweep.pool import Told

BAR = 20


class Board:
    """Told of runs by number, as by ``fedsim.sweep.pool.play``. ends: the last word on each that has ended."""

    def __init__(self, console: Console, points: Sequence[Point], before: Mapping[int, Told]) -> None:
        self.console, self.points = console, points
        self.ends: dict[int, Told] = dict(before)
        self.width = max(len(point.title) for point in points)
        self.bars: dict[int, TaskID] = {}
        self.progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(BAR),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[words]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self.all = self.progress.add_task("runs".ljust(self.width), total=len(points), completed=len(before), words="")

    def __enter__(self) -> Board:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, number: int, told: Told) -> None:
        """Show it."""
        point = self.points[number]
        if number not in self.bars:
            total = point.experiment.rounds
            self.bars[number] = self.progress.add_task(point.title.ljust(self.width), total=total, words="")
        if told.what == "playing":
            self.progress.update(self.bars[number], completed=told.round, words=words(told))
            return
        self.progress.remove_task(self.bars.pop(number))
        self.ends[number] = told
        done = sum(end.what != "stopped" for end in self.ends.values())
        self.progress.update(self.all, completed=done)
        print_line(
            self.console, f"  {done:{len(str(len(self.points)))}}/{len(self.points)}  {line(point, told, self.width)}"
        )

    def count(self) -> Counter[str]:
        """How the runs that ended did."""
        return Counter(told.what for told in self.ends.values())


def words(told: Told) -> str:
    """Loss and accuracy, where there are any."""
    named = {"loss": told.loss, "test_accuracy": told.accuracy}
    return text.measures({name: value for name, value in named.items() if value is not None}, brief=True)


def line(point: Point, told: Told | None, width: int) -> str:
    """One line on a run: its title, and how it ended or stands."""
    title = point.title.ljust(width)
    if told is None:
        return f"{title}  to be run: {point.experiment.rounds} rounds"
    if told.what in ("diverged", "failed"):
        return f"{title}  {told.what}: {told.reason}"
    if told.what == "stopped":
        return f"{title}  to be resumed: round {told.round} of {point.experiment.rounds}"
    return f"{title}  {words(told)}"
