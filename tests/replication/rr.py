"""Random reshuffling beside SGD, shuffle-once and the order of the file, by the protocol of the RR paper.

A federation of one client that sends the difference of the models after one epoch, uncompressed, to a server with step
1 is a single machine. The protocol, for (1/n) sum ln(1 + exp(-y_j <x_j, w>)) + lambda/2 ||w||^2 from w = 0:

    lambda = L0 / sqrt(n), so kappa = sqrt(n) + 1          L0 = largest eigenvalue of A'A / (4 n)
    gamma_k = min(1 / L_B, 1 / (mu + c max(0, k - K / 40)))      step k of K, mu = lambda
    c = mu / 3 with passes, mu / 2 for SGD
    L_B = n / (n - 1) (1 - 1 / B) L + (n / B - 1) / (n - 1) L_max      expected smoothness of a batch of B
    L = L0 + lambda,   L_max = max ||x_j||^2 / 4 + lambda

Figures: F - F*, the mean over the ends of the last five epochs and over three seeds, of an implementation that is not
in this repository; on w8a those of its seed 0. ``rr_numpy`` is another one that shares no code with fedsim. What fedsim
misses is in MISSED with the reason, and is compared with ``rr_numpy`` instead.

Source of the protocol: Mishchenko, Khaled, Richtárik, "Random Reshuffling: Simple Analysis with Vast Improvements",
NeurIPS 2020, section 5.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from sklearn.datasets import dump_svmlight_file, load_breast_cancer, load_digits, load_svmlight_file

from fedsim import Experiment
from fedsim.data.sources import BreastCancer, LibSVM
from tests.replication import rr_numpy
from tests.replication.figures import SEEDS, Cell
from tests.replication.measure import Measurement

ORDERS = {"sgd": "with-replacement", "rr": "reshuffle", "so": "shuffle-once", "ig": "incremental"}
"""What the paper calls them, and what fedsim does."""

LAST = 5
"""Epoch ends that are averaged."""

EXACT = {"compressor": "identity", "values": "float64"}

Data = BreastCancer | LibSVM


@dataclass(frozen=True, slots=True)
class Problem:
    """n samples of d features; smoothness: L0 of the unregularised loss; largest: max ||x_j||^2 / 4."""

    n: int
    d: int
    smoothness: float
    largest: float

    @property
    def l2(self) -> float:
        """lambda."""
        return self.smoothness / math.sqrt(self.n)

    def expected_smoothness(self, batch: int) -> float:
        """L_B."""
        n, low, high = self.n, self.smoothness + self.l2, self.largest + self.l2
        return n / (n - 1) * (1 - 1 / batch) * low + (n / batch - 1) / (n - 1) * high


@cache
def problem(data: Data) -> Problem:
    """The constants of a data set."""
    x = data.load(0).train.features
    n, d = x.shape
    largest = float((x * x).sum(dim=1).amax())
    return Problem(n, d, float(torch.linalg.eigvalsh(x.T @ x)[-1]) / (4 * n), largest / 4)


def breast_cancer() -> Data:
    """All 569 rows, standardised, with a bias: d = 31."""
    return BreastCancer(test_fraction=0.0)


def digits(folder: Path, name: str = "digits.txt") -> Data:
    """1797 images, digit >= 5 or not, grey levels as they are, with a bias: d = 65.

    kappa = sqrt(n) + 1 = 43 whatever is done to them. The published figures are met so; standardised, SGD ends five
    times higher.
    """
    return LibSVM(path=str(folder / name), standardise=False, bias=True)


def w8a(folder: Path, name: str) -> Data:
    """49749 rows as published, without a bias: d = 300. kappa = 224 whatever d, but IG's figures are met only so."""
    return LibSVM(path=str(folder / name), standardise=False, bias=False)


W8A = "w8a.gz"


def write_files(folder: Path, libsvm: Path | None) -> None:
    """Write the digits as LibSVM text, and every set sorted by label; w8a where there is one."""
    pixels, digit = load_digits(return_X_y=True)
    write(folder / "digits.txt", pixels, np.where(digit >= 5, 1, -1))
    write_by_label(folder / "digits.sorted.txt", pixels, np.where(digit >= 5, 1, -1))
    write_by_label(folder / "cancer.sorted.txt", *load_breast_cancer(return_X_y=True))
    if libsvm is not None and (libsvm / W8A).is_file():
        shutil.copy(libsvm / W8A, folder / W8A)
        write_by_label(folder / "w8a.sorted.txt", *load_svmlight_file(str(libsvm / W8A)))


def write(path: Path, features: Any, labels: Any) -> None:
    """LibSVM text, digit for digit."""
    dump_svmlight_file(features, labels, str(path), zero_based=False)


def write_by_label(path: Path, features: Any, labels: Any) -> None:
    """The same, the smaller label first."""
    order = np.argsort(labels, kind="stable")
    write(path, features[order], labels[order])


def protocol(data: Data, order: str, batch: int, epochs: int, step: float | None = None) -> Experiment:
    """One run; step: a constant step instead of the schedule."""
    found = problem(data)
    steps = epochs * math.ceil(found.n / batch)
    schedule: dict[str, Any] = {
        "rule": "harmonic",
        "mu": found.l2,
        "factor": 1 / 2 if order == "sgd" else 1 / 3,
        "hold": steps // 40,
    }
    return Experiment.of(
        algorithm="sgd",
        rounds=epochs,
        data={"source": data.__struct_config__.tag} | msgspec.structs.asdict(data),
        partition={"scheme": "iid", "clients": 1},
        participation={"scheme": "full"},
        task={"kind": "logistic", "l2": found.l2},
        local={
            "epochs": 1,
            "batch": batch,
            "order": ORDERS[order],
            "step": step or 1 / found.expected_smoothness(batch),
            "send": "difference",
        },
        rate=schedule if step is None else {"rule": "constant"},
        uplink=EXACT,
        downlink=EXACT,
        server={"step": 1.0},
        run={"precision": "float64", "evaluate_every": 1, "checkpoint_every": epochs},
    )


Key = tuple[str, int, int]
"""(data, batch, epochs)."""

TABLE: dict[Key, dict[str, float]] = {
    ("breast cancer", 8, 100): {"sgd": 6.8e-5, "rr": 1.7e-7, "so": 9.1e-7, "ig": 4.0e-7},
    ("breast cancer", 8, 250): {"sgd": 1.8e-5, "rr": 1.0e-8, "so": 2.9e-7, "ig": 6.9e-7},
    ("digits", 32, 250): {"sgd": 2.2e-5, "rr": 7.5e-7, "so": 4.7e-6, "ig": 6.7e-6},
    ("digits", 128, 250): {"sgd": 2.3e-5, "rr": 8.2e-7, "so": 1.6e-6, "ig": 5.4e-6},
    ("w8a", 512, 250): {"sgd": 3.1e-6, "rr": 3.1e-9, "so": 3.0e-8, "ig": 8.7e-6},
    ("breast cancer by label", 8, 100): {"ig": math.nan},
    ("breast cancer by label", 8, 250): {"ig": math.nan},
    ("digits by label", 32, 250): {"ig": math.nan},
    ("digits by label", 128, 250): {"ig": math.nan},
    ("w8a by label", 512, 250): {"ig": 1.5e-5},
}
"""F - F* of each order as published; nan where nobody has said. SGD does not see in which order a file is."""

RING = "rolled around the end of the file into the next pass; our batches end with the pass (rr_numpy: roll)"
MISSED: dict[tuple[Key, str], str] = {
    (("breast cancer", 8, 100), "sgd"): "three low seeds of ours (over forty: 5.0e-5, rr_numpy 5.4e-5)",
    (("breast cancer", 8, 100), "ig"): RING,
    (("digits", 32, 250), "sgd"): "three high seeds of ours (B = 128, over thirty: 4.3e-5, rr_numpy 4.7e-5)",
    (("digits", 128, 250), "sgd"): "three high seeds of ours (over thirty: 4.3e-5, rr_numpy 4.7e-5)",
    (("digits", 128, 250), "so"): "seeds vary from 1e-7 to 2e-5 (over thirty: 4.1e-6, rr_numpy 4.6e-6)",
    (("digits", 32, 250), "ig"): RING,
    (("digits", 128, 250), "ig"): RING,
    (("w8a", 512, 250), "rr"): "one seed: the largest of ten of rr_numpy, whose geometric mean is 6.5e-10",
}
"""Figures that fedsim does not meet, and why."""


def cells(folder: Path) -> Iterable[Cell]:
    """The rows of TABLE whose data is there; ``folder`` holds what ``write_files`` writes."""
    return list(keyed_cells(folder).values())


def keyed_cells(folder: Path) -> dict[tuple[Key, str], Cell]:
    """Cells by row and order."""
    sources = {
        "breast cancer": breast_cancer(),
        "breast cancer by label": LibSVM(path=str(folder / "cancer.sorted.txt")),
        "digits": digits(folder),
        "digits by label": digits(folder, "digits.sorted.txt"),
    }
    if (folder / W8A).exists():
        sources |= {"w8a": w8a(folder, W8A), "w8a by label": w8a(folder, "w8a.sorted.txt")}
    return {
        (key, order): cell(key, order, sources[key[0]], figure)
        for key, figures in TABLE.items()
        if key[0] in sources
        for order, figure in figures.items()
    }


def cell(key: Key, order: str, data: Data, figure: float) -> Cell:
    """One cell: within a factor 3 of the figure, on w8a sgd and ig within a factor 2."""
    name, batch, epochs = key
    level = -math.inf if math.isnan(figure) else round(math.log10(figure), 2)
    return Cell(
        "rr",
        f"{name}, {batch}, {epochs}",
        order,
        protocol(data, order, batch, epochs),
        level,
        math.inf if math.isnan(figure) else level,
        round(math.log10(2 if name.startswith("w8a") and order in ("sgd", "ig") else 3), 2),
        seeds=SEEDS if order != "ig" else SEEDS[:1],
        tail=LAST / epochs,
    )


def mean_excess(runs: Sequence[Measurement]) -> float:
    """log10 of the mean F - F* over the last epoch ends of all seeds."""
    return math.log10(float(np.mean([10**level for run in runs for level in run.excess[-LAST:]])))


@cache
def independent(name: str, folder: Path) -> rr_numpy.Rows:
    """The data of a row for ``rr_numpy``, which reads it by itself."""
    if name.endswith(" by label"):
        return independent(name.removesuffix(" by label"), folder).by_label()
    if name == "w8a":
        return rr_numpy.w8a(folder / W8A)
    return rr_numpy.breast_cancer() if name == "breast cancer" else rr_numpy.digits()


def independent_excess(
    folder: Path, key: Key, order: str, seeds: int | None = None, last: rr_numpy.Last = "short"
) -> float:
    """What ``mean_excess`` says of ``rr_numpy``: three seeds, ten where ours miss the figure."""
    seeds = seeds or (1 if order == "ig" else 10 if (key, order) in MISSED else 3)
    data = independent(key[0], folder)
    return math.log10(
        float(np.mean([rr_numpy.excess(data, order, *key[1:], seed, last, LAST) for seed in range(seeds)]))
    )
