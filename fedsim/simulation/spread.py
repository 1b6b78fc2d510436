"""How far the clients' directions are from each other and from their memories, where all of them are in one process.

    drift             mean over the cohort of ||g_i - gbar||, gbar = the cohort's mean: what heterogeneity and the noise
                      of batches come to
    memory_distance   mean over the cohort of ||g_i - h_i||: what is left to compress once the memory is taken off

Both in the unit of a gradient, before the round's upload. They cost a pass over the rows, in rounds that are evaluated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.simulation.rows import Rows

MEASURES = ("drift", "memory_distance")
"""Keys of metrics.jsonl, of simulated runs."""

TOGETHER = 2**22
"""Coordinates that are looked at together, so that what is computed from them stays small."""


def spread(directions: Tensor, memory: Rows | None, clients: Tensor) -> dict[str, float]:
    """Both measures of a cohort; without memories the first. directions: float[n, d], n > 0; clients: int64[n]."""
    n, d = directions.shape
    mean = directions.mean(dim=0)
    drift = distance = 0.0
    step = max(TOGETHER // d, 1)
    for start in range(0, n, step):
        rows = directions[start : start + step]
        drift += float(torch.linalg.vector_norm(rows - mean, dim=1).sum())
        if memory is not None:
            left = rows - memory.take(clients[start : start + step])
            distance += float(torch.linalg.vector_norm(left, dim=1).sum())
    found = {"drift": drift / n} | ({} if memory is None else {"memory_distance": distance / n})
    return {name: value for name, value in found.items() if math.isfinite(value)}
