"""Quantization by compiled kernels: what ``Quantize`` says, bit for bit, in one call.

Only for tensors that ``usable`` accepts. Nothing of the size of the rows is made but what is returned.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import kernels
from fedsim.compression.payload import Levels, LevelsLayout
from fedsim.randomness import Stream

WHOLE = {4: np.int32, 8: np.int64}
"""Whole numbers of as many bytes as a float."""


def usable(rows: Tensor) -> bool:
    """Whether there are kernels for these numbers: float32 or float64, on the CPU, with numba installed."""
    return rows.dtype in (torch.float32, torch.float64) and kernels.available(rows)


def quantize(
    rows: Tensor, memory: Tensor | None, rate: float, layout: LevelsLayout, linf: bool, noise: Stream, clients: Tensor
) -> tuple[Levels | None, Tensor]:
    """Quantize rows - memory, float[n, d] each, and step the memory by ``rate`` times what the receiver decodes.

    Returns (payload, new memory); the payload is None where a norm is not finite in float32. Without a memory the rows
    themselves are quantized and no memory comes back (float[0, d]).
    """
    from fedsim.kernels import quantize as kernel

    n, d = rows.shape
    before = rows if memory is None else memory
    if d != layout.d or before.shape != rows.shape or clients.shape[0] != n:  # kernels check no bounds
        shapes = [list(part.shape) for part in (rows, before, clients)]
        raise ValueError(f"rows, memory and clients have shapes {shapes}, expected [n, {layout.d}] twice and [n]")
    numbers = np.ascontiguousarray(rows.detach().numpy())
    kind = numbers.dtype.type
    old = np.empty((0, d), kind) if memory is None else np.ascontiguousarray(memory.numpy())
    after = np.empty_like(old)
    levels, norms = np.empty((n, d), np.int32), np.empty((n, layout.buckets), np.float32)
    finite = kernel.quantize(
        numbers,
        old,
        after,
        (numbers if memory is None else after).view(WHOLE[rows.element_size()]),
        np.ascontiguousarray(clients.numpy(), np.int64),
        *noise.address,
        kind(layout.levels),
        kind(rate),
        layout.bucket,
        linf,
        levels,
        norms,
    )
    payload = Levels(layout, torch.from_numpy(levels), torch.from_numpy(norms)) if finite else None
    return payload, torch.from_numpy(after)


def decode(payload: Levels, dtype: torch.dtype) -> Tensor:
    """What the rows of a payload decode to, dtype[n, d]: float32 or float64."""
    from fedsim.kernels import average as kernel

    levels, norms = _parts(payload, len(payload.levels))
    rows = np.empty(levels.shape, np.float64 if dtype == torch.float64 else np.float32)
    kernel.decode(levels, norms, payload.layout.bucket, rows.dtype.type(payload.layout.levels), rows)
    return torch.from_numpy(rows)


def _parts(payload: Levels, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(levels, norms) of n rows. Kernels check no bounds."""
    layout, levels, norms = payload.layout, payload.levels.detach().numpy(), payload.norms.detach().numpy()
    fit = levels.shape == (n, layout.d) and norms.shape == (n, layout.buckets)
    if not fit or levels.dtype != np.int32 or norms.dtype != np.float32:
        found = [f"{part.dtype}{list(part.shape)}" for part in (levels, norms)]
        raise ValueError(f"levels and norms are {found}, which do not fit {n} rows of {layout}")
    return np.ascontiguousarray(levels), np.ascontiguousarray(norms)


def weighted_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """Sums over n >= 1 rows, float[n, d], of weight times row: float[m, n] -> float[m, d]."""
    from fedsim.kernels import average as kernel

    numbers, factors = np.ascontiguousarray(rows.numpy()), np.ascontiguousarray(weights.numpy())
    if len(numbers) != factors.shape[1] or numbers.dtype != factors.dtype:  # kernels check no bounds
        raise ValueError(f"rows are {rows.dtype}{list(rows.shape)}, which do not fit weights {list(weights.shape)}")
    sums = np.empty((len(factors), numbers.shape[1]), factors.dtype)
    kernel.weighted_rows(numbers, factors, sums)
    return torch.from_numpy(sums)


def weighted_sums(payload: Levels, weights: Tensor) -> Tensor:
    """Sums over the rows of a payload, n >= 1, of weight times what the row decodes to. float[m, n] -> float[m, d]."""
    from fedsim.kernels import average as kernel

    layout = payload.layout
    levels, norms = _parts(payload, weights.shape[1])
    factors = np.ascontiguousarray(weights.numpy())
    sums = np.empty((len(factors), layout.d), factors.dtype)
    kernel.weighted_sums(levels, norms, layout.bucket, factors.dtype.type(layout.levels), factors, sums)
    return torch.from_numpy(sums)
