"""Print what fedsim measures beside what is published: ``python -m tests.replication [PART ...]``, from the repository.

Parts: a9a-p1, a9a-pp, a9a-stochastic, a9a-mcm (these need a9a: --libsvm), synthetic, rr (w8a where there is one); all
of them when none is named. Three more print tables for which nothing is published, and only when they are named: salr
(minutes), solvers, and saturation, measured plateaus beside predicted ones (half an hour; needs a9a).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.replication import figures, rr, rr_table, salr, saturation, solvers
from tests.replication.experiments import write_plane
from tests.replication.figures import BANDS, Cell
from tests.replication.measure import Measurement, mean_tail, measure_all

LIBSVM = Path(__file__).resolve().parents[3] / "shared" / "data" / "libsvm"
RR = "rr"
PARTS = (*figures.PARTS, RR)
TABLES: dict[str, Callable[[Path], int]] = {
    "salr": lambda folder: salr.table(),
    "solvers": lambda folder: solvers.table(),
    "saturation": saturation.table,
}
"""Parts without published figures: given the folder of a9a, they print a table and return how many are missed."""

HEADER = f"{'':44s}{'published':>16s} {'measured':>9s}  {'each seed':26s}{'bits':>9s} {'drift':>8s}  {'seconds':s}"


def main() -> int:
    """Run the parts that the command line names. Returns 1 when a figure is not met, for the shell."""
    known = [*PARTS, *TABLES]
    parser = argparse.ArgumentParser(prog="python -m tests.replication", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(known)}")
    parser.add_argument("--rows", default="", help="only rows that begin with this, such as 'linear, full'")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each cell, at most 3")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--libsvm", type=Path, default=LIBSVM, help="folder of a9a.gz and a9a.clusters20.txt")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in known]:
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(known)}")
    missed = 0
    for part in options.parts or PARTS:
        if part in TABLES:
            missed += TABLES[part](options.libsvm)
            continue
        with TemporaryDirectory() as scratch:
            write_plane(Path(scratch))
            if part == RR:
                rr.write_files(Path(scratch), options.libsvm)
                missed += rr_table.table(Path(scratch), options.rows, options.seeds, options.processes)
                continue
            cells = figures.PARTS[part](Path(scratch) if part == "synthetic" else options.libsvm)
            cells = [cell for cell in cells if cell.row.startswith(options.rows)]
            missed += table(sorted(cells, key=lambda cell: cell.row), options.seeds, options.processes)
    return 1 if missed else 0


def table(cells: Sequence[Cell], seeds: int, processes: int) -> int:
    """Print a line a cell, and the ratios of the plateaus. Returns the number of figures missed."""
    print(HEADER)
    cells = [replace(cell, seeds=cell.seeds[:seeds]) for cell in cells]
    missed, plateaus = 0, {}
    for cell, runs in measure_all(cells, processes):
        print(line(cell, runs), flush=True)
        missed += not cell.met(mean_tail(cell, runs))
        plateaus[cell.row, cell.algorithm] = mean_tail(cell, runs)
    for row, algorithm in plateaus:
        if (row, "sgd") in plateaus and (band := BANDS.get((row, algorithm))):
            ratio = plateaus[row, algorithm] - plateaus[row, "sgd"]
            met = band[0] <= ratio <= band[1]
            missed += not met
            predicted = f"predicted {band[0]:.2f} to {band[1]:.2f}"
            print(f"{row} · log10 {algorithm} / sgd = {ratio:.2f}, {predicted}  {mark(met)}")
    return missed


def line(cell: Cell, runs: Sequence[Measurement]) -> str:
    """One cell as text."""
    measured, each = mean_tail(cell, runs), " ".join(f"{run.tail(cell.tail):.2f}" for run in runs)
    bits = f"{runs[0].bits:.0f}"
    return (
        f"{cell.part + ' · ' + cell.row + ' · ' + cell.algorithm:44s}{published(cell):>16s} {measured:9.2f}  {each:26s}"
        f"{bits:>9s} {max(run.drift for run in runs):8.0e}  {max(run.seconds for run in runs):.0f}  "
        f"{mark(cell.met(measured))}"
    )


def published(cell: Cell) -> str:
    """The figure and how far it reaches."""
    if math.isinf(cell.high):
        return "-"
    if math.isinf(cell.low):
        return f"<= {cell.high:g}"
    if cell.low == cell.high:
        return f"{cell.low:g} +-{cell.tolerance:g}"
    return f"{cell.low:g}..{cell.high:g} +-{cell.tolerance:g}"


def mark(met: bool) -> str:
    """The verdict."""
    return "met" if met else "MISSED"


if __name__ == "__main__":
    raise SystemExit(main())
