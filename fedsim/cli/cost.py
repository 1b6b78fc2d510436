"""``fedsim cost``: what an experiment will cost, or what a run has cost, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.options import Assignments


def cost(
    what: Annotated[
        Path | None,
        typer.Argument(metavar="[EXPERIMENT.TOML | RUN]", help="An experiment, or a run folder.", show_default=False),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Bytes by direction and kind: of a finished or unfinished run from its ledger, of an experiment in advance.

    In advance, who takes part and what is sent uncompressed is exact; a quantized message counts as long as the
    encoding of a Gaussian row.
    """
    from rich.console import Console
    from rich.table import Table

    from fedsim.cli import text
    from fedsim.errors import ConfigError
    from fedsim.experiment import load
    from fedsim.ledger import Cost, read_totals
    from fedsim.simulation.forecast import forecast

    if what is not None and what.is_dir():
        if not (what / "ledger.csv").exists():
            raise ConfigError(f"{what} is not a run folder (no ledger.csv); give a run folder or a TOML file")
        if assignments:
            raise ConfigError(f"--set {assignments[0]} cannot change what a run has cost; leave it out")
        ahead, totals = None, read_totals(what / "ledger.csv")
        source = f"measured, from {what / 'ledger.csv'}"
    else:
        ahead = forecast(load(what, assignments or ()))
        totals, source = ahead.totals, "in advance, not measured; quantized messages as long as those of a Gaussian row"
    table = Table(
        "direction", "kind", "frames", "formula bits", "payload bits", "frame bytes", box=None, pad_edge=False
    )
    for column in table.columns[2:]:
        column.justify = "right"
    rows = sorted((way.value, kind.value, part) for (way, kind), part in totals.items())
    for way, kind, part in [*rows, ("both", "total", sum(totals.values(), Cost()))]:
        table.add_row(
            way,
            kind,
            f"{part.frames:,}",
            f"{part.formula_bits:,.0f}",
            f"{part.payload_bits:,}",
            f"{part.frame_bytes:,}",
        )
    Console().print(table)
    print(f"\n{source}")
    if ahead is not None:
        times = ahead.uncompressed_bytes / max(sum(totals.values(), Cost()).frame_bytes, 1)
        print(f"formula bits of a round with all {ahead.clients} clients: {ahead.round_formula_bits:,.0f}")
        if times >= 1.05:
            print(f"the same frames uncompressed: {text.size(ahead.uncompressed_bytes)}, {times:.1f}x as many bytes")
