"""How often levels occur: the family of distributions of which a message of levels names one, and what each costs.

    theta   share of the levels that are not zero; theta / (1 - theta) is one of ODDS, four in each octave
    P(m)    of the magnitude m = 1, ..., s of a level that is not zero; one of SHAPES, each up to a factor
              curve    u^(m^2 - 1), as a Gaussian row has
              tail     q^(m - 1), geometric
              power    (m + b)^-a, heavy tails
    sign    + and - are equally likely

Shares are whole numbers of TOTAL = 2^24 ths, at least one, made of whole numbers alone, so that both ends have the
same on any machine. A cost is an upper bound of -log2 of a share, in units of 2^-24 bits: the logarithm rounded, and
one unit for what the coder (``arithmetic``) rounds off, which is less than 2^-31 bits a step.

Which odds are likely follows from the layout: a Gaussian row in the 2-norm has levels of standard deviation
sigma = s / sqrt(bucket), of which 0.8 sigma in 1 are not zero while sigma is small, and all but 0.4 / sigma where it is
large, and rows of heavier tails have more zeros. Odds j are given a weight of 1 / (4 + j_0 - j)^3 below j_0 and
1 / (4 + 2 (j - j_0))^3 above, an eighth of it for every second j: half an octave too much or too little costs a nonzero
level at most 0.03 bits, so that only long rows care for less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsim.compression.payload import LevelsLayout
from fedsim.wire.bits import Ints, log2

SHIFT = 24
TOTAL = 2**SHIFT
"""Of all shares, and units of a bit."""

OCTAVES = range(-24, 17)
ODDS: tuple[tuple[int, int], ...] = tuple(
    ((4 + quarter) << max(octave, 0), 4 << max(-octave, 0)) for octave in OCTAVES for quarter in range(4)
)
"""Ascending fractions: the chance of a nonzero over that of a zero."""

_CURVES = (
    *((1, 64), (1, 16), (1, 8), (1, 4), (1, 3), (1, 2), (3, 5), (2, 3), (3, 4), (4, 5), (6, 7), (8, 9), (12, 13)),
    *((16, 17), (24, 25), (32, 33), (48, 49), (64, 65), (128, 129), (256, 257), (1024, 1025), (4096, 4097)),
)
_TAILS = ((1, 16), (1, 4), (1, 2), (3, 4))
_POWERS = ((4, 0), (3, 0), (2, 0), (3, 1), (3, 3), (0, 1))
"""(a, b). The last is the same for every magnitude."""

SHAPES = len(_CURVES) + len(_TAILS) + len(_POWERS)
_ONE = 60
"""Bits after the point of a factor."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Of one layout. heads: sums of the shares of the odds before each, int64[odds + 1]; zeros: share of zero under
    each, int64[odds]; magnitudes: sums of the shares of the magnitudes before each, int64[shapes, s + 1].

    Costs: of naming odds, of a zero and of a nonzero with its sign, int64[odds]; of magnitudes, int64[shapes, s].
    """

    heads: Ints
    zeros: Ints
    magnitudes: Ints
    head_costs: Ints
    zero_costs: Ints
    nonzero_costs: Ints
    magnitude_costs: Ints


@lru_cache(maxsize=64)
def tables(layout: LevelsLayout) -> Tables:
    """The distributions for a layout."""
    heads = _head_shares(layout.levels, layout.bucket)
    zeros, zero_costs, nonzero_costs = _odds()
    sums, costs = _magnitudes(layout.levels)
    return Tables(_sums(heads), zeros, sums, cost(heads), zero_costs, nonzero_costs, costs)


def cost(shares: Ints, shift: int = SHIFT) -> Ints:
    """Bound of -log2(share / 2^shift) and of what the coder loses, in units; shares in [1, 2^shift)."""
    return (shift << SHIFT) - log2(shares, SHIFT) + 1


def shares_of(weights: NDArray[np.int64], total: int = TOTAL) -> Ints:
    """Whole numbers >= 1 of sum ``total`` in proportion to m weights >= 0: 1 + floor(w (total - m) / sum w) each, and
    what lacks to the total for the first of largest weight. Products stay below 2^63.
    """
    found: Ints = 1 + weights * (total - weights.size) // weights.sum()
    found[np.argmax(weights)] += total - found.sum()
    return found


@cache
def _odds() -> tuple[Ints, Ints, Ints]:
    """Share of zero, its cost, and that of a nonzero with its sign, for each of ODDS."""
    nonzeros = np.array([max(1, TOTAL * up // (up + down)) for up, down in ODDS])
    sign = TOTAL + 1
    return TOTAL - nonzeros, cost(TOTAL - nonzeros), cost(nonzeros) + sign


def _head_shares(s: int, bucket: int) -> Ints:
    """Share of each of ODDS. j_0: of even number, the largest whose square is at most 1.4 times that of sigma times 4/5
    (sigma < 1) or 5/2."""
    up, down = (4, 5) if s * s < bucket else (5, 2)
    middle = 0
    for j in range(0, len(ODDS), 2):
        a, b = ODDS[j]
        if 5 * (a * down) ** 2 * bucket <= 7 * (up * s * b) ** 2:
            middle = j
    places = np.arange(len(ODDS)) - middle
    distances = np.maximum(2 * places, -places)
    return shares_of(2**28 // (4 + distances) ** 3 >> 3 * (places % 2))


@lru_cache(maxsize=16)
def _magnitudes(s: int) -> tuple[Ints, Ints]:
    """Sums of shares, int64[shapes, s + 1], and costs, int64[shapes, s], which are 0 at s = 1: nothing is sent."""
    if s == 1:
        return np.tile(np.array([0, TOTAL]), (SHAPES, 1)), np.zeros((SHAPES, 1), np.int64)
    shares = np.array([shares_of(weights) for weights in _weights(s)])
    return np.array([_sums(each) for each in shares]), cost(shares)


def _weights(s: int) -> Iterator[Ints]:
    """Of magnitudes 1 to s, for each shape: at most 2^38 // s."""
    most = 2**38 // s
    for up, down in _CURVES:
        yield _falling(s, most, (up << _ONE) // down, up, down)
    for up, down in _TAILS:
        yield _falling(s, most, (up << _ONE) // down, 1, 1)
    for a, b in _POWERS:
        yield np.array([most * (1 + b) ** a // (m + b) ** a for m in range(1, s + 1)])


def _falling(s: int, most: int, q: int, up: int, down: int) -> Ints:
    """w_1 = most and w_(m+1) = w_m r_m, rounded down, with r_1 = q (up / down)^2 and r_(m+1) = r_m (up / down)^2."""
    found, weight, ratio = np.zeros(s, np.int64), most, q * up**2 // down**2
    for m in range(s):
        if not weight:
            break
        found[m] = weight
        weight, ratio = weight * ratio >> _ONE, ratio * up**2 // down**2
    return found


def _sums(shares: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(shares)])
