"""Random reshuffling beside SGD, shuffle-once and the order of the file, by the protocol of the RR paper.

A federation of one client that sends the difference of the models after one epoch, uncompressed, to a server with step
1 is a single machine. The protocol, for (1/n) sum ln(1 + exp(-y_j <x_j, w>)) + lambda/2 ||w||^2 from w = 0:

    lambda = L0 / sqrt(n), so kappa = sqrt(n) + 1          L0 = largest eigenvalue of A'A / (4 n)
    gamma_k = min(1 / L_B, 1 / (mu + c max(0, k - K / 40)))      step k of K, mu = lambda
    c = mu / 3 with passes, mu / 2 for SGD
    L_B = n / (n - 1) (1 - 1 / B) L + (n / B - 1) / (n - 1) L_max      expected smoothness of a batch of B
    L = L0 + lambda,   L_max = max ||x_j||^2 / 4 + lambda

Figures: F - F* at the ends of the last five epochs, measured once by an implementation in numpy that shares no code
with this one: the geometric mean over eight seeds (w8a: sgd and so over three), which vary by a factor 2 in either
direction and more for rr on w8a (3.1e-9 to 3.2e-10). As here, and unlike the paper's code, the last batch of a pass is
short. Its other choice, to fill it from the start of the permutation, gives shuffle-once another objective.

Source of the protocol: Mishchenko, Khaled, Richtárik, "Random Reshuffling: Simple Analysis with Vast Improvements",
NeurIPS 2020, section 5.
"""

from __future__ import annotations

import gzip
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from sklearn.datasets import dump_svmlight_file, load_digits

from fedsim import Experiment
from fedsim.data.sources import BreastCancer, LibSVM
from tests.replication.figures import SEEDS, Cell

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


def digits(folder: Path) -> Data:
    """1797 images, digit >= 5 or not, standardised, with a bias: d = 65."""
    return LibSVM(path=str(folder / DIGITS))


def w8a(folder: Path, name: str) -> Data:
    """49749 rows as published, without a bias: d = 300. kappa = 224 whatever d, but IG's figures are met only so."""
    return LibSVM(path=str(folder / name), standardise=False, bias=False)


DIGITS, DIGITS_SORTED, W8A, W8A_SORTED = "digits.txt", "digits.sorted.txt", "w8a.gz", "w8a.sorted.txt"


def write_files(folder: Path, libsvm: Path | None) -> None:
    """Write the digits as LibSVM text, and sorted by label; the same with w8a where there is one."""
    pixels, digit = load_digits(return_X_y=True)
    labels = np.where(digit >= 5, 1, -1)
    by_label = np.argsort(labels, kind="stable")
    dump_svmlight_file(pixels, labels, str(folder / DIGITS), zero_based=False)
    dump_svmlight_file(pixels[by_label], labels[by_label], str(folder / DIGITS_SORTED), zero_based=False)
    if libsvm is not None and (libsvm / W8A).is_file():
        shutil.copy(libsvm / W8A, folder / W8A)
        lines = gzip.decompress((folder / W8A).read_bytes()).decode().splitlines(keepends=True)
        (folder / W8A_SORTED).write_text("".join(sorted(lines, key=lambda line: float(line.split(maxsplit=1)[0]))))


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


TABLE: dict[tuple[str, int, int], dict[str, float]] = {
    ("breast cancer", 8, 100): {"sgd": 4.5e-5, "rr": 1.3e-7, "so": 1.4e-6, "ig": 4.15e-6},
    ("breast cancer", 8, 250): {"sgd": 1.25e-5, "rr": 1.04e-8, "so": 2.15e-7, "ig": 6.47e-7},
    ("digits", 32, 250): {"sgd": 1.1e-4, "rr": 4.0e-7, "so": 5.0e-6, "ig": 7.53e-6},
    ("digits", 128, 250): {"sgd": 1.1e-4, "rr": 4.0e-7, "so": 5.0e-6, "ig": 6.97e-6},
    ("w8a", 512, 250): {"sgd": 3.1e-6, "rr": 7.5e-10, "so": 3.0e-8, "ig": 8.7e-6},
    ("w8a by label", 512, 250): {"ig": 1.5e-5},
}
"""F - F* of each order: (data, batch, epochs). ig draws nothing, so it has to agree in two digits."""


def cells(folder: Path) -> Iterable[Cell]:
    """The rows of TABLE whose data is there; ``folder`` holds what ``write_files`` writes."""
    sources = {"breast cancer": breast_cancer(), "digits": digits(folder)}
    if (folder / W8A).exists():
        sources |= {"w8a": w8a(folder, W8A), "w8a by label": w8a(folder, W8A_SORTED)}
    for (name, batch, epochs), figures in TABLE.items():
        if name not in sources:
            continue
        for order, figure in figures.items():
            level = round(math.log10(figure), 2)
            tolerance = 0.01 if order == "ig" else math.log10(2 if (name, order) == ("w8a", "sgd") else 3)
            yield Cell(
                "rr",
                f"{name}, {batch}, {epochs}",
                order,
                protocol(sources[name], order, batch, epochs),
                level,
                level,
                round(tolerance, 2),
                seeds=SEEDS if order != "ig" else SEEDS[:1],
                tail=LAST / epochs,
            )
