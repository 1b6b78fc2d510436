"""What a round does with the rows of a whole cohort beyond compressing them; by kernels where there are, else by torch.

The torch lines are the definition; a kernel gives the same bits and makes none of their temporaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.compression import fused, sparse
from fedsim.compression.payload import Levels, Payload, Received, Sparse
from fedsim.compression.quantize import Quantize
from fedsim.flat import tree_sum
from fedsim.randomness import Stream

if TYPE_CHECKING:
    from fedsim.compression import Compressor


def compress_difference(
    compressor: Compressor, rows: Tensor, memory: Tensor, rate: float, noise: Stream, clients: Tensor
) -> tuple[Payload, Tensor]:
    """Payload of rows - memory, float[n, d] each, and the memory after a step of ``rate`` along what it decodes to."""
    if isinstance(compressor, Quantize) and fused.usable(rows):
        return compressor.quantize(rows, memory, rate, noise, clients)
    payload = compressor.compress(rows - memory, noise, clients)
    return payload, memory + rate * compressor.decompress(payload, memory.dtype)


def send(
    compressor: Compressor, rows: Tensor, memory: Tensor, rate: float, noise: Stream, clients: Tensor, threads: int
) -> Sparse | None:
    """``compress_difference`` from and into the rows of ``clients`` in memory, float[N, d], where that is quicker.

    Returns None, and nothing has happened, where it is not. threads: that may work at once.
    """
    return compressor.send(rows, memory, rate, noise, clients, threads) if isinstance(compressor, Quantize) else None


def weighted_sums(compressor: Compressor, payload: Received, weights: Tensor) -> Tensor:
    """Sums over n rows of weight >= 0 times decoded row, by ``tree_sum``. weights: float[m, n]; returns float[m, d].

    A zero has no sign, whether its terms were left out or vanished.
    """
    return _weighted_sums(compressor, payload, weights).add_(0.0)


def _weighted_sums(compressor: Compressor, payload: Received, weights: Tensor) -> Tensor:
    if isinstance(payload, Sparse):
        if len(payload.norms) and fused.usable(weights):
            return sparse.weighted_sums(payload, weights)
        payload = payload.dense()
    if isinstance(payload, Levels) and isinstance(compressor, Quantize):
        compressor.check(payload)
        if len(payload.levels) and fused.usable(weights) and fused.usable(payload.norms):
            return fused.weighted_sums(payload, weights)
    rows = compressor.decompress(payload, weights.dtype).to(weights.device)
    if len(rows) and fused.usable(rows) and fused.usable(weights):
        return fused.weighted_rows(rows, weights)
    return torch.stack([tree_sum(each[:, None] * rows, dim=0) for each in weights])
