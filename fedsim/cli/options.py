"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ExperimentFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[EXPERIMENT.TOML]", help="The experiment; the built-in default when left out.", show_default=False
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, for example --set uplink.levels=4.", show_default=False
    ),
]
RunFolderPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
NetworkName = Annotated[
    str,
    typer.Option(
        "--network",
        metavar="NAME",
        help="Simulated seconds of every run over this network: fibre, 4g, iot, data-centre or the path of a trace.",
        show_default=False,
    ),
]
