"""SALR beside the solver it is built on: does a step that follows the sharpness end in flatter, better minima?

A network on 10 clients with Dirichlet(0.3) labels, all taking part; in each round one pass of reshuffled batches of 32
at each client, and the mean of the models (FedAvg). Without compression, and as artemis with 4 levels up and 16 down.

    arm                  rule        step    rounds
    base                 constant    eta     E
    base, as costly      constant    eta     as many as take the sample gradients that salr took
    salr                 salr        eta     E
    base, salr's step    constant    eta_s   E
    salr, salr's step    salr        eta_s   E
    norm, salr's step    norm        eta_s   E

eta has the lowest training loss of "base" on a seed that is not used otherwise, of a grid; eta_s the lowest one of
"salr": the steps of SALR reach up to 5 times eta, so a step just short enough for "base" may be too long for it. Both
are tuned without compression. "norm" is the control, eta ||g|| / running median of ||g||, as often and within the same
bounds as SALR: with n1 = n2 = n probe steps S = 2 n gamma ||g|| + O(gamma^3), so away from a minimum SALR can only know
the norm of the gradient. No published number is compared; the claim of SALR's paper
is less sharpness and no more test error at equal epochs. A model that learned nothing lies flat, so sharpness means
something only beside the loss.

Sharpness is Keskar's, on the training loss of all clients: ``tests.replication.keskar``. Intervals are Student's, 95 %.

Source: Yue, Nouiehed, Al Kontar, "SALR: Sharpness-aware learning rate scheduler for improved generalization".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from scipy.stats import t as student

import fedsim
from fedsim import Experiment
from fedsim.data import FashionMNIST
from fedsim.errors import DivergedError
from fedsim.solvers import Here, Notes
from tests.replication.keskar import sharpness_of

SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 99
GRID = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
BASE, SALR, NORM, COSTLY = "base", "salr", "norm", "base, as costly"
OWN_BASE, OWN_SALR, OWN_NORM = (f"{rule}, salr's step" for rule in (BASE, SALR, NORM))
PAIRS = [(SALR, BASE), (SALR, COSTLY), *((OWN_SALR, other) for other in (BASE, COSTLY, OWN_BASE, OWN_NORM))]
"""Arms that are compared, seed by seed."""

PERIOD, CAP = 2, 5.0
RULES = {
    BASE: {"rule": "constant"},
    SALR: {"rule": "salr", "period": PERIOD, "cap": CAP},
    NORM: {"rule": "own", "factory": "tests.replication.salr:GradientNorm", "options": {"period": PERIOD, "cap": CAP}},
}
WIRES: dict[str, dict[str, Any]] = {
    "exact": {"algorithm": "fedavg"},
    "artemis": {
        "algorithm": "artemis",
        "uplink": {"levels": 4, "bucket": 128},
        "downlink": {"levels": 16, "bucket": 128},
        "server": {"step": 1.0, "normalise": "present"},
    },
}


class GradientNorm:
    """eta times the norm of the batch's gradient over the running median of these norms, at most ``cap`` times eta."""

    def __init__(self, period: int, cap: float) -> None:
        self.period, self.cap = period, cap

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """Measure every ``period`` steps. The gradient is taken anew, and counted."""
        history = notes.get("history", torch.zeros(0, dtype=torch.float64))
        if len(history) and k % self.period:
            return base * float(notes["factor"]), notes, 0
        # In a pass the weights of a batch need not sum to 1.
        row = here.task.gradients(here.model, here.batch)[0] / here.batch.weights.sum()
        history = torch.cat([history, row.norm()[None].double()])
        median = history.quantile(0.5)
        factor = (history[-1] / median if median > 0 else torch.ones_like(median)).clamp_max(self.cap)
        return base * float(factor), {"history": history, "factor": factor}, here.batch.weights.shape[1]


@dataclass(frozen=True, slots=True)
class Case:
    """A data set, the network for it, and E."""

    name: str
    data: dict[str, object]
    hidden: int
    rounds: int

    def experiment(self, wire: str, rule: str, eta: float, seed: int, rounds: int | None = None) -> Experiment:
        """One run. rounds: E unless given."""
        rounds = rounds or self.rounds
        return Experiment.of(
            **WIRES[wire],
            seed=seed,
            rounds=rounds,
            data=self.data,
            partition={"scheme": "dirichlet", "clients": 10, "alpha": 0.3},
            participation={"scheme": "full"},
            task={"kind": "mlp", "hidden": [self.hidden]},
            local={"steps": 1, "epochs": 1, "batch": 32, "order": "reshuffle", "step": eta, "send": "difference"},
            rate=RULES[rule],
            run={"evaluate_every": rounds},
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm ends with. error, sharpness: in percent; gradients: of samples, in thousands; bytes: in MB."""

    error: float
    loss: float
    sharpness: float
    gradients: float
    bytes: float


COLUMNS = ("test error %", "training loss", "sharpness %", "10^3 gradients", "MB")


def cases() -> Iterable[Case]:
    """Digits, and the first rows of Fashion-MNIST where it is installed."""
    yield Case("digits", {"source": "digits"}, 32, 30)
    if FashionMNIST().present():
        yield Case("fashion-mnist, 2000 rows", {"source": "fashion-mnist", "limit": 2000}, 32, 15)


def play(experiment: Experiment) -> Outcome:
    """Run to the end and measure."""
    result = fedsim.run(experiment)
    last = result.metrics[-1]
    return Outcome(
        error=100 * (1 - last["test_accuracy"]),
        loss=last["loss"],
        sharpness=sharpness_of(experiment, result.model),
        gradients=last["gradients"] / 1e3,
        bytes=(last["up_bytes"] + last["down_bytes"]) / 1e6,
    )


def losses(case: Case, rule: str, grid: Sequence[float]) -> dict[float, float]:
    """Training loss with each step of the grid, uncompressed, on the tuning seed; infinite where it diverges."""

    def loss(eta: float) -> float:
        try:
            return fedsim.run(case.experiment("exact", rule, eta, TUNING_SEED)).loss
        except DivergedError:
            return math.inf

    return {eta: loss(eta) for eta in grid}


def best(losses: Mapping[float, float]) -> float:
    """The step with the lowest loss."""
    return min(losses, key=lambda eta: losses[eta])


def arms(case: Case, wire: str, eta: float, own: float, seed: int) -> dict[str, Outcome]:
    """All arms on one seed. eta, own: the steps tuned for "base" and for "salr"."""
    base, probed = (play(case.experiment(wire, rule, eta, seed)) for rule in (BASE, SALR))
    rounds = round(case.rounds * probed.gradients / base.gradients)
    return {
        BASE: base,
        COSTLY: play(case.experiment(wire, BASE, eta, seed, rounds)),
        SALR: probed,
        OWN_BASE: play(case.experiment(wire, BASE, own, seed)),
        OWN_SALR: play(case.experiment(wire, SALR, own, seed)),
        OWN_NORM: play(case.experiment(wire, NORM, own, seed)),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the 95 % interval of the mean)."""
    sample = torch.tensor(values, dtype=torch.float64)
    half = student.ppf(0.975, len(values) - 1) * float(sample.std()) / math.sqrt(len(values))
    return float(sample.mean()), float(half)


def lines(runs: Sequence[dict[str, Outcome]]) -> Iterable[str]:
    """The table of one case: the arms, then differences, seed by seed. runs: of each seed."""

    def line(name: str, outcomes: Iterable[Sequence[float]]) -> str:
        cells = map(interval, zip(*outcomes, strict=True))
        return f"  {name:42s}" + "".join(f"{mean:10.4f} ± {half:<8.4f}" for mean, half in cells)

    yield f"  {'':42s}" + "".join(f"{title:>14s}{'':7s}" for title in COLUMNS)
    for arm in runs[0]:
        yield line(arm, [astuple(run[arm]) for run in runs])
    for arm, other in PAIRS:
        pairs = [zip(astuple(run[arm]), astuple(run[other]), strict=True) for run in runs]
        yield line(f"({arm}) - ({other})", [[mine - its for mine, its in pair] for pair in pairs])


def table(some: Iterable[Case] | None = None, seeds: Sequence[int] = SEEDS, grid: Sequence[float] = GRID) -> int:
    """Print the table of each case. Returns 0: nothing is published that could be missed."""
    for case in cases() if some is None else some:
        steps = {}
        for rule in (BASE, SALR):
            found = losses(case, rule, grid)
            steps[rule] = best(found)
            tried = ", ".join(f"{step:g}: {loss:.4f}" for step, loss in found.items())
            print(f"{case.name} · {rule} · step {steps[rule]:g}, by the training loss on seed {TUNING_SEED}: {tried}")
        for wire in WIRES:
            print(f"{case.name} · {wire} · {case.rounds} rounds · mean of {len(seeds)} seeds ± 95 %")
            for line in lines([arms(case, wire, steps[BASE], steps[SALR], seed) for seed in seeds]):
                print(line, flush=True)
    return 0
