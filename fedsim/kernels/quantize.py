"""s-quantization of whole rows in one call: norms, random numbers, levels and the memories' step, bit for bit as the
torch form in ``fedsim.compression.quantize`` and ``fedsim.algorithms.artemis``, which is their definition.

A row is worked on in portions that stay in the first-level cache together with their random words; beside them only the
sum of squares needs scratch, of half a bucket.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels import philox
from fedsim.kernels.compile import compiled

Rows = NDArray[np.floating[Any]]
Counts = NDArray[np.signedinteger[Any]]
Norms = NDArray[np.float32]


@compiled
def _sum_of_squares(bucket: Rows, length: int, scratch: NDArray[np.float64]) -> float:
    """As ``flat.tree_sum`` of the squares of a bucket that zeros fill up to ``length``. scratch: [length // 2 + 1]."""
    half, d = length // 2, len(bucket)
    if half == 0:
        return np.float64(bucket[0]) * np.float64(bucket[0])
    low, high = bucket[: min(half, d)], bucket[min(half, d) :]
    both = min(len(low), len(high))
    folded = scratch[:half]
    for i in range(both):
        x, y = np.float64(low[i]), np.float64(high[i])
        folded[i] = x * x + y * y
    for i in range(both, len(low)):
        x = np.float64(low[i])
        folded[i] = x * x
    for i in range(len(low), half):
        folded[i] = 0.0
    if length % 2 and d == length:
        x = np.float64(bucket[length - 1])
        folded[0] += x * x
    length = half
    while length > 1:
        half = length // 2
        low_part, high_part = scratch[:half], scratch[half : 2 * half]
        for i in range(half):
            low_part[i] += high_part[i]
        if length % 2:
            scratch[0] += scratch[length - 1]
        length = half
    return float(scratch[0])


@compiled
def _largest(bits: Counts) -> int:
    """Largest magnitude of a bucket, as bits: those of non-negative floats order as the floats do, NaN above all."""
    sign = np.iinfo(bits.dtype).max
    best = bits[0] & sign
    for i in range(len(bits)):
        best = max(best, bits[i] & sign)
    return int(best)


@compiled
def _round_up(exact: float) -> np.float32:
    """The smallest float32 that is at least ``exact``."""
    nearest = np.float32(exact)
    if np.float64(nearest) < exact:
        nearest = np.nextafter(nearest, np.float32(np.inf))
    return nearest


@compiled
def _norms(
    row: Rows, bits: Counts, bucket: int, linf: bool, peak: Rows, scratch: NDArray[np.float64], out: Norms
) -> bool:
    """One norm for each bucket of a row, rounded up; False where one is not finite.

    bits: the row as whole numbers. peak: scratch of one number.
    """
    d, finite = len(row), True
    for k in range(len(out)):
        start, stop = k * bucket, min(d, (k + 1) * bucket)
        exact = 0.0
        if linf or row.itemsize == 8:  # the square of a float32 is exact, so its root is not below it
            peak.view(bits.dtype)[0] = _largest(bits[start:stop])
            exact = np.float64(peak[0])
        if not linf:
            root = np.sqrt(_sum_of_squares(row[start:stop], bucket, scratch))
            exact = exact if exact > root else root
        out[k] = _round_up(exact)
        finite = finite and np.isfinite(out[k])
    return finite


@compiled
def _round(
    row: Rows, norm: np.floating[Any], words: NDArray[np.uint32], s: np.floating[Any], levels: NDArray[np.int32]
) -> None:
    """Levels of a piece of one bucket. Numbers on [0, 1) as ``randomness.Stream.uniform``."""
    kind = row.dtype.type
    shift, unit = (np.uint32(8), kind(2.0**-24)) if row.itemsize == 4 else (np.uint32(0), kind(2.0**-32))
    for i in range(len(row)):
        scaled = abs(row[i]) / norm * s
        low = np.int32(scaled)
        up = kind(np.uint32(words[i] >> shift)) * unit < scaled - kind(low)
        level = np.int32(low + np.int32(up))
        levels[i] = -level if row[i] < 0 else level


@compiled
def _learn(
    levels: NDArray[np.int32],
    norm: np.floating[Any],
    s: np.floating[Any],
    alpha: np.floating[Any],
    memory: Rows,
    after: Rows,
) -> None:
    """after = memory + alpha norm level / s, rounded after each operation."""
    kind = memory.dtype.type
    for i in range(len(levels)):
        after[i] = memory[i] + alpha * (norm * (kind(levels[i]) / s))


@compiled
def quantize(
    rows: Rows,
    memory: Rows,
    after: Rows,
    bits: Counts,
    clients: NDArray[np.int64],
    key: np.uint64,
    round: np.uint32,
    tag: np.uint32,
    s: np.floating[Any],
    alpha: np.floating[Any],
    bucket: int,
    linf: bool,
    levels: NDArray[np.int32],
    norms: Norms,
) -> bool:
    """Quantize rows, or rows - memory where there are memories; False where a norm is not finite.

    rows: float[n, d]. memory, after: float[n, d], or [0, d] without memory. bits: rows (with memory: after) as whole
    numbers of their size. clients: int64[n]; key, round, tag: of the stream. s, alpha: in the type of the rows.
    Written: after = memory + alpha times what was sent; levels[n, d]; norms[n, buckets].
    """
    n, d = rows.shape
    scratch = np.empty(bucket // 2 + 1, np.float64)
    words, peak, kind = np.empty(philox.PORTION, np.uint32), np.empty(1, rows.dtype), rows.dtype.type
    for i in range(n):
        row = rows[i]
        if len(memory):
            row = after[i]
            for j in range(d):
                row[j] = rows[i, j] - memory[i, j]
        if not _norms(row, bits[i], bucket, linf, peak, scratch, norms[i]):
            return False
        for start in range(0, d, philox.PORTION):
            stop = min(d, start + philox.PORTION)
            philox.fill(words[: -((start - stop) // 4) * 4], key, np.uint32(clients[i]), round, tag, start // 4)
            first = start
            while first < stop:
                k = first // bucket
                last = min(stop, (k + 1) * bucket)
                norm = kind(norms[i, k] if norms[i, k] > 0 else np.float32(1))
                piece = row[first:last]
                _round(piece, norm, words[first - start : last - start], s, levels[i, first:last])
                if len(memory):
                    _learn(levels[i, first:last], norm, s, alpha, memory[i, first:last], piece)
                first = last
    return True
