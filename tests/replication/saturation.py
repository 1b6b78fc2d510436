"""Where six methods level off, beside what is predicted: ``python -m tests.replication saturation``.

The measured level is the mean of F - F* over the second half of a run, one seed; the prediction comes from the Hessian
and the noise at the optimum, and from other random numbers. Claim: within a factor of 2 of each other in every row.

    linear    least squares, 20 clients of 200 points, label noise of variance 1, d = 20, batches of 4
    plane     logistic regression in the plane, 20 clients whose optima differ, l2 = 0.05, batches of 4
    a9a       logistic regression, 20 published clusters, l2 = 0.01, d = 124, batches of 128
    full      a9a with full gradients: what is left is heterogeneity, so memories leave nothing (PP1 leaves absences)
    sgd, qsgd, diana, artemis, mcm, rand-mcm   all clients in every round, s = 1
    PP1, PP2  artemis, each client with probability 1/2, every memory at the server or only their mean
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import Experiment
from fedsim.simulation.engine import play
from fedsim.simulation.plateau import Plateau, plateau, survey
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import initial_state
from tests.replication import experiments

METHODS = ("sgd", "qsgd", "diana", "artemis", "PP1", "PP2")
EVERY = 5
"""Rounds between looks at the loss."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run. measured, predicted: F - F*; first: to first order in the step; both with their ratio."""

    problem: str
    step: str
    method: str
    measured: float
    found: Plateau | str
    seconds: float

    @property
    def ratio(self) -> float:
        """Measured over predicted; 0 where nothing was predicted."""
        return self.measured / self.found.loss if isinstance(self.found, Plateau) else 0.0

    @property
    def met(self) -> bool:
        """Within a factor of 2."""
        return 0.5 <= self.ratio <= 2


def method(name: str, step: str) -> dict[str, Any]:
    """The tables that a method and a step fix."""
    partial = {"scheme": "bernoulli", "p": 0.5} if name.startswith("PP") else {"scheme": "full"}
    memory = {"memory": name.lower()} if name.startswith("PP") else {}
    server = {"step": step, "smoothness": "frobenius", "weights": "pooled"} | memory
    algorithm = "artemis" if name.startswith("PP") else name
    return {"algorithm": algorithm, "participation": partial, "server": server, "run": {"precision": "float64"}}


def linear(name: str, step: str, rounds: int, **data: Any) -> Experiment:
    """Least squares with label noise."""
    source = {"source": "synthetic-linear", "noise": 1.0, "noise_kind": "label"} | data
    return Experiment.of(data=source, rounds=rounds, local={"batch": 4}, **method(name, step))


def plane(name: str, step: str, rounds: int) -> Experiment:
    """Logistic regression in the plane."""
    source, task = {"source": "synthetic-logistic", "points": "independent"}, {"kind": "logistic", "l2": 0.05}
    return Experiment.of(data=source, task=task, rounds=rounds, local={"batch": 4}, **method(name, step))


def a9a(folder: Path, batch: int) -> Callable[[str, str, int], Experiment]:
    """Logistic regression on the clusters of a9a."""

    def made(name: str, step: str, rounds: int) -> Experiment:
        return Experiment.of(
            data={"source": "libsvm", "path": str(folder / "a9a.gz")},
            partition={"scheme": "clusters", "clients": 20, "file": str(folder / "a9a.clusters20.txt")},
            task={"kind": "logistic", "l2": experiments.RIDGE},
            rounds=rounds,
            local={"batch": batch},
            **method(name, step),
        )

    return made


def measured(setup: Setup, rounds: int) -> float:
    """Mean of F - F* over the second half."""
    valley, state, found = survey(setup), initial_state(setup), []
    everything = setup.federation.all()
    lowest = setup.task.loss(valley.best.to(state.server.model), everything)
    for t in range(rounds):
        play(setup, state)
        if 2 * t >= rounds and t % EVERY == 0:
            found.append(setup.task.loss(state.server.model, everything) - lowest)
    return sum(found) / len(found)


def row(problem: str, name: str, step: str, experiment: Experiment) -> Row:
    """Predict, run, measure."""
    setup, began = prepare(experiment), time.monotonic()
    predicted = plateau(setup)
    seconds = time.monotonic() - began
    return Row(problem, step, name, measured(setup, experiment.rounds), predicted, seconds)


def rows(folder: Path, problems: Sequence[str] = ("linear", "plane", "a9a", "full")) -> Iterator[Row]:
    """Every problem, step and method."""
    makers: dict[str, tuple[Callable[[str, str, int], Experiment], tuple[tuple[str, int], ...], tuple[str, ...]]] = {
        "linear": (linear, (("1/(2L)", 1500), ("1/(8L)", 4000)), (*METHODS, "mcm", "rand-mcm")),
        "plane": (plane, (("1/(2L)", 1500), ("1/(8L)", 6000)), METHODS),
        "a9a": (a9a(folder, 128), (("1/L", 4000), ("1/(2L)", 8000)), METHODS),
        "full": (a9a(folder, 0), (("1/L", 3000),), ("qsgd", "PP1")),
    }
    for problem in problems:
        make, steps, methods = makers[problem]
        for step, rounds in steps:
            for name in methods:
                yield row(problem, name, step, make(name, step, rounds))


def line(found: Row) -> str:
    """One row as text."""
    start = f"{found.problem:8s} {found.step:8s} {found.method:8s} {found.measured:10.3e}"
    if isinstance(found.found, str):
        return f"{start}  {found.found}  MISSED"
    said = found.found
    return (
        f"{start} {said.loss:10.3e} {found.ratio:6.2f} {said.first:12.3e} {said.gain:6.2f} {found.seconds:8.1f}  "
        f"{'met' if found.met else 'MISSED'}"
    )


def table(folder: Path, problems: Sequence[str] = ("linear", "plane", "a9a", "full")) -> int:
    """Print the rows. Returns how many predictions are off by more than a factor of 2."""
    print(
        f"{'problem':8s} {'step':8s} {'method':8s} {'measured':>10s} {'predicted':>10s} {'ratio':>6s} "
        f"{'first order':>12s} {'gain':>6s} {'seconds':>8s}"
    )
    missed = 0
    for found in rows(folder, problems):
        print(line(found), flush=True)
        missed += not found.met
    return missed
