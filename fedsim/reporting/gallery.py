"""The pictures of the README, made from runs: five methods on the same task, four seeds each, a minute in all.

The runs are ordinary run folders below RUNS, so ``fedsim report`` shows them too, and one that is there already is not
played again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedsim.experiment import Experiment
from fedsim.reporting.content import EXCESS, Study, study
from fedsim.reporting.final import Examiner
from fedsim.reporting.plots import draw_bytes, draw_curves
from fedsim.reporting.runs import read_run
from fedsim.simulation.run import resume, run

METHODS = ("sgd", "qsgd", "diana", "bi-qsgd", "artemis")
SEEDS = range(4)
ROUNDS = 400
RUNS = "runs"

PICTURES: dict[str, Callable[[Study, Path], None]] = {
    "loss-against-bytes.svg": lambda found, path: draw_curves(found, path, "bytes", EXCESS, log_x=True),
    "loss-against-rounds.svg": lambda found, path: draw_curves(found, path, "rounds", EXCESS),
    "where-the-bytes-went.svg": draw_bytes,
}


def experiments(rounds: int = ROUNDS) -> dict[str, Experiment]:
    """Every experiment of the gallery by the name of its run folder.

    Least squares in 101 coordinates at 20 clients whose optima differ, each of which takes part in every second round;
    full gradients, so that the only noise is that of compression and of absence.
    """
    return {
        f"{method}-seed-{seed}": Experiment.of(
            algorithm=method,
            seed=seed,
            rounds=rounds,
            data={"source": "synthetic-linear", "features": 100},
            participation={"scheme": "bernoulli", "p": 0.5},
            server={"step": "0.5/L"},
        )
        for method in METHODS
        for seed in SEEDS
    }


def gallery(folder: Path, rounds: int = ROUNDS) -> list[Path]:
    """Play the runs that are missing and draw the pictures; their paths. Raises CheckpointError, ConfigError."""
    wanted = experiments(rounds)
    for name, experiment in wanted.items():
        place = folder / RUNS / name
        if (place / "experiment.toml").exists():
            resume(place)
        else:
            run(experiment, place)
    found = study((read_run(folder / RUNS / name) for name in wanted), Examiner(theory=False))
    for name, draw in PICTURES.items():
        draw(found, folder / name)
    return [folder / name for name in PICTURES]
