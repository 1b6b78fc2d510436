"""The arithmetic code of rows of levels, as ``fedsim.wire.arithmetic`` says: its lengths, its bytes, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels import entropy
from fedsim.kernels.compile import compiled

Ints = NDArray[np.int64]
Row = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Norms = NDArray[np.float32]
Shares = tuple[Ints, Ints, Ints]
"""heads, zeros and magnitudes of ``fedsim.wire.model.Tables``."""
Costs = tuple[Ints, Ints, Ints, Ints]
"""Its costs: of odds, zeros, nonzeros, magnitudes."""

_BLOCK = 16
_SHIFT, _BYTE = np.uint64(24), np.uint64(8)
_LEAST, _TOP = np.uint64(2**56), np.uint64(56)
_WHOLE = np.uint64(2**64 - 2**56)
_SHAPE = np.uint64(19)


@compiled
def largest(levels: Row) -> int:
    """Largest magnitude; 0 of nothing."""
    low, high = np.int32(0), np.int32(0)
    for i in range(len(levels)):
        low, high = min(low, levels[i]), max(high, levels[i])
    return max(int(np.int64(high)), -int(np.int64(low)))  # int32 has no opposite of its least number


@compiled
def _fits(levels: Row, norms: Norms, bucket: int) -> bool:
    """Whether levels are zero where their norm is."""
    stray = 0
    for k in range(len(norms)):
        if norms[k] == 0:
            stray += largest(levels[k * bucket : (k + 1) * bucket])
    return stray == 0


@compiled
def _count(levels: Row, top: int, counts: Ints) -> None:
    """Add the nonzero levels to counts, int64[2 s + 1]. top: their largest magnitude."""
    s = len(counts) >> 1
    if top == 1:
        some, sums = np.int64(0), np.int64(0)
        for i in range(len(levels)):
            some += np.int64(levels[i] != 0)
            sums += np.int64(levels[i])
        counts[s + 1] += (some + sums) // 2
        counts[s - 1] += (some - sums) // 2
        return
    for start in range(0, len(levels), _BLOCK):
        block, any = levels[start : start + _BLOCK], np.int32(0)
        for i in range(len(block)):
            any |= block[i]
        if any:
            for i in range(len(block)):
                counts[block[i] + s] += 1
    counts[s] = 0


@compiled
def _least(first: Ints, second: Ints, third: Ints, zeros: int, nonzeros: int) -> tuple[int, int]:
    """The first least of first + zeros second + nonzeros third, and where."""
    at, least = 0, first[0] + zeros * second[0] + nonzeros * third[0]
    for j in range(1, len(first)):
        costs = first[j] + zeros * second[j] + nonzeros * third[j]
        if costs < least:
            at, least = j, costs
    return at, int(least)


@compiled
def _octets(counts: Ints, top: int, d: int, start: int, shape_cost: int, costs: Costs) -> tuple[int, int, int]:
    """Odds, shape and bytes of a row of so many nonzeros of each level; counts become those of all levels."""
    s, nonzeros = len(counts) >> 1, np.int64(0)
    for m in range(1, top + 1):
        nonzeros += counts[s + m] + counts[s - m]
    counts[s] = d - nonzeros
    odds, units = _least(costs[0], costs[1], costs[2], int(d - nonzeros), int(nonzeros))
    shape = 0
    if s > 1:
        least = np.int64(2**62)
        for k in range(len(costs[3])):
            own, sums = costs[3][k], np.int64(0)
            for m in range(1, top + 1):
                sums += own[m - 1] * (counts[s + m] + counts[s - m])
            if sums < least:
                shape, least = k, sums
        units += shape_cost + int(least)
    return odds, shape, int((units + start + 2**27 - 1) >> 27)


@compiled
def lengths(
    levels: NDArray[np.int32],
    norms: NDArray[np.float32],
    s: int,
    bucket: int,
    fixed: tuple[int, int, int],
    costs: Costs,
    plans: NDArray[np.int64],
    tables: NDArray[np.bool_],
) -> bool:
    """Odds, shape and bytes of each row's body, int64[n, 3], and whether the entropy code is to be taken, bool[n].

    False if a row does not fit its norms or s, or a norm is not finite from +0.0. levels: int32[n, d]; norms:
    float32[n, buckets]; fixed: costs of beginning and of naming a shape, and bits by which a table has to be
    shorter. A row of norm zero has no bytes.
    """
    (n, d), margin = levels.shape, fixed[2]
    counts = np.zeros(2 * s + 1, np.int64)
    for i in range(n):
        top, finite, some = largest(levels[i]), True, False
        for norm in norms[i]:
            finite &= (0 <= norm < np.inf) and not np.signbit(norm)
            some |= norm > 0
        if top > s or not finite or not _fits(levels[i], norms[i], bucket):
            return False
        plans[i], tables[i] = 0, False
        if some:
            _count(levels[i], top, counts)
            plans[i, 0], plans[i, 1], plans[i, 2] = _octets(counts, top, d, fixed[0], fixed[1], costs)
            tables[i] = entropy.bits(counts, s - top, s + top) < 8 * plans[i, 2] - margin
    return True


@compiled
def sparse_lengths(
    starts: Ints,
    levels: Row,
    norms: NDArray[np.float32],
    s: int,
    d: int,
    fixed: tuple[int, int, int],
    costs: Costs,
    plans: NDArray[np.int64],
    tables: NDArray[np.bool_],
) -> None:
    """As ``lengths``, of rows without their zeros, which fit. starts: int64[n + 1]; levels: int32[K]."""
    counts, margin = np.zeros(2 * s + 1, np.int64), fixed[2]
    for i in range(len(norms)):
        own, some = levels[starts[i] : starts[i + 1]], False
        for norm in norms[i]:
            some |= norm > 0
        plans[i], tables[i] = 0, False
        if some:
            top = largest(own)
            for level in own:
                counts[level + s] += 1
            plans[i, 0], plans[i, 1], plans[i, 2] = _octets(counts, top, d, fixed[0], fixed[1], costs)
            tables[i] = entropy.bits(counts, s - top, s + top) < 8 * plans[i, 2] - margin


@compiled
def _add(out: Bytes, at: int, low: np.uint64, number: np.uint64) -> np.uint64:
    """low + number; what exceeds 64 bits is carried into the bytes before ``at``."""
    total = np.uint64(low + number)
    if total < low:
        k = at - 1
        while out[k] == 255:
            out[k] = 0
            k -= 1
        out[k] += np.uint8(1)
    return total


@compiled
def _flush(out: Bytes, at: int, low: np.uint64, range_: np.uint64) -> tuple[int, np.uint64, np.uint64]:
    while range_ < _LEAST:
        out[at] = np.uint8(low >> _TOP)
        at += 1
        low = np.uint64(low << _BYTE)
        range_ = np.uint64(range_ << _BYTE)
    return at, low, range_


@compiled
def write(levels: Row, odds: int, shape: int, shares: Shares, out: Bytes) -> None:
    """The bytes of a row into ``out``, which has as many as its plan says."""
    heads, zeros, magnitudes = shares
    sums, many = magnitudes[shape], magnitudes.shape[1] > 2
    part = np.uint64(_WHOLE >> _SHIFT)
    low = np.uint64(part * np.uint64(heads[odds]))
    at, low, range_ = _flush(out, 0, low, np.uint64(part * np.uint64(heads[odds + 1] - heads[odds])))
    if many:
        part = np.uint64(range_ >> _SHIFT)
        low = _add(out, at, low, np.uint64(np.uint64(part * np.uint64(shape)) << _SHAPE))
        at, low, range_ = _flush(out, at, low, np.uint64(part << _SHAPE))
    zero = np.uint64(zeros[odds])
    nonzero = np.uint64(np.uint64(2**24) - zero)
    for level in levels:
        part = np.uint64(range_ >> _SHIFT)
        if level == 0:
            range_ = np.uint64(part * zero)
            if range_ < _LEAST:
                at, low, range_ = _flush(out, at, low, range_)
            continue
        low = _add(out, at, low, np.uint64(part * zero))
        at, low, range_ = _flush(out, at, low, np.uint64(part * nonzero))
        range_ = np.uint64(range_ >> np.uint64(1))
        if level < 0:
            low = _add(out, at, low, range_)
        at, low, range_ = _flush(out, at, low, range_)
        if many:
            m = abs(np.int64(level))
            part = np.uint64(range_ >> _SHIFT)
            low = _add(out, at, low, np.uint64(part * np.uint64(sums[m - 1])))
            at, low, range_ = _flush(out, at, low, np.uint64(part * np.uint64(sums[m] - sums[m - 1])))
    left = len(out) - at
    if left < 8:
        rest = np.uint64((np.uint64(1) << np.uint64(64 - 8 * left)) - np.uint64(1))
        low = np.uint64(_add(out, at, low, rest) & ~rest)
    for k in range(left):
        out[at + k] = np.uint8(low >> _TOP)
        low = np.uint64(low << _BYTE)


@compiled
def _fill(body: Bytes, at: int, above: np.uint64, range_: np.uint64) -> tuple[int, np.uint64, np.uint64]:
    while range_ < _LEAST:
        above = np.uint64(above << _BYTE)
        if at < len(body):
            above |= np.uint64(body[at])
        at += 1
        range_ = np.uint64(range_ << _BYTE)
    return at, above, range_


@compiled
def _find(sums: Ints, number: np.uint64) -> int:
    """The last of sums[0], ..., sums[-2] that is not above the number."""
    low, high = 0, len(sums) - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if np.uint64(sums[middle]) <= number:
            low = middle
        else:
            high = middle
    return low


@compiled
def read(body: Bytes, shares: Shares, levels: Row) -> tuple[int, int]:
    """Fill a row of zeros from a body of any bytes: (odds, shape). Odds of -1 where it says more than its bytes can;
    that it is the encoding of the row is left to be seen.
    """
    end = len(body) + 8
    heads, zeros, magnitudes = shares
    many = magnitudes.shape[1] > 2
    at, above = 8, np.uint64(0)
    for k in range(8):
        above = np.uint64(above << _BYTE)
        if k < len(body):
            above |= np.uint64(body[k])
    part = np.uint64(_WHOLE >> _SHIFT)
    odds = _find(heads, np.uint64(above // part))
    above = np.uint64(above - part * np.uint64(heads[odds]))
    at, above, range_ = _fill(body, at, above, np.uint64(part * np.uint64(heads[odds + 1] - heads[odds])))
    shape = 0
    if many:
        part = np.uint64(np.uint64(range_ >> _SHIFT) << _SHAPE)
        shape = min(int(np.int64(above // part)), len(magnitudes) - 1)
        above = np.uint64(above - part * np.uint64(shape))
        at, above, range_ = _fill(body, at, above, part)
    sums, zero = magnitudes[shape], np.uint64(zeros[odds])
    nonzero = np.uint64(np.uint64(2**24) - zero)
    for i in range(len(levels)):
        part = np.uint64(range_ >> _SHIFT)
        edge = np.uint64(part * zero)
        if above < edge:
            range_ = edge
            if range_ < _LEAST:
                at, above, range_ = _fill(body, at, above, range_)
            continue
        if at >= end:
            return -1, 0
        at, above, range_ = _fill(body, at, np.uint64(above - edge), np.uint64(part * nonzero))
        range_ = np.uint64(range_ >> np.uint64(1))
        negative, m = above >= range_, 0
        if negative:
            above = np.uint64(above - range_)
        at, above, range_ = _fill(body, at, above, range_)
        if many:
            part = np.uint64(range_ >> _SHIFT)
            m = _find(sums, np.uint64(above // part))
            above = np.uint64(above - part * np.uint64(sums[m]))
            at, above, range_ = _fill(body, at, above, np.uint64(part * np.uint64(sums[m + 1] - sums[m])))
        levels[i] = -(m + 1) if negative else m + 1
    return (odds, shape) if at < end else (-1, 0)
