"""``fedsim compare``: two runs that should be equal; or groups of runs, with means and intervals over seeds."""

from __future__ import annotations

from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.options import NetworkName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from fedsim.reporting.statistics import Interval
    from fedsim.reporting.table import Row, Table

ACCURACY = "test_accuracy"
DECIMALS = 9


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            help="The loss to be reached; default: the worst with which any finished run ended.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        str, typer.Option("--measure", help="What is to be reached: loss, test_loss, test_accuracy ...")
    ] = "loss",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON instead.")] = False,
    network: NetworkName = "",
) -> None:
    """Compare runs: two for equality, more for what they reached at what cost.

    Two run folders and no option: whether they are the same experiment and led to the same model by the same bytes.
    Bytes are those of the ledgers and, where a run was deployed and they were counted, of Flower's messages and of
    sockets. Exit status 1 when models or ledgers differ.

    Otherwise, as with folders of runs (of a sweep), or --target: a table of groups, which are runs that differ in the
    seed alone. Mean and 95 % Student interval over seeds of the final loss, accuracy and bytes, over runs that are
    finished; and of what it took to reach the target: rounds, bytes and, where a run has them, simulated seconds, at
    the first evaluation that was there, over the seeds that reached it.
    """
    from rich.console import Console

    from fedsim.cli.equality import equal
    from fedsim.cli.play import print_line
    from fedsim.errors import ConfigError
    from fedsim.reporting.runs import find_runs, groups
    from fedsim.reporting.table import table
    from fedsim.reporting.timed import timed

    plain = target is None and measure == "loss" and csv is None and not json and not network
    if plain and len(runs) == 2 and all((folder / "experiment.toml").exists() for folder in runs):
        if not equal(*runs):
            raise typer.Exit(1)
        return
    found = find_runs(runs)
    if len(found) == 1 and plain:
        raise ConfigError(f"{runs[0]} is one run; give another to compare it with, or a folder of runs")
    grouped = groups(timed(found, network) if network else found)
    made = table(grouped, measure, target)
    if csv is not None:
        _write(made, csv)
    if json:
        print(_json(made))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    for title, columns in _columns(made).items():
        print_line(console, title)
        _print(console, made.rows, columns)
        print()
    print_line(console, "mean ± half of the 95 % interval over seeds (Student)")
    every = max(run.experiment.run.evaluate_every for run in found)
    print_line(console, f"what a target took: at the first evaluation that was there, one every {every} rounds")
    if len({group.problem for group in grouped}) > 1:
        print_line(
            console, "not the same problem: these runs differ in data, partition or task, so in what a loss means"
        )


def _columns(table: Table) -> dict[str, dict[str, Callable[[Row], str]]]:
    """The parts of the table: title -> heading -> cell. A column that no row fills is left out."""
    sign = ">=" if table.measure.endswith("accuracy") else "<="
    measures = dict.fromkeys((table.measure, "loss", "test_loss", ACCURACY))
    ends: dict[str, Callable[[Row], str]] = {"seeds": _seeds}
    ends |= {name.replace("_", " "): _end(name, _number) for name in measures if name != ACCURACY}
    ends |= {
        "accuracy": _end(ACCURACY, lambda share: f"{100 * share:.2f} %"),
        "up": _end("up_bytes", _size),
        "down": _end("down_bytes", _size),
        "payload": _end("payload_bits", _bits),
        "seconds": _end("seconds", _number),
    }
    reach: dict[str, Callable[[Row], str]] = {
        "reached by": lambda row: f"{row.reach.n} of {row.reach.of}",
        "rounds": _cost("rounds", lambda count: f"{count:.0f}"),
        "up": _cost("up_bytes", _size),
        "down": _cost("down_bytes", _size),
        "payload": _cost("payload_bits", _bits),
        "seconds": _cost("seconds", _number),
    }
    target = f"until {table.measure.replace('_', ' ')} {sign} {table.target:.6g}"
    return {"at the end": ends, target: reach}


def _seeds(row: Row) -> str:
    rest = {"diverged": row.diverged, "unfinished": row.runs - row.finished - row.diverged}
    said = [f"{count} {name}" for name, count in rest.items() if count]
    return ", ".join([str(row.finished), *said])


def _end(name: str, write: Callable[[float], str]) -> Callable[[Row], str]:
    return lambda row: _interval(row.ends[name], write)


def _cost(name: str, write: Callable[[float], str]) -> Callable[[Row], str]:
    return lambda row: _interval(row.reach.costs[name], write)


def _interval(value: Interval, write: Callable[[float], str]) -> str:
    if not value.n:
        return ""
    if value.n == 1:
        return write(value.mean)
    if write is _number:
        return _to_two_digits(value.mean, value.half)
    mean, _, unit = write(value.mean).partition(" ")
    half, _, other = write(value.half).partition(" ")
    return f"{mean}{f' {unit}' if unit != other else ''} ± {half} {other}".rstrip()


def _to_two_digits(mean: float, half: float) -> str:
    """A mean to the decimal at which its interval has two digits.

    >>> _to_two_digits(0.322677, 3.89e-05), _to_two_digits(0.46006, 1.267), _to_two_digits(5123.4, 210.0)
    ('0.322677 ± 0.000039', '0.5 ± 1.3', '5123 ± 210')
    """
    decimals = min(max(1 - floor(log10(half)), 0), DECIMALS) if half else 4
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _size(count: float) -> str:
    from fedsim.cli.text import size

    return size(count)


def _bits(count: float) -> str:
    from fedsim.cli.text import size

    return size(count, "bit")


def _print(console: Console, rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> None:
    from rich.table import Table as Grid

    grid = Grid(box=None, pad_edge=False)
    grid.add_column("")
    filled = {name: cell for name, cell in columns.items() if any(map(cell, rows))}
    for name in filled:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(row.label, *(cell(row) for cell in filled.values()))
    console.print(grid)


def _write(table: Table, path: Path) -> None:
    import csv

    from fedsim.reporting.table import flat_row

    lines = [{**flat_row(row), "measure": table.measure, "target": table.target} for row in table.rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def _json(table: Table) -> str:
    from json import dumps

    from fedsim.reporting.table import flat_row

    rows = [flat_row(row) for row in table.rows]
    return dumps({"measure": table.measure, "target": table.target, "groups": rows}, indent=2, ensure_ascii=False)
