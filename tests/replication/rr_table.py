"""The table of ``rr``: published, measured and an independent implementation, side by side, and what is missed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from tests.replication import rr
from tests.replication.measure import measure_all

HEADER = f"{'F - F*':34s} {'order':5s} {'published':>9s} {'measured':>9s} {'numpy':>9s}  {'each seed':26s}"


def table(folder: Path, rows: str, seeds: int, processes: int) -> int:
    """Print a line a cell, the ratios of files sorted by label to SGD, and the misses. Returns their number."""
    keyed = {key: cell for key, cell in rr.keyed_cells(folder).items() if cell.row.startswith(rows)}
    jobs = [replace(cell, seeds=cell.seeds[:seeds]) for cell in keyed.values()]
    found: dict[tuple[rr.Key, str], float] = {}
    missed = []
    print(HEADER)
    for ((row, order), cell), (_, runs) in zip(keyed.items(), measure_all(jobs, processes), strict=True):
        found[row, order] = level = rr.mean_excess(runs)
        numpy = rr.independent_excess(folder, row, order)
        each = " ".join(f"{10 ** rr.mean_excess([run]):.1e}" for run in runs)
        known, met = rr.TABLE[row][order], cell.met(level)
        published, verdict = ("-", "") if math.isnan(known) else (f"{known:.1e}", "met" if met else "MISSED")
        print(
            f"{cell.row:34s} {order:5s} {published:>9s} {10**level:9.1e} {10**numpy:9.1e}  {each:26s} {verdict}",
            flush=True,
        )
        if not met:
            why = rr.MISSED.get((row, order), "unexplained")
            missed.append(f"{cell.row} · {order}: {10**level / known:.2g} times the published figure: {why}")
    for (name, batch, epochs), order in found:
        plain = (name.removesuffix(" by label"), batch, epochs)
        if name != plain[0] and (plain, "sgd") in found:
            ratio = 10 ** (found[(name, batch, epochs), order] - found[plain, "sgd"])
            print(f"{name}, {batch}, {epochs} · ig / sgd = {ratio:.2g}: {'no better' if ratio >= 1 else 'BETTER'}")
    for line in missed:
        print(f"missed: {line}")
    return len(missed)
