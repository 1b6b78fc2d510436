"""Strings of bits as uint8 arrays of zeros and ones, in the order in which they are sent.

Four ways to write whole numbers, each with its reader; all are numpy calls over every number at once.

    fixed      each number in the same number of bits, most significant bit first
    fields     each number in a number of bits of its own, most significant bit first
    unary      each number q as q ones and a zero
    grouped    digits of any base, g at a time: d_1 d_2 ... d_g is the number d_1 base^(g-1) + ... + d_g, written fixed
               in the fewest bits that hold base^g - 1. g is the largest number of digits with base^g <= 2^62, so that
               int64 is enough; the digits left at the end of a row are one shorter group with its own, smaller width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Ints = NDArray[np.int64]

_GROUP_LIMIT = 2**62


def fixed(numbers: Ints, width: int) -> Bits:
    """Numbers in [0, 2^width), width <= 63, int64[k] -> bits[k * width].

    >>> fixed(np.array([5, 1]), 3)
    array([1, 0, 1, 0, 0, 1], dtype=uint8)
    """
    whole = -(-width // 8)
    octets = numbers.astype(">i8").view(np.uint8).reshape(numbers.size, 8)[:, 8 - whole :]
    return np.unpackbits(octets).reshape(numbers.size, 8 * whole)[:, 8 * whole - width :].reshape(-1)


def read_fixed(bits: Bits, width: int) -> Ints:
    """Inverse of ``fixed``: bits[k * width] -> int64[k], 1 <= width <= 63.

    >>> read_fixed(np.array([1, 0, 1, 0, 0, 1], np.uint8), 3)
    array([5, 1])
    """
    count, whole = bits.size // width, -(-width // 8)
    padded = np.zeros((count, 8 * whole), np.uint8)
    padded[:, 8 * whole - width :] = bits.reshape(count, width)
    octets = np.zeros((count, 8), np.uint8)
    octets[:, 8 - whole :] = np.packbits(padded).reshape(count, whole)
    return octets.view(">i8").reshape(-1).astype(np.int64)


def fields(numbers: Ints, widths: Ints) -> Bits:
    """Numbers in [0, 2^width), int64[k] each -> bits[sum of the widths].

    >>> fields(np.array([5, 0, 1]), np.array([3, 0, 2]))
    array([1, 0, 1, 0, 1], dtype=uint8)
    """
    return (np.repeat(numbers, widths) >> _falling(widths) & 1).astype(np.uint8)


def read_fields(bits: Bits, widths: Ints) -> Ints:
    """Inverse of ``fields``: bits[sum of the widths] -> int64[k].

    >>> read_fields(np.array([1, 0, 1, 0, 1], np.uint8), np.array([3, 0, 2]))
    array([5, 0, 1])
    """
    sums = np.concatenate([[0], np.cumsum(bits.astype(np.int64) << _falling(widths))])
    ends = np.cumsum(widths)
    numbers: Ints = sums[ends] - sums[ends - widths]
    return numbers


def _falling(widths: Ints) -> Ints:
    """width - 1, ..., 1, 0 for each width, one after another."""
    return np.repeat(np.cumsum(widths), widths) - 1 - np.arange(widths.sum())


def unary(numbers: Ints) -> Bits:
    """Numbers >= 0, int64[k] -> bits[k + sum of the numbers].

    >>> unary(np.array([2, 0, 1]))
    array([1, 1, 0, 0, 1, 0], dtype=uint8)
    """
    ends = np.cumsum(numbers + 1)
    bits = np.ones(ends[-1] if ends.size else 0, np.uint8)
    bits[ends - 1] = 0
    return bits


def read_unary(bits: Bits) -> Ints:
    """As many numbers as there are zeros, int64; ones after the last zero are not read.

    >>> read_unary(np.array([1, 1, 0, 0, 1, 0, 1], np.uint8))
    array([2, 0, 1])
    """
    return np.diff(np.flatnonzero(bits == 0), prepend=-1) - 1


def log2(numbers: Ints, digits: int) -> Ints:
    """Binary logarithms of numbers in [1, 2^32), in units of 2^-digits, rounded down; digit by digit, by squaring, so
    that they are the same on any machine.

    >>> log2(np.array([1, 3, 8]), 4)  # log2(3) = 1.585, and 0.585 * 16 = 9.36
    array([ 0, 25, 48])
    """
    logs = np.frexp(numbers)[1].astype(np.int64) - 1  # frexp's exponent is the bit length of a number below 2^53
    rest = numbers.astype(np.uint64) << (31 - logs).astype(np.uint64)  # 2^31 times a number in [1, 2)
    for _ in range(digits):
        rest = rest * rest >> np.uint64(31)
        digit = rest >> np.uint64(32)
        rest, logs = rest >> digit, 2 * logs + digit.astype(np.int64)
    return logs


def group(base: int) -> int:
    """g: the largest number of digits of ``base`` (2 <= base <= 2^62) with base^g <= 2^62."""
    digits, power = 0, base
    while power <= _GROUP_LIMIT:
        digits, power = digits + 1, power * base
    return digits


def group_width(digits: int, base: int) -> int:
    """Fewest bits that tell base^digits numbers apart: ceil(digits * log2(base)), exactly; 0 digits need 0 bits."""
    return int(base**digits - 1).bit_length()


def grouped_length(d: int, base: int) -> int:
    """Bits of ``d`` digits in groups."""
    groups, rest = divmod(d, group(base))
    return groups * group_width(group(base), base) + group_width(rest, base)


def grouped(digits: Ints, base: int) -> Bits:
    """Digits in [0, base), int64[d] -> bits[grouped_length(d, base)].

    >>> grouped(np.array([1, 2, 0]), 3)  # 1 * 9 + 2 * 3 + 0 = 15, and 3^3 = 27 needs 5 bits
    array([0, 1, 1, 1, 1], dtype=uint8)
    """
    size = group(base)
    groups, rest = divmod(digits.size, size)
    powers = _powers(size, base)
    whole = digits[: groups * size].reshape(groups, size) @ powers
    last = np.array([digits[groups * size :] @ powers[size - rest :]])  # 0 in 0 bits if no digit is left
    return np.concatenate([fixed(whole, group_width(size, base)), fixed(last, group_width(rest, base))])


def read_grouped(bits: Bits, d: int, base: int) -> Ints:
    """Inverse of ``grouped``: bits[grouped_length(d, base)] -> int64[d].

    A group that holds base^g or more keeps only its last g digits, so ``grouped`` would not give its bits back.
    """
    size = group(base)
    groups, rest = divmod(d, size)
    powers = _powers(size, base)
    split = groups * group_width(size, base)
    whole = read_fixed(bits[:split], group_width(size, base))[:, None] // powers % base
    last = read_fixed(bits[split:], max(1, group_width(rest, base)))[:, None] // powers[size - rest :] % base
    return np.concatenate([whole.reshape(-1), last.reshape(-1)])


def _powers(digits: int, base: int) -> Ints:
    return np.array([base**i for i in range(digits - 1, -1, -1)], np.int64)
