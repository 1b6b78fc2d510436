"""Whole numbers as bits: every width, every base, and what a reader does with nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.wire.bits import (
    fixed,
    group,
    group_width,
    grouped,
    grouped_length,
    read_fixed,
    read_grouped,
    read_unary,
    unary,
)


def text(bits: np.ndarray) -> str:
    assert bits.dtype == np.uint8
    return "".join(map(str, bits.tolist()))


@pytest.mark.parametrize("width", range(1, 64))
def test_fixed(width: int) -> None:
    numbers = np.array([0, 1, 2**width - 1, 2 ** (width - 1), 0x123456789ABCDEF & (2**width - 1)], np.int64)
    bits = fixed(numbers, width)
    assert text(bits) == "".join(format(number, f"0{width}b") for number in numbers.tolist())
    assert read_fixed(bits, width).tolist() == numbers.tolist()


def test_no_numbers_and_no_bits() -> None:
    none = np.zeros(0, np.int64)
    for width in (0, 1, 9):
        assert text(fixed(none, width)) == ""
    assert text(fixed(np.zeros(3, np.int64), 0)) == ""
    assert read_fixed(fixed(none, 5), 5).tolist() == []
    assert text(unary(none)) == ""
    assert read_unary(unary(none)).tolist() == []


def test_unary() -> None:
    numbers = [0, 3, 0, 0, 1, 70]
    bits = unary(np.array(numbers))
    assert text(bits) == "".join("1" * number + "0" for number in numbers)
    assert read_unary(bits).tolist() == numbers


@pytest.mark.parametrize(
    ("base", "digits", "width"), [(3, 39, 62), (5, 26, 61), (9, 19, 61), (33, 12, 61), (65537, 3, 49)]
)
def test_groups(base: int, digits: int, width: int) -> None:
    assert base**digits <= 2**62 < base ** (digits + 1)
    assert (group(base), group_width(digits, base)) == (digits, width)
    assert 2 ** (width - 1) < base**digits <= 2**width
    assert group_width(0, base) == 0


@pytest.mark.parametrize("base", [2, 3, 4, 33, 65537, 2**62])
@pytest.mark.parametrize("d", [1, 2, 3, 38, 39, 40, 62, 100])
def test_grouped(base: int, d: int) -> None:
    generator = np.random.default_rng(d)
    for digits in (generator.integers(0, base, d), np.full(d, base - 1), np.zeros(d, np.int64)):
        expected = ""
        for start in range(0, d, group(base)):
            number, part = 0, digits[start : start + group(base)].tolist()
            for digit in part:
                number = number * base + digit
            expected += format(number, f"0{(base ** len(part) - 1).bit_length()}b")
        bits = grouped(digits, base)
        assert text(bits) == expected
        assert bits.size == grouped_length(d, base)
        assert read_grouped(bits, d, base).tolist() == digits.tolist()


def test_more_than_a_group_holds_is_not_written_back() -> None:
    bits = np.ones(grouped_length(2, 3), np.uint8)  # 15, and two digits of base 3 hold 0 to 8
    assert read_grouped(bits, 2, 3).tolist() == [2, 0]
    assert text(grouped(np.array([2, 0]), 3)) != text(bits)
