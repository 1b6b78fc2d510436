"""What fedsim has to reproduce: log10 of the excess loss F - F* at the end of a run, published or measured elsewhere.

PAPER        Philippenko and Dieuleveut, arXiv 2006.14591, the figures of its experiments, read off to +-0.05
INDEPENDENT  an implementation in NumPy that shares no code with this one, on the same rows and the same clusters
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedsim import Experiment
from tests.replication import experiments

ALGORITHMS = ("sgd", "qsgd", "diana", "bi-qsgd", "artemis")
SEEDS = (0, 1, 2)

HALF_SEEDS = (0, 1, 2, 3, 4)
"""More, because artemis varies: its early noise at 4/L leaves the slowest directions nearer to or farther from the
minimum, after which the descent is smooth: -4.65 +- 0.60 over these seeds. At p = 1 its three end at -4.96 +- 0.48
for the same reason, and agreement to 0.15 there is better than three seeds deserve."""

LINEAR_SEEDS = (4, 9, 31)
"""Seeds of noisy linear sets like the published one, whose own draw was not seeded.

How fast plain gradient descent falls on a draw follows in closed form from its Hessian. Over the seeds 0 to 149 it ends
at -13.58 +- 0.36 (from -14.62 to -12.90); the published curve ends at -13.0. So that cell identifies the draw rather
than tests anything. The other cells do, on the first three seeds within 0.05 of it.
"""

FLOOR = -15.5
"""Where float64 cannot tell F from F* (about 0.3) any more, on the log10 axis."""

NOTHING = (-math.inf, math.inf)
"""The range of a figure that nobody has published."""

A9A_BITS = {"sgd": 158720, "qsgd": 82696, "diana": 82696, "bi-qsgd": 6673, "artemis": 6673}
LINEAR_BITS = {"sgd": 25600, "qsgd": 13836, "diana": 13836, "bi-qsgd": 2071, "artemis": 2071}
PLANE_BITS = {"sgd": 2560, "qsgd": 1510, "diana": 1510, "bi-qsgd": 460, "artemis": 460}
"""Bits of a round by the published formula, all 20 clients."""

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    experiment: of seed 0. low, high: what the source says, equal where it is one number. tolerance: how far outside a
    measurement may lie. tail: share of the evaluations that are averaged, 0 for the last one alone: for a plateau, on
    which a single evaluation is noise. bits: of a round by formula, where all clients take part.
    """

    part: str
    row: str
    algorithm: str
    experiment: Experiment
    low: float
    high: float
    tolerance: float
    seeds: tuple[int, ...] = SEEDS
    tail: float = 0.0
    bits: int | None = None

    def at(self, seed: int) -> Experiment:
        """The experiment of one seed."""
        return msgspec.structs.replace(self.experiment, seed=seed)

    def met(self, measured: float) -> bool:
        """Whether a measurement agrees with the source."""
        return self.low - self.tolerance <= measured <= self.high + self.tolerance


def numbers(**values: float) -> Ranges:
    """Single numbers as ranges, in the order of ALGORITHMS."""
    return {name.replace("_", "-"): (value, value) for name, value in values.items()}


# INDEPENDENT, full participation: at 1/L all five together; at 4/L those without memory reach a plateau.
A9A_SLOW: Ranges = dict.fromkeys(ALGORITHMS, (-2.27, -2.23))
A9A_FAST: Ranges = numbers(sgd=-4.91, diana=-5.04, artemis=-5.03) | {"qsgd": (-4.05, -3.9), "bi-qsgd": (-3.16, -2.95)}

# INDEPENDENT, p = 1/2, PP2.
A9A_HALF: Ranges = numbers(sgd=-3.95, qsgd=-3.55, diana=-4.07, bi_qsgd=-2.69, artemis=-4.53)

# PAPER of MCM, arXiv 2102.12528, its a9a figure, read off to +-0.05; Dore is drawn on top of Artemis. Its clusters need
# not be ours (F* is 0.3196 there and 0.3271 here), so what is compared closely is in BANDS, level beside level.
PRESERVED = {"sgd": -3.4, "diana": -2.75, "mcm": -2.75, "rand-mcm": -2.75, "artemis": -1.9, "dore": -1.9}

# PAPER. "-16" is the floor of float64, and "about -5, noisy" a range.
LINEAR_FULL: Ranges = numbers(sgd=-13, diana=-13, artemis=-12.7, qsgd=-3.2, bi_qsgd=-2.5)
LINEAR_BATCH_1: Ranges = numbers(sgd=-4.2, diana=-3.55, artemis=-3.0, qsgd=-3.5, bi_qsgd=-2.95)
NOISELESS_BATCH_1: Ranges = numbers(sgd=-9.4, diana=-9.4, artemis=-9.0, qsgd=-9.3, bi_qsgd=-9.4)
PLANE_FULL: Ranges = dict.fromkeys(("sgd", "diana", "artemis"), (-math.inf, FLOOR)) | numbers(qsgd=-5, bi_qsgd=-5)


def a9a_p1(folder: Path) -> Iterable[Cell]:
    """All clients in every round, full gradients."""
    part = "a9a-p1"
    for name in ALGORITHMS:
        slow, fast = experiments.a9a(folder, name, "1/L", 400), experiments.a9a(folder, name, "4/L", 4000)
        tail = 0.25 if name in ("qsgd", "bi-qsgd") else 0.0
        yield Cell(part, "1/L, 400 rounds", name, slow, *A9A_SLOW[name], 0.15, bits=A9A_BITS[name])
        yield Cell(part, "4/L, 4000 rounds", name, fast, *A9A_FAST[name], 0.15, tail=tail, bits=A9A_BITS[name])


def a9a_pp(folder: Path) -> Iterable[Cell]:
    """Half of the clients in a round, full gradients; PP1 and paper_compat beside the figures of PP2."""
    part = "a9a-pp"
    for name in ALGORITHMS:
        half = experiments.a9a_half(folder, name)
        yield Cell(part, "PP2", name, half, *A9A_HALF[name], 0.3, seeds=HALF_SEEDS)
    for name in ("diana", "artemis"):
        yield Cell(part, "PP1", name, experiments.a9a_half(folder, name, memory="pp1"), *NOTHING, 0.0)
        yield Cell(part, "PP2 / p", name, experiments.a9a_half(folder, name, paper_compat=True), *NOTHING, 0.0)


def synthetic(folder: Path) -> Iterable[Cell]:
    """Rows 1 to 4 of the paper's synthetic experiments; ``folder`` holds what ``experiments.write_plane`` writes."""
    part = "synthetic"
    for name in ALGORITHMS:
        plateau = name in ("qsgd", "bi-qsgd")
        yield Cell(
            part,
            "linear, full",
            name,
            experiments.linear(name, batch=0, noise=True),
            *LINEAR_FULL[name],
            0.2,
            seeds=LINEAR_SEEDS,
            tail=0.25 if plateau else 0.0,
            bits=LINEAR_BITS[name],
        )
        yield Cell(
            part,
            "plane, full",
            name,
            experiments.plane(folder, name),
            *PLANE_FULL[name],
            0.5 if plateau else 0.0,
            tail=0.25 if plateau else 0.0,
            bits=PLANE_BITS[name],
        )
        for row, noise, figures in (
            ("linear, batch 1", True, LINEAR_BATCH_1),
            ("noiseless, batch 1", False, NOISELESS_BATCH_1),
        ):
            yield Cell(
                part,
                row,
                name,
                experiments.linear(name, batch=1, noise=noise),
                *figures[name],
                0.2,
                seeds=LINEAR_SEEDS if noise else SEEDS,
                tail=0.1 if noise else 0.0,
                bits=LINEAR_BITS[name],
            )


def a9a_stochastic(folder: Path) -> Iterable[Cell]:
    """Batches of 128 on a9a: the levels themselves are not published, their ratios are in BANDS."""
    for name in ("sgd", "diana", "artemis"):
        experiment = experiments.a9a_stochastic(folder, name)
        yield Cell("a9a-stochastic", STOCHASTIC, name, experiment, *NOTHING, 0.0, tail=0.5, bits=A9A_BITS[name])


def a9a_preserved(folder: Path) -> Iterable[Cell]:
    """MCM keeps the plateau of uplink compression alone; degrading the central model costs Artemis most of a decade."""
    for name, level in PRESERVED.items():
        experiment = experiments.a9a_preserved(folder, name)
        yield Cell("a9a-mcm", PRESERVING, name, experiment, level, level, 0.3, tail=0.1)


STOCHASTIC, PRESERVING = "batch 128", "600 epochs, batch 50"
OMEGA_PLUS_1 = 1 + math.sqrt(124)
BANDS = {
    (STOCHASTIC, "diana"): ("sgd", 0.4 * math.log10(OMEGA_PLUS_1), math.log10(OMEGA_PLUS_1)),
    (STOCHASTIC, "artemis"): ("sgd", 0.8 * math.log10(OMEGA_PLUS_1), 2 * math.log10(OMEGA_PLUS_1)),
    (PRESERVING, "mcm"): ("diana", -0.15, 0.15),
    (PRESERVING, "artemis"): ("diana", 0.85 - 0.15, 0.85 + 0.15),
    (PRESERVING, "dore"): ("artemis", -0.15, 0.15),
}
"""log10 of plateau / plateau of another, lowest and highest. STOCHASTIC, by theory: omega + 1 for diana and
(omega + 1)^2 for artemis, at most. PRESERVING, as published: a model that the server preserves has the plateau of
uplink compression alone; one that it does not is 0.85 higher."""

PARTS: dict[str, Callable[[Path], Iterable[Cell]]] = {
    "a9a-p1": a9a_p1,
    "a9a-pp": a9a_pp,
    "a9a-stochastic": a9a_stochastic,
    "a9a-mcm": a9a_preserved,
    "synthetic": synthetic,
}
