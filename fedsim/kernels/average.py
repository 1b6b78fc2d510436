"""Weighted sums over the clients of what their quantized rows decode to, without making the decoded rows.

Bit for bit as ``flat.tree_sum`` over dimension 0 of weight times ``Quantize.decompress``. Columns do not meet, so they
are worked on by portions for which the first halving of all clients stays in the second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled

Rows = NDArray[np.floating[Any]]

_SCRATCH = 2**16


@compiled
def _decode(
    levels: NDArray[np.int32], norms: NDArray[np.float32], bucket: int, start: int, s: np.floating[Any], out: Rows
) -> None:
    """norm level / s of a row's coordinates from ``start`` on. levels, out: of those coordinates; norms: of the row."""
    j, kind = 0, out.dtype.type
    while j < len(out):
        k = (start + j) // bucket
        stop = min(len(out), (k + 1) * bucket - start)
        norm, part, decoded = kind(norms[k]), levels[j:stop], out[j:stop]
        for i in range(len(part)):
            decoded[i] = norm * (kind(part[i]) / s)
        j = stop


@compiled
def decode(levels: NDArray[np.int32], norms: NDArray[np.float32], bucket: int, s: np.floating[Any], out: Rows) -> None:
    """What rows decode to. levels: int32[n, d]; norms: float32[n, buckets]; out: float[n, d]."""
    for i in range(len(out)):
        _decode(levels[i], norms[i], bucket, 0, s, out[i])


@compiled
def _halve(folded: Rows, out: Rows) -> None:
    """Sum of the rows, overwritten, in the first columns: float[k, >= size] -> float[size]."""
    length, size = len(folded), len(out)
    while length > 1:
        middle = length // 2
        for k in range(middle):
            row, added = folded[k], folded[middle + k]
            for j in range(size):
                row[j] += added[j]
        if length % 2:
            row, added = folded[0], folded[length - 1]
            for j in range(size):
                row[j] += added[j]
        length = middle
    for j in range(size):
        out[j] = folded[0, j]


@compiled
def weighted_sums(
    levels: NDArray[np.int32],
    norms: NDArray[np.float32],
    bucket: int,
    s: np.floating[Any],
    weights: Rows,
    out: Rows,
) -> None:
    """levels: int32[n, d], n >= 1; norms: float32[n, buckets]; weights: float[m, n]; out: float[m, d]."""
    (n, d), sums = levels.shape, len(weights)
    half = max(n // 2, 1)
    width = min(d, max(16, _SCRATCH // (half * sums)))
    folded = np.empty((sums, half, width), out.dtype)
    one, other = np.empty(width, out.dtype), np.empty(width, out.dtype)
    for start in range(0, d, width):
        stop = min(d, start + width)
        size = stop - start
        for k in range(half):
            _decode(levels[k, start:stop], norms[k], bucket, start, s, one[:size])
            if n > 1:
                _decode(levels[half + k, start:stop], norms[half + k], bucket, start, s, other[:size])
            for m in range(sums):
                row, first = folded[m, k], weights[m, k]
                if n == 1:
                    for j in range(size):
                        row[j] = first * one[j]
                else:
                    second = weights[m, half + k]
                    for j in range(size):
                        row[j] = first * one[j] + second * other[j]
        if n > 1 and n % 2:
            _decode(levels[n - 1, start:stop], norms[n - 1], bucket, start, s, one[:size])
            for m in range(sums):
                row, first = folded[m, 0], weights[m, n - 1]
                for j in range(size):
                    row[j] += first * one[j]
        for m in range(sums):
            _halve(folded[m], out[m, start:stop])


@compiled
def weighted_rows(rows: Rows, weights: Rows, out: Rows) -> None:
    """As ``weighted_sums`` of rows that are numbers. rows: float[n, d], n >= 1; weights: float[m, n]; out: [m, d]."""
    n, d = rows.shape
    half = max(n // 2, 1)
    width = min(d, max(16, _SCRATCH // half))
    folded = np.empty((half, width), out.dtype)
    for start in range(0, d, width):
        stop = min(d, start + width)
        for m in range(len(weights)):
            for k in range(half):
                row, one, first = folded[k], rows[k, start:stop], weights[m, k]
                if n == 1:
                    for j in range(len(one)):
                        row[j] = first * one[j]
                else:
                    other, second = rows[half + k, start:stop], weights[m, half + k]
                    for j in range(len(one)):
                        row[j] = first * one[j] + second * other[j]
            if n > 1 and n % 2:
                row, one, first = folded[0], rows[n - 1, start:stop], weights[m, n - 1]
                for j in range(len(one)):
                    row[j] += first * one[j]
            _halve(folded, out[m, start:stop])
