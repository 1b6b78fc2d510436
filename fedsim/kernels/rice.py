"""Lengths of quantized messages, as ``fedsim.wire.coding`` writes them and without writing them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled

Ints = NDArray[np.int64]
Gaps = NDArray[np.int32]
Row = NDArray[np.int32]

REFUSED = -1
"""In place of a length: the row does not fit its layout, or its norms."""

_BLOCK = 32
_CODES = 15


@compiled
def _largest(levels: Row) -> int:
    """Largest magnitude; 0 of nothing."""
    low, high = np.int32(0), np.int32(0)
    for i in range(len(levels)):
        low, high = min(low, levels[i]), max(high, levels[i])
    return max(int(np.int64(high)), -int(np.int64(low)))  # int32 has no opposite of its least number


@compiled
def _gaps(levels: Row, gaps: Gaps) -> int:
    """Zeros before each nonzero; returns the number of nonzeros. gaps: as long as the row, scratch beyond them."""
    count, after = np.uint64(0), np.int32(0)
    for start in range(0, len(levels), _BLOCK):
        block = levels[start : start + _BLOCK]
        some = np.int32(0)
        for i in range(len(block)):
            some |= block[i]
        if some:
            for i in range(len(block)):
                # without a branch, which would be mispredicted: a gap is overwritten until its nonzero is there
                at, nonzero = np.int32(start + i), block[i] != 0
                gaps[count] = np.int32(at - after)
                count += np.uint64(nonzero)
                after = np.int32(at + 1) if nonzero else after
    return int(count)


@compiled
def _quotients(gaps: Gaps, b: int) -> int:
    """Sum of floor(gap / 2^b)."""
    total = 0
    for i in range(len(gaps)):
        total += gaps[i] >> b
    return total


@compiled
def _remainder_bits(gaps: Gaps) -> tuple[int, int]:
    """The best b, and its sum of quotients: the first b that the next does not beat, as the length is convex in b."""
    b, quotients = 0, _quotients(gaps, 0)
    while b < _CODES - 1:
        fewer = _quotients(gaps, b + 1)
        if quotients - fewer <= len(gaps):
            break
        b, quotients = b + 1, fewer
    return b, quotients


@compiled
def _fits(levels: Row, norms: NDArray[np.float32], bucket: int) -> bool:
    """Whether levels are zero where their norm is."""
    stray = 0
    for k in range(len(norms)):
        if norms[k] == 0:
            stray += _largest(levels[k * bucket : (k + 1) * bucket])
    return stray == 0


@compiled
def body_bytes(
    levels: NDArray[np.int32], norms: NDArray[np.float32], s: int, bucket: int, header: int, dense: int, out: Ints
) -> None:
    """Bytes of each row's body, or REFUSED.

    levels: int32[n, d]; norms: float32[n, buckets], checked; header: bits before the planes; dense: bits of a
    dense body. out: int64[n].
    """
    n, d = levels.shape
    gaps = np.empty(d, np.int32)
    for i in range(n):
        top = _largest(levels[i])
        if top > s or not _fits(levels[i], norms[i], bucket):
            out[i] = REFUSED
        elif not norms[i].any():
            out[i] = 0
        else:
            count = _gaps(levels[i], gaps)
            b, quotients = _remainder_bits(gaps[:count])
            width = 0
            while top - 1 >> width > 0:
                width += 1
            out[i] = (min(header + count * (2 + width + b) + quotients, dense) + 7) // 8
