"""A few small runs to report on: three methods, two seeds, with accuracy, absences and a strongly convex loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.experiment import Experiment
from fedsim.reporting.content import Study, study
from fedsim.reporting.final import Examiner
from fedsim.reporting.runs import find_runs
from fedsim.simulation.run import run

LABELS = ("artemis · levels 1", "artemis · levels 4", "sgd")


def experiment(algorithm: str, seed: int, **uplink: int) -> Experiment:
    """Breast cancer at six clients, each of which is there in every second round."""
    return Experiment.of(
        algorithm=algorithm,
        seed=seed,
        rounds=30,
        data={"source": "breast-cancer"},
        task={"kind": "logistic", "l2": 0.1},
        partition={"scheme": "dirichlet", "clients": 6, "alpha": 0.5},
        participation={"scheme": "bernoulli", "p": 0.5},
        uplink=uplink,
        run={"evaluate_every": 3, "checkpoint_every": 10},
    )


def play(folder: Path) -> Path:
    """Six run folders below ``folder``."""
    for seed in (0, 1):
        run(experiment("artemis", seed, levels=1), folder / f"a1-{seed}")
        run(experiment("artemis", seed, levels=4), folder / f"a4-{seed}")
        run(experiment("sgd", seed), folder / f"sgd-{seed}")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of these runs."""
    return play(tmp_path_factory.mktemp("studied"))


@pytest.fixture(scope="session")
def studied(runs: Path) -> Study:
    """The runs, read and examined."""
    return study(find_runs([runs]), Examiner())
