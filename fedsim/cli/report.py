"""``fedsim report``: runs as a page to look at, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.options import NetworkName

if TYPE_CHECKING:
    from fedsim.reporting.content import Target


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", help="Of the page; default: the methods.", show_default=False)] = "",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="[MEASURE=]VALUE",
            help="What it costs to reach this, for example 0.33 or test_accuracy=0.9; default: a loss that all reach.",
            show_default=False,
        ),
    ] = "",
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="DIR", help="Also write SVG and CSV of every curve there.", show_default=False
        ),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Load the runs' data, for F* and the final model at each client.")
    ] = True,
    theory: Annotated[
        bool, typer.Option("--theory/--no-theory", help="Ask what theory expects of each method, which takes longest.")
    ] = True,
    network: NetworkName = "",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load data for experiments that name Python code, and run that code.")
    ] = False,
) -> None:
    """Write one page with curves, bytes, who took part, final models and how to repeat each run.

    The page needs no network and opens from disk. Runs that differ in their seed alone are drawn as one line with its
    95 % interval.
    """
    from fedsim.reporting.content import study
    from fedsim.reporting.final import Examiner
    from fedsim.reporting.page import page
    from fedsim.reporting.runs import find_runs
    from fedsim.reporting.timed import timed

    goal, read = parse_target(target), find_runs(runs)
    found = study(timed(read, network) if network else read, Examiner(allow_code, theory) if data else None)
    named = title or " · ".join(group.label for group in found.groups)
    text = page(found, named if len(named) <= 100 else f"{len(found.groups)} methods", goal)
    output.write_text(text, encoding="utf-8")
    print(f"{output}: {sum(len(group.runs) for group in found.groups)} runs, {len(text.encode()) / 1e6:.1f} MB")
    if export is not None:
        from fedsim.reporting.plots import export_all

        for path in export_all(found, export):
            print(path)


def parse_target(text: str) -> Target | None:
    """``0.33`` or ``test_accuracy=0.9``; None for nothing. Raises ConfigError."""
    from fedsim.errors import ConfigError, one_line
    from fedsim.reporting.content import Target

    if not text:
        return None
    measure, _, value = text.rpartition("=")
    try:
        return Target(measure or "loss", float(value))
    except ValueError:
        raise ConfigError(
            f"--target {one_line(text)}: expected a number, or measure=number such as loss=0.33"
        ) from None
