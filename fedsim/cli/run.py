"""``fedsim run``: train, watch, leave a run folder, and say what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.options import Assignments, ExperimentFile


def run(
    experiment: ExperimentFile = None,
    assignments: Assignments = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where to leave the run folder; default: runs/RECIPE-NAME.", show_default=False),
    ] = None,
) -> None:
    """Train a federation in this process, with every byte counted."""
    from fedsim.cli import play
    from fedsim.errors import ConfigError
    from fedsim.experiment import load

    if folder is not None and folder == Path():
        raise ConfigError(
            "--folder is the current directory; give the name of a new folder, for example --folder runs/mine"
        )
    parsed = load(experiment, assignments or ())
    play.play(parsed, folder or play.new_folder(parsed), fresh=True)
