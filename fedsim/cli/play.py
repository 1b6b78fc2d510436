"""Playing a run in a terminal: progress, Ctrl-C, the summary at the end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim.cli import text
from fedsim.errors import StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry
from fedsim.simulation.comparison import Comparison, compare
from fedsim.simulation.run import Metrics, Result, resume, run
from fedsim.simulation.setup import Setup
from fedsim.wire.frame import HEADER_BYTES


def new_folder(experiment: Experiment) -> Path:
    """A folder under runs/ that does not exist yet, named after the recipe and the experiment."""
    base = Path("runs") / f"{experiment.algorithm}-{experiment.identifier().hex()[:6]}"
    candidates = (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 10_000)))
    return next(folder for folder in candidates if not folder.exists())


def play(experiment: Experiment, folder: Path, fresh: bool) -> None:
    """Run or resume an experiment in ``folder``, then its uncompressed baseline if it asks for one; print the outcome."""
    console = Console()
    with stopping() as stop:
        view = View(console, stop, folder)
        with view:
            result = run(experiment, folder, view) if fresh else resume(folder, view)
        summary(console, result, folder)
        if experiment.run.baseline:
            console.print("\nthe same without compression, until it reaches the same loss:")
            with View(console, stop, folder) as view:
                comparison, other = compare(result, folder, view)
            verdict(console, comparison, other)


class Stop:
    """Set by Ctrl-C; the run stops after the round that is being played. A second Ctrl-C stops at once."""

    asked = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """While inside, the first Ctrl-C only asks the run to stop."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class View:
    """A live bar in a terminal, a plain line an evaluation elsewhere."""

    def __init__(self, console: Console, stop: Stop, folder: Path) -> None:
        self.console, self.stop, self.folder = console, stop, folder
        self.metrics: Metrics = {}
        self.total = 0
        self.dense_frame = 0
        self.bar: TaskID | None = None
        self.progress = Progress(
            TextColumn("  round {task.completed}/{task.total}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[words]}"),
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
        self.dense_frame = HEADER_BYTES + 4 * setup.task.dim
        self.console.print(f"  {text.headline(setup)}", highlight=False, soft_wrap=True)
        self.bar = self.progress.add_task(
            "", total=self.total, completed=metrics["round"], words=text.measures(metrics)
        )

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """Move the bar; stop here if Ctrl-C was pressed."""
        words = f"{text.measures(self.metrics)}   up {text.size(up.frame_bytes)}  down {text.size(down.frame_bytes)}"
        sent = up.frame_bytes + down.frame_bytes
        frames = up.frames + down.frames
        words += f"   {frames * self.dense_frame / max(sent, 1):.1f}x fewer bytes a round than uncompressed"
        if self.bar is not None:
            self.progress.update(self.bar, completed=round, words=words)
        if not self.console.is_terminal and self.metrics["round"] == round:
            print(f"  round {round}/{self.total}  {words}", flush=True)
        if self.stop.asked:
            raise StoppedError(f"after round {round}; continue with `fedsim resume {self.folder}`")

    def evaluated(self, metrics: Metrics) -> None:
        """Remember the newest measures."""
        self.metrics = metrics


def summary(console: Console, result: Result, folder: Path) -> None:
    """Print the result of a run and where it lies."""
    up, down = result.ledger.cost(Direction.UP), result.ledger.cost(Direction.DOWN)
    print_line(console, f"  {text.measures(result.metrics[-1])}  after {result.metrics[-1]['round']} rounds")
    print_line(
        console,
        f"  up {text.size(up.frame_bytes)}, down {text.size(down.frame_bytes)}  ({described(result.ledger.totals)})",
    )
    print_line(console, f"  model {result.digest[:16]}  in {folder}")


def verdict(console: Console, comparison: Comparison, other: Result) -> None:
    """Print the saving that was measured."""
    if comparison.saving is None:
        print_line(
            console,
            f"  not reached: loss {other.loss:.4f} after {other.metrics[-1]['round']} rounds, the same step size",
        )
        return
    print_line(
        console,
        f"  loss {comparison.loss:.4f} was reached after {comparison.round} rounds and {text.size(comparison.bytes)} with compression, "
        f"after {comparison.uncompressed_round} rounds and {text.size(comparison.uncompressed_bytes or 0)} without:",
    )
    print_line(
        console,
        f"  [bold]{comparison.saving:.1f}x fewer bytes[/bold] to the same loss (frames in both directions; both were run)",
    )


def described(totals: dict[tuple[Direction, Entry], Cost]) -> str:
    """The frames of a ledger by kind."""
    return ", ".join(f"{cost.frames} {way.value} {kind.value} frames" for (way, kind), cost in totals.items())


def print_line(console: Console, line: Any) -> None:
    """Print without wrapping or colouring numbers."""
    console.print(line, highlight=False, soft_wrap=True)
    sys.stdout.flush()
