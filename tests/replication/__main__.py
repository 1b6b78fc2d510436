"""Print what fedsim measures beside what is published: ``python -m tests.replication [PART ...]``, from the repository.

Parts: a9a-p1, a9a-pp, a9a-stochastic, a9a-mcm (these need a9a: --libsvm), synthetic, rr (w8a where there is one); all
of them when none is named. More print tables, and only when they are named:

salr            step-size rules (minutes)
solvers         all local solvers
saturation      measured plateaus beside predicted ones, on a9a and synthetic sets (half an hour)
participation   what absence costs on a9a, by method (minutes)
pareto          bytes that every recipe needs to reach a loss, on a9a (not timed) and digits (minutes)
fashion         accuracy and bytes of a small network on Fashion-MNIST (half an hour); as it was published, with
                --network published --epochs 300, it takes a core many hours
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.replication import fashion, figures, pareto, participation, rr, rr_table, salr, saturation, solvers
from tests.replication.experiments import write_plane
from tests.replication.figures import BANDS, Cell
from tests.replication.measure import Measurement, mean_tail, measure_all

LIBSVM = Path(__file__).resolve().parents[3] / "shared" / "data" / "libsvm"
RR = "rr"
PARTS = (*figures.PARTS, RR)
TABLES: dict[str, Callable[[argparse.Namespace], int]] = {
    "salr": lambda _: salr.table(),
    "solvers": lambda _: solvers.table(),
    "saturation": lambda given: saturation.table(given.libsvm),
    "participation": lambda given: participation.table(given.libsvm, given.processes),
    "pareto": lambda given: pareto.table(given.libsvm, given.processes, given.out, given.rows, some(given.algorithms)),
    "fashion": lambda given: fashion.table(given.network, given.epochs, given.processes, given.rows),
}
"""Parts that print a table and return how many figures are missed."""

HEADER = f"{'':44s}{'published':>16s} {'measured':>9s}  {'each seed':26s}{'bits':>9s} {'drift':>8s}  {'seconds':s}"


def main() -> int:
    """Run the parts that the command line names. Returns 1 when a figure is not met, for the shell."""
    known = [*PARTS, *TABLES]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.replication", description=__doc__, formatter_class=raw)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(known)}")
    parser.add_argument("--rows", default="", help="only rows that begin with this, such as 'linear, full'")
    parser.add_argument("--algorithms", default="", help="only these, such as mcm,diana")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each cell, at most 3")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--libsvm", type=Path, default=LIBSVM, help="folder of a9a.gz and a9a.clusters20.txt")
    parser.add_argument("--out", type=Path, default=Path("pareto.csv"), help="where pareto writes every point")
    parser.add_argument("--network", default="small", choices=("small", "published"), help="of fashion")
    parser.add_argument("--epochs", type=float, default=60.0, help="of fashion, at most")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in known]:
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(known)}")
    missed = 0
    for part in options.parts or PARTS:
        if part in TABLES:
            missed += TABLES[part](options)
            continue
        with TemporaryDirectory() as scratch:
            write_plane(Path(scratch))
            if part == RR:
                rr.write_files(Path(scratch), options.libsvm)
                missed += rr_table.table(Path(scratch), options.rows, options.seeds, options.processes)
                continue
            cells = list(figures.PARTS[part](Path(scratch) if part == "synthetic" else options.libsvm))
            names = some(options.algorithms) or [cell.algorithm for cell in cells]
            cells = [cell for cell in cells if cell.row.startswith(options.rows) and cell.algorithm in names]
            missed += table(sorted(cells, key=lambda cell: cell.row), options.seeds, options.processes)
    return 1 if missed else 0


def some(names: str) -> list[str]:
    """Names with commas between them."""
    return [name for name in names.split(",") if name]


def table(cells: Sequence[Cell], seeds: int, processes: int) -> int:
    """Print a line a cell, and the ratios of the plateaus. Returns the number of figures missed."""
    print(HEADER)
    cells = [replace(cell, seeds=cell.seeds[:seeds]) for cell in cells]
    missed, plateaus = 0, {}
    for cell, runs in measure_all(cells, processes):
        print(line(cell, runs), flush=True)
        missed += not cell.met(mean_tail(cell, runs))
        plateaus[cell.row, cell.algorithm] = mean_tail(cell, runs)
    for (row, algorithm), (reference, low, high) in BANDS.items():
        if {(row, algorithm), (row, reference)} <= plateaus.keys():
            ratio = plateaus[row, algorithm] - plateaus[row, reference]
            missed += not low <= ratio <= high
            expected = f"expected {low:.2f} to {high:.2f}"
            print(f"{row} · log10 {algorithm} / {reference} = {ratio:.2f}, {expected}  {mark(low <= ratio <= high)}")
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
