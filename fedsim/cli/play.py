"""Playing a run in a terminal: progress, Ctrl-C, the summary at the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from fedsim.cli import text
from fedsim.cli.view import Stop, View
from fedsim.errors import StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry
from fedsim.simulation.comparison import Comparison, compare, uncompressed
from fedsim.simulation.run import Result, resume, run


def new_folder(experiment: Experiment) -> Path:
    """A folder under runs/ that does not exist yet, named after the recipe and the experiment."""
    base = Path("runs") / f"{experiment.algorithm}-{experiment.identifier().hex()[:6]}"
    candidates = (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 10_000)))
    return next(folder for folder in candidates if not folder.exists())


def play(experiment: Experiment, folder: Path, fresh: bool) -> None:
    """Run or resume an experiment in ``folder``, then its uncompressed baseline if it asks for one; print the outcome.

    Raises StoppedError after Ctrl-C, and what ``run`` and ``resume`` raise.
    """
    console = Console()
    with stopping(lambda: left_of(folder)) as stop:
        with View(console, stop, folder, resumed=not fresh) as view:
            result = run(experiment, folder, view) if fresh else resume(folder, view)
        if not fresh and not view.rounds:
            print_line(console, "  this run was finished already")
        summary(console, result, folder)
        if experiment.run.baseline and is_compressed(experiment):
            print_line(console, "\nthe same without compression, until it reaches the same loss:")
            with View(console, stop, folder) as view:
                comparison, other = compare(result, folder, view)
            verdict(console, comparison, other)


def is_compressed(experiment: Experiment) -> bool:
    """Whether the uncompressed baseline would be another run than this one."""
    plain = uncompressed(experiment)
    return (experiment.uplink, experiment.downlink) != (plain.uplink, plain.downlink)


@contextmanager
def stopping(left: Callable[[], str]) -> Iterator[Stop]:
    """While inside, the first Ctrl-C only asks the run to stop; the second raises StoppedError at once.

    left: what the error says of what is left.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        # Not print: the handler may interrupt a print.
        os.write(2, b"\nstopping after this round; Ctrl-C again stops at once\n")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    except KeyboardInterrupt:
        raise StoppedError(left()) from None
    finally:
        signal.signal(signal.SIGINT, before)


def left_of(folder: Path) -> str:
    """What is left of a run that was stopped at once."""
    kept = (folder / "experiment.toml").exists()
    return f"at once; `fedsim resume {folder}` goes on from the last checkpoint" if kept else "before the first round"


def summary(console: Console, result: Result, folder: Path) -> None:
    """Print the result of a run and where it lies."""
    outcome(console, result.metrics[-1], result.ledger.totals, result.digest, folder)


def outcome(
    console: Console,
    metrics: Mapping[str, Any],
    totals: Mapping[tuple[Direction, Entry], Cost],
    digest: str,
    folder: Path,
) -> None:
    """Print the last evaluation of a run, what it cost and where it lies."""
    up, down = (
        sum((cost for (way, _), cost in totals.items() if way is direction), Cost())
        for direction in (Direction.UP, Direction.DOWN)
    )
    print_line(console, f"  {text.measures(metrics)}  after {metrics['round']} rounds")
    print_line(
        console,
        f"  up {text.size(up.frame_bytes)}, down {text.size(down.frame_bytes)}  ({described(totals)})",
    )
    if "seconds" in metrics:
        print_line(console, f"  simulated time {text.duration(metrics['seconds'])}")
    print_line(console, f"  model {digest[:16]}  in {folder}")


def verdict(console: Console, comparison: Comparison, other: Result) -> None:
    """Print the saving that was measured."""
    if comparison.uncompressed_bytes is None:
        rounds = other.metrics[-1]["round"]
        print_line(console, f"  not reached: loss {other.loss:.4f} after {rounds} rounds, the same step size")
    elif comparison.saving is None:
        print_line(console, f"  nothing to compare: loss {comparison.loss:.4f} is not below that of the first model")
    else:
        print_line(
            console,
            f"  loss {comparison.loss:.4f} was reached after {comparison.round} rounds and "
            f"{text.size(comparison.bytes)} with compression, after {comparison.uncompressed_round} rounds and "
            f"{text.size(comparison.uncompressed_bytes)} without:",
        )
        times = comparison.saving
        ratio = f"{times:.1f}x fewer" if times >= 1 else f"{1 / times:.1f}x more"
        print_line(
            console,
            f"  {ratio} bytes to the same loss (frames both ways; both were run, at the same step size)",
            style="bold",
        )


def described(totals: Mapping[tuple[Direction, Entry], Cost]) -> str:
    """The frames of a ledger by kind."""
    return ", ".join(f"{cost.frames} {way.value} {kind.value} frames" for (way, kind), cost in totals.items())


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Print as it stands: not wrapped, numbers not coloured, brackets not read as markup."""
    console.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
    sys.stdout.flush()
