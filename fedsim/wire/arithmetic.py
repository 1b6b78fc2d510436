"""Levels <-> bytes by an arithmetic code under the distributions of ``model``: the definition, one step after another.

A message is a number in [0, 1), of as many bytes as are announced, most significant first. Each step keeps that part of
an interval that belongs to what is said. The interval is low + [0, range), in units of 2^-64 of what the bytes before
leave open; range begins at 2^64 - 2^56, so that no first byte is 255.

    step     r = floor(range / 2^24); low += r c; range = r f, for a share f and the sum c of the shares before it
    sign     r = floor(range / 2); + keeps the lower half, - the upper; range = r
    bytes    while range < 2^56: the highest byte of low is written, and range and low are multiplied by 2^8
    end      the least number of so many bytes that is at least low

In this order: the odds; the shape, if s > 1, each of the same share; and for each level whether it is not zero (zero
comes first), its sign, and, if s > 1, its magnitude.

A row costs START, and what the tables say for each step; its bytes are that, rounded up, so that the length needs no
encoding. That many are enough: costs are upper bounds, the interval is at least 2^-bits wide, and a multiple of that
lies in it. Before the end fewer bytes than those are written, so that no body says more than its length allows. Of odds
and shapes the first cheapest are taken.

Source: Rissanen and Langdon, "Arithmetic coding", IBM J. Res. Dev. 23, 1979; bytewise: Martin, "Range encoding", 1979.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.wire.bits import Ints
from fedsim.wire.model import SHAPES, SHIFT, TOTAL, Tables, cost

WHOLE = 2**64 - 2**56
"""The range at the start."""
START = int(cost(np.array([255]), 8)[0])
SHAPE_COST = int(cost(np.array([1 << SHIFT - 5]), SHIFT)[0])
"""Costs of beginning, and of naming a shape, in units."""

OVERRUN = -1, 0
"""What ``read`` says of a body that says more than its bytes can."""

_SHAPE_SHIFT = SHIFT - 5
assert SHAPES == 1 << 5, "a shape is named in five bits"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which odds and shape (0 if s = 1) a row is written under, and its bytes."""

    odds: int
    shape: int
    octets: int


def plan(zeros: int, magnitudes: Ints, tables: Tables) -> Plan:
    """The cheapest. magnitudes: how often 1, ..., s occur, int64[s]."""
    nonzeros = int(magnitudes.sum())
    costs = tables.head_costs + zeros * tables.zero_costs + nonzeros * tables.nonzero_costs
    odds = int(np.argmin(costs))
    units, shape = START + int(costs[odds]), 0
    if magnitudes.size > 1:
        shapes = tables.magnitude_costs @ magnitudes
        shape = int(np.argmin(shapes))
        units += SHAPE_COST + int(shapes[shape])
    return Plan(odds, shape, -(-units // (8 * TOTAL)))


def write(levels: Sequence[int], found: Plan, tables: Tables) -> bytes:
    """The bytes of a row."""
    encoder = _Encoder()
    encoder.step(int(tables.heads[found.odds]), int(tables.heads[found.odds + 1]))
    sums = tables.magnitudes[found.shape].tolist()
    if len(sums) > 2:
        encoder.step(found.shape << _SHAPE_SHIFT, found.shape + 1 << _SHAPE_SHIFT)
    zero = int(tables.zeros[found.odds])
    for level in levels:
        if not level:
            encoder.step(0, zero)
            continue
        encoder.step(zero, TOTAL)
        encoder.step(int(level < 0), int(level < 0) + 1, 1)
        if len(sums) > 2:
            encoder.step(sums[abs(level) - 1], sums[abs(level)])
    return encoder.end(found.octets)


def read(body: bytes, levels: NDArray[np.int32], tables: Tables) -> tuple[int, int]:
    """Fill a row of zeros from a body of one byte or more, of any bytes: (odds, shape), or OVERRUN. That it is the
    encoding of the row is left to be seen.
    """
    decoder = _Decoder(body)
    odds = decoder.find(tables.heads.tolist())
    shape, zero = 0, [0, int(tables.zeros[odds]), TOTAL]
    if tables.magnitudes.shape[1] > 2:
        shape = decoder.find([named << _SHAPE_SHIFT for named in range(SHAPES + 1)])
    sums = tables.magnitudes[shape].tolist()
    for i in range(len(levels)):
        if decoder.find(zero):
            negative = decoder.find([0, 1, 2], 1)
            magnitude = decoder.find(sums) + 1 if len(sums) > 2 else 1
            levels[i] = -magnitude if negative else magnitude
        if decoder.at >= len(body) + 8:
            return OVERRUN
    return odds, shape


class _Encoder:
    def __init__(self) -> None:
        self.low, self.range, self.out = 0, WHOLE, bytearray()

    def step(self, start: int, end: int, shift: int = SHIFT) -> None:
        part = self.range >> shift
        self._add(part * start)
        self.range = part * (end - start)
        while self.range < 2**56:
            self.out.append(self.low >> 56)
            self.low, self.range = self.low << 8 & 2**64 - 1, self.range << 8

    def end(self, octets: int) -> bytes:
        left = octets - len(self.out)
        unit = 1 << max(0, 64 - 8 * left)
        self._add(-self.low % unit)
        return bytes(self.out) + self.low.to_bytes(8, "big")[:left] + bytes(max(0, left - 8))

    def _add(self, number: int) -> None:
        self.low += number
        if self.low >= 2**64:
            self.low -= 2**64
            at = len(self.out) - 1
            while self.out[at] == 255:
                self.out[at] = 0
                at -= 1
            self.out[at] += 1


class _Decoder:
    def __init__(self, body: bytes) -> None:
        self.range, self.body, self.at = WHOLE, body, 8
        self.above = int.from_bytes(body[:8].ljust(8, b"\0"), "big")  # the number minus low

    def find(self, sums: list[int], shift: int = SHIFT) -> int:
        """Which of the shares the number is in; the last, of numbers that no encoder writes."""
        part = self.range >> shift
        found = bisect_right(sums, self.above // part, 1, len(sums) - 1) - 1
        self.above, self.range = self.above - part * sums[found], part * (sums[found + 1] - sums[found])
        while self.range < 2**56:
            octet = self.body[self.at] if self.at < len(self.body) else 0
            self.above, self.range, self.at = (self.above << 8 | octet) & 2**64 - 1, self.range << 8, self.at + 1
        return found
