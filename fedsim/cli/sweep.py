"""``fedsim sweep``: many experiments from one file, side by side; what is finished is never repeated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.options import Assignments
from fedsim.cli.report import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from fedsim.sweep.grid import Point
    from fedsim.sweep.pool import Told


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP.TOML", help="The sweep: base, grid, variants, seeds; or `paper`, which is built in."
        ),
    ],
    assignments: Assignments = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the runs lie; default: runs/NAME-OF-THE-FILE.", show_default=False),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, help="Runs at a time; default: one for each core.", show_default=False)
    ] = 0,
    page: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write `fedsim report` of it at the end.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which runs there are and which are finished; run nothing.")
    ] = False,
) -> None:
    """Run the grid of a sweep for every seed, several runs at a time.

    Every run has a folder named by its experiment. One that is finished, or has diverged, is not run again; one that
    was stopped or killed goes on from its checkpoint, with the same bits as if it had not been. A run that fails does
    not stop the others. After Ctrl-C, or any other end, the same command goes on. Exit status 1 if a run diverged or
    failed, 130 if it was stopped.
    """
    from rich.console import Console

    from fedsim.cli.board import Board, line
    from fedsim.cli.play import print_line, stopping
    from fedsim.errors import StoppedError
    from fedsim.simulation.executors import cores
    from fedsim.sweep import pool, work
    from fedsim.sweep.grid import read_sweep

    points = read_sweep(file, assignments or ())
    place, console = folder or Path("runs") / file.stem, Console()
    before = [work.found(place / point.name) for point in points]
    if dry_run:
        for point, told in zip(points, before, strict=True):
            print_line(console, f"{line(point, told, max(len(one.title) for one in points))}  {point.name}")
    _announce(console, points, before, place)
    if dry_run:
        return
    left = [i for i, told in enumerate(before) if told is None or told.what == "stopped"]
    jobs = min(jobs or cores(), max(len(left), 1))
    ended = {i: told for i, told in enumerate(before) if told is not None and i not in left}
    works = [work.work(points[i], place, jobs) for i in left]
    at_once = "at once; the same command goes on, from the last checkpoints"
    with stopping(lambda: at_once) as stop, Board(console, points, ended) as board:
        pool.play(works, jobs, stop, lambda number, told: board.tell(left[number], told))
    count = board.count()
    if stop.asked and count["stopped"] + len(points) - len(board.ends):
        raise StoppedError(f"{count['finished']} of {len(points)} runs are finished; the same command goes on")
    failed = [(points[i], told) for i, told in sorted(board.ends.items()) if told.what in ("diverged", "failed")]
    print_line(console, f"\n{count['finished']} of {len(points)} runs are finished, in {place}")
    for point, told in failed:
        print_line(console, f"  {point.title}: {told.what}: {told.reason}")
    if count["finished"]:
        print_line(console, f"`fedsim compare {place}` puts them side by side")
        if page is not None:
            report([place], page)
    if failed:
        raise typer.Exit(1)


def _announce(console: Console, points: Sequence[Point], before: Sequence[Told | None], place: Path) -> None:
    """One line on what there is and what is left; and on runs in the folder that do not belong to the sweep."""
    from fedsim.cli.play import print_line
    from fedsim.sweep.work import others

    count = [told.what if told else "to be run" for told in before]
    parts = [
        f"{count.count(what)} {name}"
        for what, name in (
            ("finished", "finished already"),
            ("diverged", "known to diverge"),
            ("failed", "unreadable"),
            ("stopped", "to be resumed"),
            ("to be run", "to be run"),
        )
        if what in count
    ]
    seeds = len({point.experiment.seed for point in points})
    print_line(
        console,
        f"{len(points)} runs (experiments: {len(points) // seeds}, seeds: {seeds}) in {place}: {', '.join(parts)}",
    )
    if strangers := others(place, points):
        print_line(
            console,
            f"{place} also holds runs that are not of this sweep ({len(strangers)}, for example {strangers[0].name}); "
            "`fedsim compare` counts them in",
        )
