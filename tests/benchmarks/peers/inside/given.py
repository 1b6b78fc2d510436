"""What every peer's script is given, and what it hands back. Knows numpy alone."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Given:
    """A workload: FedAvg, one local epoch of plain SGD in stored order, weights n_k.

    features: float32[n, *shape], sorted by client; labels: int64[n]; offsets: int64[N + 1], client i holds the rows
    offsets[i] .. offsets[i + 1] - 1; cohorts: int64[rounds, k]; initial: float32[d], all parameters in the order of the
    modules, weights before biases; kind: "lr", "mlp" or "cnn"; step: of SGD; batch: rows of a step.
    """

    kind: str
    classes: int
    features: Floats
    labels: Ints
    offsets: Ints
    cohorts: Ints
    initial: Floats
    step: float
    batch: int

    @staticmethod
    def read(path: str) -> Given:
        with np.load(path) as stored:
            names = ("features", "labels", "offsets", "cohorts", "initial")
            arrays = {name: stored[name] for name in names}
            numbers = {name: stored[name].item() for name in ("kind", "classes", "step", "batch")}
        return Given(**arrays, **numbers)

    @property
    def rounds(self) -> int:
        return len(self.cohorts)

    def size(self, client: int) -> int:
        return int(self.offsets[client + 1] - self.offsets[client])

    def shard(self, client: int) -> slice:
        return slice(int(self.offsets[client]), int(self.offsets[client + 1]))

    def scale(self, client: int) -> float:
        """What a batch's sum of losses is multiplied by: steps of the epoch / n_k, so a short batch weighs less."""
        n = self.size(client)
        return -(-n // self.batch) / n


class Clock:
    """Seconds from one round's end to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def finish(path: str, clock: Clock, parameters: Floats, package: str, setting: str) -> None:
    """Save the final parameters, float32[d], and print the one line that is read."""
    np.save(path, np.asarray(parameters, dtype=np.float32))
    line = {"peer": f"{package} {version(package)}", "setting": setting, "seconds": clock.seconds}
    sys.stdout.flush()
    print("\n" + json.dumps(line), flush=True)
