"""What the codec refuses and says, and the corners of its working memory and devices."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch

from fedsim import kernels
from fedsim.compression.payload import (
    Digits,
    DigitsLayout,
    Layout,
    Levels,
    LevelsLayout,
    Payload,
    Values,
    ValuesLayout,
    row,
)
from fedsim.errors import WireError
from fedsim.wire import decode, encode, longest, model, size
from fedsim.wire.model import ODDS


@pytest.fixture(scope="module", autouse=True, params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds of both forms of the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "installed", lambda: request.param == "compiled")
        yield


LAYOUT = LevelsLayout(d=6, levels=4, bucket=3)


def digits(row: list[int], scales: list[float], seeds: list[int], layout: DigitsLayout) -> Digits:
    scale, seed = torch.tensor([scales], dtype=torch.float32), torch.tensor([seeds], dtype=torch.int64)
    return Digits(layout, torch.tensor([row], dtype=torch.int32), scale, seed)


def levels(rows: list[list[int]], norms: list[list[float]], layout: LevelsLayout = LAYOUT) -> Levels:
    return Levels(layout, torch.tensor(rows, dtype=torch.int32), torch.tensor(norms))


GOOD = levels([[0, 1, 0, -4, 0, 0]], [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (levels([[0, 5, 0, 0, 0, 0]], [[1, 1.0]]), "magnitude 5, expected at most 4"),
        (levels([[0, -(2**31), 0, 0, 0, 0]], [[1, 1.0]]), "magnitude 2147483648, expected"),
        (levels([[0, 0, 0, 1, 0, 0]], [[1, 0.0]]), "bucket of norm zero"),
        (levels([[0, 0, 0, 0, 0, 0]], [[1, float("inf")]]), "a norm is infinite, NaN, negative or -0.0"),
        (levels([[0, 0, 0, 0, 0, 0]], [[1, float("nan")]]), "a norm is"),
        (levels([[0, 0, 0, 0, 0, 0]], [[1, -1.0]]), "a norm is"),
        (levels([[0, 0, 0, 0, 0, 0]], [[1, -0.0]]), "a norm is"),
        (levels([[0, 0, 0]], [[1, 1.0]]), re.escape("levels are torch.int32[1, 3], expected torch.int32[n, 6]")),
        (Levels(LAYOUT, torch.zeros(1, 6), torch.ones(1, 2)), re.escape("levels are torch.float32[1, 6]")),
        (Levels(LAYOUT, torch.zeros(6, dtype=torch.int32), torch.ones(1, 2)), "levels are"),
        (levels([[0] * 6], [[1.0]]), re.escape("norms are torch.float32[1, 1], expected torch.float32[1, 2]")),
        (levels([[0] * 6, [0] * 6], [[1.0, 1.0]]), "norms are"),
        (Levels(LAYOUT, GOOD.levels, GOOD.norms.double()), "norms are torch.float64"),
        (Values(ValuesLayout(2), torch.zeros(1, 3)), "values are"),
        (Values(ValuesLayout(2), torch.zeros(2)), "values are"),
        (Values(ValuesLayout(2, torch.float64), torch.zeros(1, 2)), re.escape("values are torch.float32[1, 2]")),
        (
            Values(ValuesLayout(2, torch.int64), torch.zeros(1, 2).long()),
            "use torch.float16, torch.bfloat16, torch.float32, torch.float64",
        ),
        (
            digits([0, 0], [], [], DigitsLayout(3, 2)),
            re.escape("digits are torch.int32[1, 2], expected torch.int32[1, 3]"),
        ),
        (digits([0, 0], [], [], DigitsLayout(2, 2, 1)), re.escape("scales are torch.float32[1, 0]")),
        (digits([0, 0], [], [], DigitsLayout(2, 2, seeded=True)), re.escape("seeds are torch.int64[1, 0]")),
        (digits([0, 2], [], [], DigitsLayout(2, 2)), "digits are 0 to 2, expected 0 to 1"),
        (digits([0, -1], [], [], DigitsLayout(2, 2)), "digits are -1 to 0"),
        (digits([0, 1], [], [-1], DigitsLayout(2, 2, seeded=True)), "seeds are -1 to -1"),
        (digits([0, 1], [], [2**32], DigitsLayout(2, 2, seeded=True)), "expected 0 to 4294967295"),
        (digits([0, 1], [1.0, 0.0], [], DigitsLayout(2, 2, 1)), "bucket of scale zero"),
        (digits([0, 1], [1.0, -0.0], [], DigitsLayout(2, 2, 1)), "-0.0"),
        (digits([], [], [], DigitsLayout(0, 2)), "no wire format"),
        (digits([0], [], [], DigitsLayout(1, 1)), "base from 2 to 131072"),
        (digits([0], [], [], DigitsLayout(1, 2**17 + 1)), "base from 2 to 131072"),
        (digits([0], [], [], DigitsLayout(1, 2, -1)), "no wire format"),
        (levels([[]], [[]], LevelsLayout(0, 1, 1)), "no wire format"),
        (levels([[0]], [[1.0]], LevelsLayout(1, 1, 0)), "no wire format"),
        (levels([[0]], [[1.0]], LevelsLayout(1, 0, 1)), "no wire format"),
        (levels([[0]], [[1.0]], LevelsLayout(1, 2**15 + 1, 1)), "levels from 1 to 32768"),
        (levels([[0]], [[1.0]], LevelsLayout(2**31, 1, 1)), re.escape("use 1 <= d < 2^31")),
    ],
)
def test_payloads_that_are_refused(payload: Payload, says: str) -> None:
    for use in (encode, size):
        with pytest.raises(WireError, match=says):
            use(payload)


def body(bits: str, norms: tuple[float, ...] = (1.0, 1.0)) -> bytes:
    """A message from norms and a string of bits, spaces left out."""
    bits = bits.replace(" ", "")
    assert len(bits) % 8 == 0
    return struct.pack(f"<{len(norms)}f", *norms) + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def test_a_message_by_hand() -> None:
    """One level in three is not zero, as one in two is likely (odds 1 / 2, number 92): so is what stands in the way.

    In units of the whole: 255 / 256, of it the odds' own share, then zero 2/3 or else 1/3, and a half for the sign.
    """
    layout = LevelsLayout(3, 1, 3)
    own = model.tables(layout)
    low, width = Fraction(0), Fraction(255, 256)
    for before, share in (
        (own.heads[92], own.heads[93] - own.heads[92]),
        (0, own.zeros[92]),
        (own.zeros[92], 2**24 - own.zeros[92]),
        (2**23, 2**23),  # minus
        (0, own.zeros[92]),
    ):
        low, width = low + width * Fraction(int(before), 2**24), width * Fraction(int(share), 2**24)
    (message,) = encode(levels([[0, -1, 0]], [[1.0]], layout))
    assert ODDS[92] == (4, 8)
    assert len(message) == 5
    assert low <= Fraction(message[4], 256) < low + width
    assert low > Fraction(message[4] - 1, 256)


MESSAGE = encode(GOOD)[0]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (body("", (1.0,)), "has 4 bytes, expected 8 to"),
        (bytes(100), "has 100 bytes, expected 8 to 12"),
        (body(""), "not the encoding of the row"),  # norms without a body
        (body("0000 0000", (0.0, 0.0)), "not the encoding of the row"),  # zero norms with a body
        (MESSAGE[:-1], "not the encoding of the row"),
        (MESSAGE + bytes(1), "not the encoding of the row"),  # a byte too much
        (MESSAGE[:-1] + bytes([MESSAGE[-1] ^ 1]), "not the encoding of the row"),
        (body("11111111 0000 0000"), "no entropy code"),
        (body("11111110 11111111"), "not the encoding of the row"),  # beyond everything
        (body("0000 0000 0000 0001"), "not the encoding of the row"),  # odds of no row
        (struct.pack("<2f", 1.0, 0.0) + MESSAGE[8:], "bucket of norm zero"),
        (struct.pack("<2f", 1.0, float("nan")) + MESSAGE[8:], "a norm is"),
    ],
)
def test_messages_that_are_refused(message: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode([encode(GOOD)[0], message], LAYOUT)


TERNARY = DigitsLayout(30, 3)
"""6 bytes when fixed. The table begins with two numbers of 2 bits."""


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        ("", "no entropy code"),
        ("0001 1111 1011 1110", "no entropy code"),  # lengths 5 and 5, but not the two bits of each that follow
        ("0001 1110 1110 1100", "not the encoding of the row"),  # two symbols and no words
        ("0010 0000", "no entropy code"),  # three counts of zero
        ("1101 0000", "no entropy code"),  # from 3 to 1
        ("0111 0000", "no entropy code"),  # to symbol 3 of base 3
        ("0010 1111 1111", "no entropy code"),  # no end of a length
        ("0000 0000", "no entropy code"),  # nothing occurs
        ("0000 1111 0110 0000", "not the encoding of the row"),  # one symbol, 15 times
        ("0000 1111 1011 1000 0000 0000", "no entropy code"),  # a zero byte at the end
        ("0000 1111 1011 1000 0000 0001", "not the encoding of the row"),  # no words are needed for one symbol
        ("0101 1111 1011 1000", "not the encoding of the row"),  # the padding
    ],
)
def test_entropy_codes_that_are_refused(bits: str, says: str) -> None:
    message = body(bits.replace(" ", "") + "0" * (-len(bits.replace(" ", "")) % 8), ())
    with pytest.raises(WireError, match=says):
        decode([message], TERNARY)


def test_a_count_of_more_than_32_bits() -> None:
    message = body("0000" + 33 * "1" + "0" + 26 * "1", ())
    with pytest.raises(WireError, match="no entropy code"):
        decode([message], DigitsLayout(3000, 3))


def test_one_symbol() -> None:
    message = bytes([0b01011111, 0b10110000])  # from 1 to 1; 5 bits; 11 of 11110
    assert encode(digits([1] * 30, [], [], TERNARY)) == [message]
    assert decode([message], TERNARY).digits.tolist() == [[1] * 30]


@pytest.mark.parametrize("word", [0, 1, 2**31])
def test_words_that_are_not_canonical(word: int) -> None:
    layout = DigitsLayout(300, 3)
    (message,) = encode(digits([0, 1, 0, 0, 0] * 60, [], [], layout))
    assert len(message) < 60
    with pytest.raises(WireError, match=r"no entropy code|not the encoding"):
        decode([message + struct.pack("<I", word)], layout)


def test_the_refusal_names_the_message() -> None:
    good = encode(GOOD)[0]
    with pytest.raises(WireError, match="message 2 "):
        decode([good, good, good[:-1] + b"\0\0"], LAYOUT)


@pytest.mark.parametrize("layout", [LAYOUT, ValuesLayout(3)])
def test_no_rows(layout: Layout) -> None:
    empty = decode([], layout)
    assert encode(empty) == []
    assert size(empty).tolist() == []


def test_longest() -> None:
    assert longest(ValuesLayout(5)) == 20
    assert longest(ValuesLayout(5, torch.float64)) == 40
    for d, s in ((6, 4), (390, 1), (1000, 16), (10**6, 1)):  # little more than digits of base 2 s + 1
        octets = longest(LevelsLayout(d, s, d)) - 4
        assert d * math.log2(2 * s + 1) / 8 <= octets <= 3 + 1.1 * d * math.log2(2 * s + 1) / 8


def test_values_that_are_not_finite_cross() -> None:
    sent = torch.tensor([[float("nan"), float("inf"), -0.0]])
    received = decode(encode(Values(ValuesLayout(3), sent)), ValuesLayout(3))
    assert isinstance(received, Values)
    assert received.values.numpy().tobytes() == sent.numpy().tobytes()


def test_a_cohort_of_more_than_one_block() -> None:
    d = 2**21 + 1
    layout = LevelsLayout(d, 2, d)
    rows = torch.zeros(3, d, dtype=torch.int32)
    rows[0, 5], rows[1, -1], rows[2, ::1000] = 1, -2, 2
    payload = Levels(layout, rows, torch.tensor([[1.0], [2.0], [3.0]]))
    messages = encode(payload)
    assert messages == [encode(row(payload, i))[0] for i in range(3)]
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    received = decode(messages, layout)
    assert isinstance(received, Levels)
    assert torch.equal(received.levels, rows)


def test_views_and_gradients_are_taken_as_they_are() -> None:
    wide = torch.tensor([[0, 9, 1, 9, 0, 9, -4, 9, 0, 9, 0, 9]], dtype=torch.int32)
    assert encode(Levels(LAYOUT, wide[:, ::2], torch.tensor([[1.0, 9, 2, 9]])[:, ::2])) == encode(GOOD)
    values = torch.ones(1, 2, requires_grad=True)
    assert encode(Values(ValuesLayout(2), values)) == [struct.pack("<2f", 1, 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_another_device() -> None:
    there = Levels(LAYOUT, GOOD.levels.cuda(), GOOD.norms.cuda())
    assert encode(there) == encode(GOOD)
    assert size(there).device.type == "cpu"
