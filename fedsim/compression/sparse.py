"""Quantization of a cohort whose rows have few levels other than zero, by compiled kernels and in place.

Of a long row hardly any level is not zero, so a dense payload of a cohort, its new memories beside the old ones and
the passes over all of them cost more than the quantization itself. Here each row is read once, and only the memories
that change are written. Bit for bit what ``Quantize`` and ``cohort`` say.
"""

from __future__ import annotations

from functools import cache
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.compression.fused import WHOLE
from fedsim.compression.payload import LevelsLayout, Sparse
from fedsim.randomness import Stream

SHARE = 2**19
"""Coordinates that are worth a thread's start."""

Rows = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Found = tuple[bool, NDArray[np.int32], NDArray[np.int32]]


def pays(layout: LevelsLayout, linf: bool) -> bool:
    """Whether few levels are expected to be other than zero: at most s (s + sqrt(b)) of b (QSGD, lemma 3.1)."""
    return not linf and 16 * _expected(layout) <= layout.d


@cache
def _expected(layout: LevelsLayout) -> float:
    s = layout.levels
    return float(layout.buckets * s * (s + layout.bucket**0.5))


def quantize(
    rows: Tensor,
    memory: Tensor,
    rate: float,
    layout: LevelsLayout,
    linf: bool,
    noise: Stream,
    clients: Tensor,
    threads: int,
) -> Sparse | None:
    """Quantize rows - memory[clients], and step those memories where they lie. None where a norm is not finite.

    rows: float[n, d]; memory: float[N, d], contiguous; clients: int64[n], all different. threads: that may work at
    once, each for some of the rows, which changes no bit. When None is returned, some memories have been stepped.
    """
    n, d = rows.shape
    numbers, memories = np.ascontiguousarray(rows.detach().numpy()), memory.numpy()
    ids = np.ascontiguousarray(clients.numpy(), np.int64)
    _check(numbers, memories, ids, layout.d)
    norms, count = np.empty((n, layout.buckets), np.float32), max(1, min(threads, n * d // SHARE))
    if count == 1:
        first = np.empty(n + 1, np.int64)
        ended, *alone = _quantized(numbers, memories, rate, layout, linf, noise, ids, first, norms)
        return Sparse(layout, *map(torch.from_numpy, (first, *alone, norms))) if ended else None
    found: dict[int, Found] = {}
    ends = [n * k // count for k in range(count + 1)]
    starts = [np.empty(ends[k + 1] - ends[k] + 1, np.int64) for k in range(count)]

    def work(k: int) -> None:
        some = slice(ends[k], ends[k + 1])
        found[k] = _quantized(numbers[some], memories, rate, layout, linf, noise, ids[some], starts[k], norms[some])

    others = [Thread(target=work, args=(k,)) for k in range(1, count)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    finite, places, levels = zip(*(found[k] for k in range(count)), strict=True)
    if not all(finite):
        return None
    for k in range(1, count):
        starts[k] += starts[k - 1][-1]
    whole = np.concatenate([starts[0][:1], *(each[1:] for each in starts)])
    parts = whole, np.concatenate(places), np.concatenate(levels), norms
    return Sparse(layout, *map(torch.from_numpy, parts))


def _check(rows: Rows, memory: Rows, clients: Ints, d: int) -> None:
    """Kernels check no bounds."""
    fit = rows.shape[1] == d and memory.ndim == 2 and memory.shape[1] == d and memory.dtype == rows.dtype
    if not fit or clients.shape != (len(rows),) or not memory.flags.c_contiguous:
        shapes = [f"{part.dtype}{list(part.shape)}" for part in (rows, memory, clients)]
        raise ValueError(f"rows, memories and clients are {shapes}, expected [n, {d}], contiguous [N, {d}] and [n]")
    if len(clients) and int(clients.view(np.uint64).max()) >= len(memory):
        raise ValueError(f"clients are {clients.min()} to {clients.max()}, but memories are those of {len(memory)}")


def _quantized(
    rows: Rows,
    memory: Rows,
    rate: float,
    layout: LevelsLayout,
    linf: bool,
    noise: Stream,
    clients: Ints,
    starts: Ints,
    norms: NDArray[np.float32],
) -> Found:
    from fedsim.kernels import philox
    from fedsim.kernels import sparse as kernel

    kind, whole, work = rows.dtype.type, WHOLE[rows.dtype.itemsize], np.empty(layout.d, rows.dtype)
    found: Found = kernel.quantize(
        rows,
        memory,
        memory.view(whole),
        clients,
        work,
        work.view(whole),
        *noise.address,
        kind(layout.levels),
        kind(rate),
        layout.bucket,
        linf,
        int(len(rows) * min(_expected(layout), layout.d)) + philox.PORTION,
        starts,
        norms,
    )
    return found


def weighted_sums(payload: Sparse, weights: Tensor) -> Tensor:
    """Sums over the rows of a payload, n >= 1, of weight times what the row decodes to. float[m, n] -> float[m, d].

    weights: not negative.
    """
    from fedsim.kernels import sparse as kernel

    layout, factors = payload.layout, np.ascontiguousarray(weights.numpy())
    if factors.shape[1] != len(payload.norms):  # kernels check no bounds
        raise ValueError(f"{factors.shape[1]} weights do not fit {len(payload.norms)} rows")
    sums = np.empty((len(factors), layout.d), factors.dtype)
    kernel.weighted_sums(
        payload.starts.numpy(),
        payload.places.numpy(),
        payload.levels.numpy(),
        payload.norms.numpy(),
        layout.bucket,
        factors.dtype.type(layout.levels),
        factors,
        sums,
    )
    return torch.from_numpy(sums)
