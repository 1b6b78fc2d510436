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
    engine: Annotated[
        str,
        typer.Option("--engine", help="simulator, flower-in-process, flower-simulation (on Ray), or flower."),
    ] = "simulator",
    superlink: Annotated[
        str, typer.Option("--superlink", help="For flower: a connection in Flower's config.toml.", show_default=False)
    ] = "",
    nodes: Annotated[
        int,
        typer.Option(
            "--nodes",
            min=0,
            help="For flower-simulation and flower-in-process: how many share the clients.",
            show_default=False,
        ),
    ] = 0,
    gpus: Annotated[
        float,
        typer.Option(
            "--gpus-per-client", min=0, help="For flower-simulation: a share, for example 0.25.", show_default=False
        ),
    ] = 0.0,
) -> None:
    """Train a federation in this process, or on Flower, with every byte counted."""
    from fedsim.cli import play
    from fedsim.errors import ConfigError
    from fedsim.experiment import load
    from fedsim.keys import nearest

    if folder is not None and folder == Path():
        raise ConfigError(
            "--folder is the current directory; give the name of a new folder, for example --folder runs/mine"
        )
    from fedsim.cli.engines import Engine, Submission, submit

    known = [one.value for one in Engine]
    if engine not in known:
        raise ConfigError(f"--engine {engine}: no such engine{nearest(engine, known)}; give one of {', '.join(known)}")
    parsed = load(experiment, assignments or ())
    place = folder or play.new_folder(parsed)
    given = Submission(Engine(engine), str(place.absolute()), parsed.toml(), str(Path.cwd()), superlink, nodes, gpus)
    if given.engine is Engine.SIMULATOR:
        play.play(parsed, place, fresh=True)
    else:
        submit(given, parsed, fresh=True)
