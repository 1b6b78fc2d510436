"""``fedsim time``: how long runs take over a network, from what was sent in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def time(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")],
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="fibre, 4g, iot, data-centre or the path of a trace; the runs' own when left out.",
            show_default=False,
        ),
    ] = "",
    target: Annotated[
        list[float] | None,
        typer.Option(metavar="LOSS", help="Also say when a loss was reached; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Simulated seconds of rounds, of whole runs, and until they reached a loss.

    From the bytes that every client received and sent: see `fedsim keys network` for what a network is.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from fedsim.cli.text import duration
    from fedsim.reporting.runs import folders
    from fedsim.simulation.hindsight import network_named, replay

    named = network_named(network) if network else None
    table = Table(box=None, pad_edge=False)
    table.add_column("run")
    for name in (
        "network",
        "rounds",
        "round, median",
        "longest",
        "total",
        *(f"to loss {loss:g}" for loss in target or ()),
    ):
        table.add_column(name, justify="right")
    for path in (place for given in runs for place in folders(given) or [given]):
        played = replay(path, named)
        seconds = played.timing.seconds
        cells = [str(played.network.__struct_config__.tag), str(len(seconds))]
        cells += [duration(float(np.median(seconds))), duration(float(seconds.max()))] if len(seconds) else ["-", "-"]
        cells.append(duration(float(seconds.sum())))
        for loss in target or ():
            found = played.reached(loss)
            cells.append("not reached" if found is None else f"{duration(found[1])} ({found[0]} rounds)")
        table.add_row(str(path), *cells)
    Console(highlight=False, markup=False, emoji=False).print(table)
    print("\nwhat is sent and computed; not a server's own work, nor how long a node waits before it asks for more")
