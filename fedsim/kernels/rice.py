"""Lengths of quantized messages, as ``fedsim.wire.coding`` writes them and without writing them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels import entropy
from fedsim.kernels.compile import compiled

Ints = NDArray[np.int64]
Gaps = NDArray[np.int32]
Row = NDArray[np.int32]

_BLOCK = 64
_MANY = 16
"""Nonzeros in a block of 64 from which it costs less to look at all of it."""

DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""All 64 six-bit words follow in its bits, so that its product with 2^i begins with a word that tells i."""

PLACES = np.zeros(64, np.uint8)
PLACES[[(int(DE_BRUIJN) << i) % 2**64 >> 58 for i in range(64)]] = np.arange(64)
_CODES = 15


@compiled
def largest(levels: Row) -> int:
    """Largest magnitude; 0 of nothing."""
    low, high = np.int32(0), np.int32(0)
    for i in range(len(levels)):
        low, high = min(low, levels[i]), max(high, levels[i])
    return max(int(np.int64(high)), -int(np.int64(low)))  # int32 has no opposite of its least number


@compiled
def gaps_of(levels: Row, gaps: Gaps) -> int:
    """Zeros before each nonzero; returns the number of nonzeros. gaps: as long as the row, scratch beyond them."""
    count, after, one = np.uint64(0), np.int32(0), np.uint64(1)
    for start in range(0, len(levels), _BLOCK):
        block = levels[start : start + _BLOCK]
        mask, filled = np.uint64(0), np.uint64(0)
        for i in range(len(block)):
            nonzero = np.uint64(block[i] != 0)
            mask |= nonzero << np.uint64(i)
            filled += nonzero
        if filled > _MANY:
            for i in range(len(block)):
                # without a branch, which would be mispredicted: a gap is overwritten until its nonzero is there
                at, is_nonzero = np.int32(start + i), block[i] != 0
                gaps[count] = np.int32(at - after)
                count += np.uint64(is_nonzero)
                after = np.int32(at + 1) if is_nonzero else after
        else:
            for _ in range(filled):
                low = mask & (~mask + one)
                at = np.int32(start + np.int64(PLACES[(low * DE_BRUIJN) >> np.uint64(58)]))
                gaps[count] = np.int32(at - after)
                count += one
                after = np.int32(at + 1)
                mask ^= low
    return int(count)


@compiled
def _quotients(gaps: Gaps, b: int) -> int:
    """Sum of floor(gap / 2^b)."""
    total = 0
    for i in range(len(gaps)):
        total += gaps[i] >> b
    return total


@compiled
def remainder_bits(gaps: Gaps) -> tuple[int, int]:
    """The best b, and its sum of quotients: the first b that the next does not beat, as the length is convex in b."""
    b, quotients = 0, _quotients(gaps, 0)
    while b < _CODES - 1:
        fewer = _quotients(gaps, b + 1)
        if quotients - fewer <= len(gaps):
            break
        b, quotients = b + 1, fewer
    return b, quotients


@compiled
def fits(levels: Row, norms: NDArray[np.float32], bucket: int) -> bool:
    """Whether levels are zero where their norm is."""
    stray = 0
    for k in range(len(norms)):
        if norms[k] == 0:
            stray += largest(levels[k * bucket : (k + 1) * bucket])
    return stray == 0


@compiled
def _body(gaps: Gaps, top: int, header: int, dense: int) -> int:
    """Bits of the shorter of the sparse and the dense body. top: the largest magnitude."""
    b, quotients = remainder_bits(gaps)
    width = 0
    while top - 1 >> width > 0:
        width += 1
    return min(header + len(gaps) * (2 + width + b) + quotients, dense)


@compiled
def _tried(counts: Ints, top: int, nonzeros: int, d: int, bits: int) -> bool:
    """Whether the entropy code is tried against a body of so many bits. counts: of the nonzero levels; zero after."""
    s = len(counts) >> 1
    counts[s] = d - nonzeros
    return 4 + entropy.bits(counts, s - top, s + top) < bits


@compiled
def message_bytes(
    levels: NDArray[np.int32],
    norms: NDArray[np.float32],
    s: int,
    bucket: int,
    header: int,
    dense: int,
    out: Ints,
    tried: NDArray[np.bool_],
) -> bool:
    """Bytes of each row's message but for the entropy code, and whether that is to be tried.

    False if a row does not fit its norms or s, or a norm is not finite from +0.0. levels: int32[n, d]; norms:
    float32[n, buckets]; header: bits before the planes; dense: bits of a dense body. out: int64[n]; tried: bool[n].
    """
    n, d = levels.shape
    gaps, counts = np.empty(d, np.int32), np.zeros(2 * s + 1, np.int64)
    for i in range(n):
        top, finite, some = largest(levels[i]), True, False
        for norm in norms[i]:
            finite &= (0 <= norm < np.inf) and not np.signbit(norm)
            some |= norm > 0
        if top > s or not finite or not fits(levels[i], norms[i], bucket):
            return False
        out[i], tried[i] = 4 * len(norms[i]), False
        if some:
            nonzeros, place = gaps_of(levels[i], gaps), np.int64(0)
            bits = _body(gaps[:nonzeros], top, header, dense)
            for k in range(nonzeros):
                place += gaps[k]
                counts[levels[i, place] + s] += 1
                place += 1
            out[i] += (bits + 7) // 8
            tried[i] = _tried(counts, top, nonzeros, d, bits)
    return True


@compiled
def sparse_bytes(
    starts: Ints,
    places: Gaps,
    levels: Row,
    norms: NDArray[np.float32],
    s: int,
    d: int,
    header: int,
    dense: int,
    out: Ints,
    tried: NDArray[np.bool_],
) -> None:
    """As ``message_bytes``, of rows without their zeros, which fit. starts: int64[n + 1]; places, levels: int32[K]."""
    gaps, counts = np.empty(len(places), np.int32), np.zeros(2 * s + 1, np.int64)
    for i in range(len(norms)):
        first, last = starts[i], starts[i + 1]
        after, some = np.int32(0), False
        for norm in norms[i]:
            some |= norm > 0
        out[i], tried[i] = 4 * len(norms[i]), False
        if some:
            for k in range(first, last):
                gaps[k] = places[k] - after
                after = np.int32(places[k] + 1)
                counts[levels[k] + s] += 1
            top = largest(levels[first:last])
            bits = _body(gaps[first:last], top, header, dense)
            out[i] += (bits + 7) // 8
            tried[i] = _tried(counts, top, last - first, d, bits)
