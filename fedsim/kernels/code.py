"""Bodies of quantized messages, written and read as ``fedsim.wire.coding`` says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled
from fedsim.kernels.rice import Gaps, Row, gaps_of, largest, remainder_bits

Bytes = NDArray[np.uint8]

READ, NOT_WHOLE = -1, -2
"""What ``read`` says of a body."""

_DENSE = 15


@compiled
def _put(out: Bytes, at: int, number: int, width: int) -> int:
    """Write a number at a bit, most significant bit first; returns the bit after it. out: zero from there on."""
    while width > 0:
        free = 8 - (at & 7)
        taken = min(free, width)
        part = (number >> (width - taken)) & ((1 << taken) - 1)
        out[at >> 3] |= np.uint8(part << (free - taken))
        at += taken
        width -= taken
    return at


@compiled
def _get(body: Bytes, at: int, width: int) -> int:
    """The number that ``_put`` has written there."""
    number = np.int64(0)
    while width > 0:
        free = 8 - (at & 7)
        taken = min(free, width)
        part = (np.int64(body[at >> 3]) >> (free - taken)) & ((1 << taken) - 1)
        number = number << taken | part
        at += taken
        width -= taken
    return int(number)


@compiled
def _ones(number: int) -> int:
    count = 0
    while number:
        number &= number - 1
        count += 1
    return count


@compiled
def write(
    levels: Row,
    norms: NDArray[np.float32],
    s: int,
    header: int,
    dense: int,
    digits: tuple[int, int, int],
    gaps: Gaps,
    out: Bytes,
) -> int:
    """The shorter of the sparse and the dense body of one row, which fits its norms and s, into ``out``; its bytes.

    header: bits before the planes; dense: bits of a dense body; digits: of a group, its bits, bits of the last group;
    gaps: int32[d], scratch; out: as long as a dense body.
    """
    top, some = largest(levels), False
    for norm in norms:
        some |= norm > 0
    if not some:
        return 0
    count = gaps_of(levels, gaps)
    b, quotients = remainder_bits(gaps[:count])
    width = 0
    while top - 1 >> width > 0:
        width += 1
    bits = header + count * (2 + width + b) + quotients
    octets = (min(bits, dense) + 7) // 8
    out[:octets] = 0
    if bits > dense:
        _write_dense(levels, s, digits, out)
        return octets
    at = _put(out, 0, b, 4)
    if header > 4:
        at = _put(out, at, width, 4)
    place = 0
    for k in range(count):
        place += gaps[k]
        level = np.int64(levels[place])
        place += 1
        sign = np.int64(level < 0)
        field = (sign << width | (abs(level) - 1)) << b | (gaps[k] & ((1 << b) - 1))
        at = _put(out, at, field, 1 + width + b)
    for k in range(count):
        ones = gaps[k] >> b
        while ones > 0:
            part = min(ones, 32)
            at = _put(out, at, (1 << part) - 1, part)
            ones -= part
        at += 1
    _put(out, at, 255, 8 * octets - at)
    return octets


@compiled
def _write_dense(levels: Row, s: int, digits: tuple[int, int, int], out: Bytes) -> None:
    size, whole, last = digits
    at = _put(out, 0, _DENSE, 4)
    for start in range(0, len(levels), size):
        number = np.int64(0)
        stop = min(start + size, len(levels))
        for i in range(start, stop):
            number = number * (2 * s + 1) + levels[i] + s
        at = _put(out, at, int(number), whole if stop - start == size else last)


@compiled
def read(body: Bytes, s: int, header: int, dense: int, digits: tuple[int, int, int], levels: Row) -> int:
    """Fill a row of zeros from a body of one byte or more; READ, what is wrong with it, or a coordinate beyond the row.

    That it is the encoding of the row, which is all that makes it valid, is left to be seen.
    """
    d, bits, b = len(levels), 8 * len(body), _get(body, 0, 4)
    if b == _DENSE:
        if len(body) != (dense + 7) // 8:
            return NOT_WHOLE
        _read_dense(body, s, digits, levels)
        return READ
    width = _get(body, 4, 4) if header > 4 else 0
    field = 1 + width + b
    zeros = bits - header
    for at in range(header, bits):
        zeros -= int((np.int64(body[at >> 3]) >> (7 - (at & 7))) & 1)
    count, at = 0, header
    while zeros > count:
        if at + field > bits:
            return NOT_WHOLE
        zeros -= field - _ones(_get(body, at, field))
        at += field
        count += 1
    if zeros != count:
        return NOT_WHOLE
    place, fields = np.int64(0), header
    for _ in range(count):
        quotient = 0
        while (body[at >> 3] >> (7 - (at & 7))) & 1:
            quotient += 1
            at += 1
        at += 1
        number = _get(body, fields, field)
        fields += field
        place += quotient << b | number & ((1 << b) - 1)
        if place >= d:
            return int(place)
        magnitude = (number >> b & ((1 << width) - 1)) + 1
        levels[place] = -magnitude if number >> (width + b) else magnitude
        place += 1
    return READ


@compiled
def _read_dense(body: Bytes, s: int, digits: tuple[int, int, int], levels: Row) -> None:
    size, whole, last = digits
    at = 4
    for start in range(0, len(levels), size):
        stop = min(start + size, len(levels))
        width = whole if stop - start == size else last
        number = _get(body, at, width)
        at += width
        for i in range(stop - 1, start - 1, -1):
            levels[i] = number % (2 * s + 1) - s
            number //= 2 * s + 1
