"""The protocol of ``rr`` once more in numpy and scipy: nothing of fedsim, other random numbers, other ways to batch.

    orders    rr, so, ig    a permutation in every pass, one for all, none
              sgd           every sample of every step is an independent draw
    last      short         the last batch of a pass is short; all divide by n / ceil(n / b): every sample counts alike
              wrap          it is filled from the beginning of the pass, whose samples then count twice in it
              roll          the same, and the next pass goes on from there: batches of a ring

``short`` has the minimum of F; ``wrap`` minimises something else; ``roll`` does so in every pass, though not over many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, diags, issparse
from sklearn.datasets import load_breast_cancer, load_digits, load_svmlight_file

Array = npt.NDArray[np.float64]
Matrix = Array | csr_matrix
Last = Literal["short", "wrap", "roll"]


@dataclass(frozen=True, eq=False)
class Rows:
    """x: [n, d]. y: [n], -1 or 1. smoothness: L0. largest: max ||x_j||^2 / 4. l2: lambda. floor: F*."""

    x: Matrix
    y: Array
    smoothness: float
    largest: float
    l2: float
    floor: float

    def loss(self, w: Array) -> float:
        """F(w)."""
        return float(np.logaddexp(0, -self.y * (self.x @ w)).mean() + self.l2 / 2 * (w @ w))

    def by_label(self) -> Rows:
        """The same samples, the class -1 first."""
        order = np.argsort(self.y, kind="stable")
        return replace(self, x=self.x[order], y=self.y[order])


def rows(x: Matrix, y: Array) -> Rows:
    """The problem of the protocol, solved by Newton's method."""
    n, d = x.shape
    smoothness = float(np.linalg.eigvalsh(_dense(x.T @ x))[-1]) / (4 * n)
    largest = float((x.multiply(x) if issparse(x) else x * x).sum(axis=1).max()) / 4
    l2, w = smoothness / math.sqrt(n), np.zeros(d)
    for _ in range(20):
        chance = 1 / (1 + np.exp(y * (x @ w)))
        hessian = _dense(x.T @ (diags(chance * (1 - chance)) @ x)) / n + l2 * np.eye(d)
        w = w - np.linalg.solve(hessian, l2 * w - x.T @ (chance * y) / n)
    found = Rows(x, y, smoothness, largest, l2, 0.0)
    return replace(found, floor=found.loss(w))


def breast_cancer() -> Rows:
    """All 569 rows, standardised, with a bias."""
    x, y = load_breast_cancer(return_X_y=True)
    return rows(np.c_[np.ones(len(x)), (x - x.mean(axis=0)) / x.std(axis=0)], 2.0 * y - 1)


def digits() -> Rows:
    """Grey levels 0 to 16 as they are, with a bias; digit >= 5 or not."""
    x, y = load_digits(return_X_y=True)
    return rows(np.c_[np.ones(len(x)), x], np.where(y >= 5, 1.0, -1.0))


def w8a(path: Path) -> Rows:
    """49749 rows as published."""
    return rows(*load_svmlight_file(str(path), n_features=300))


def passes(order: str, n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The samples of each pass."""
    draw = np.random.default_rng(seed)
    once = draw.permutation(n)
    while True:
        match order:
            case "sgd":
                yield draw.integers(n, size=n)
            case "rr":
                yield draw.permutation(n)
            case "so":
                yield once
            case _:
                yield np.arange(n)


def descend(
    data: Rows,
    order: str,
    batch: int,
    epochs: int,
    walk: Iterable[npt.NDArray[np.int64]],
    last: Last = "short",
) -> tuple[Array, Array]:
    """(w, F - F* at the end of each epoch) along the passes of ``walk``; ``order`` decides the step sizes alone."""
    n, l2 = len(data.y), data.l2
    low, high = data.smoothness + l2, data.largest + l2
    longest = 1 / (n / (n - 1) * (1 - 1 / batch) * low + (n / batch - 1) / (n - 1) * high)
    steps = -(-n // batch)
    held, decay = epochs * steps // 40, l2 / (2 if order == "sgd" else 3)
    w, k, found = np.zeros(data.x.shape[1]), 0, []
    for epoch, samples in zip(range(epochs), walk, strict=False):
        if last != "short":
            begin = epoch * steps * batch if last == "roll" else 0
            samples = samples[(begin + np.arange(steps * batch)) % n]
        x, y, size = data.x[samples], data.y[samples], len(samples) / steps
        for begin in range(0, len(samples), batch):
            part, labels = x[begin : begin + batch], y[begin : begin + batch]
            slopes = -labels / (1 + np.exp(labels * (part @ w)))
            w = w - min(longest, 1 / (l2 + decay * max(0, k - held))) * (part.T @ slopes / size + l2 * w)
            k += 1
        found.append(data.loss(w) - data.floor)
    return w, np.array(found)


def excess(data: Rows, order: str, batch: int, epochs: int, seed: int, last: Last = "short", tail: int = 5) -> float:
    """F - F*, mean of the last ``tail`` epoch ends."""
    walk = passes(order, len(data.y), seed)
    return float(descend(data, order, batch, epochs, walk, last)[1][-tail:].mean())


def _dense(matrix: Any) -> Array:
    return np.asarray(matrix if isinstance(matrix, np.ndarray) else matrix.toarray())
