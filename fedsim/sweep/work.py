"""What of a sweep is done already, and what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from fedsim.errors import CheckpointError
from fedsim.experiment import Experiment
from fedsim.reporting.runs import folders, read_run
from fedsim.simulation.executors import cores
from fedsim.sweep.grid import Point
from fedsim.sweep.pool import Told, Work, said


def found(folder: Path) -> Told | None:
    """What the folder of a run says of it; None where there is none yet.

    "finished" and "diverged" stay as they are; "stopped" is gone on with; "failed" cannot be read.
    """
    if not (folder / "experiment.toml").exists():
        return None
    try:
        run = read_run(folder)
    except CheckpointError as error:
        return Told("failed", reason=str(error))
    if run.status == "diverged":
        return Told("diverged", reason=str(run.manifest.get("reason", "")))
    metrics = run.metrics[-1] if run.metrics else {}
    return said("finished" if run.finished else "stopped", metrics, int(metrics.get("round", 0)))


def work(point: Point, place: Path, jobs: int) -> Work:
    """To play a point in its folder below ``place``, while so many others play: cores are shared."""
    return Work(str(place / point.name), _sharing(point.experiment, jobs).toml())


def _sharing(experiment: Experiment, jobs: int) -> Experiment:
    """The same experiment with a share of the cores for its worker processes, where it leaves their number open."""
    run = experiment.run
    if run.workers or run.executor not in ("auto", "workers"):
        return experiment
    options = msgspec.structs.replace(run, workers=max(1, cores() // jobs))
    return msgspec.structs.replace(experiment, run=options)


def others(place: Path, points: Iterable[Point]) -> list[Path]:
    """Runs below ``place`` that are not of these points: of a sweep that was different."""
    names = {point.name for point in points}
    return [folder for folder in folders(place) if folder.name not in names]
