"""Rows <-> messages for any row: lossless, counted exactly, bounded, and strict about everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    parts,
    row,
)
from fedsim.errors import WireError
from fedsim.wire import ans, decode, encode, longest, size
from fedsim.wire.levels import MAX_LEVELS


@pytest.fixture(scope="module", autouse=True, params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds of both forms of the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "installed", lambda: request.param == "compiled")
        yield


@st.composite
def level_layouts(draw: st.DrawFn) -> LevelsLayout:
    d = draw(st.integers(1, 300))
    s = draw(st.integers(1, 40) | st.sampled_from([127, 1000, 2**15 - 1, MAX_LEVELS]))
    return LevelsLayout(d, s, draw(st.integers(1, d + 2) | st.just(d)))


@st.composite
def level_rows(draw: st.DrawFn) -> Levels:
    layout = draw(level_layouts())
    n = draw(st.integers(0, 3))
    top = draw(st.integers(1, layout.levels))
    levels = draw(hnp.arrays(np.int32, (n, layout.d), elements=st.integers(-top, top)))
    norms = draw(hnp.arrays(np.float32, (n, layout.buckets), elements=st.floats(0, 2.0**127, width=32)))
    norms = np.abs(norms)  # -0.0
    levels[np.repeat(norms == 0, layout.bucket, axis=1)[:, : layout.d]] = 0
    return Levels(layout, torch.from_numpy(levels), torch.from_numpy(norms))


@st.composite
def value_rows(draw: st.DrawFn) -> Values:
    wide = draw(st.booleans())
    d, n = draw(st.integers(0, 300)), draw(st.integers(0, 3))
    values = draw(hnp.arrays(np.float64 if wide else np.float32, (n, d)))
    return Values(ValuesLayout(d, torch.float64 if wide else torch.float32), torch.from_numpy(values))


@st.composite
def digit_rows(draw: st.DrawFn) -> Digits:
    """Half of them have few symbols in long runs, which the entropy code shortens."""
    d, base = draw(st.integers(1, 300)), draw(st.integers(2, 40) | st.sampled_from([511, 2**17]))
    layout = DigitsLayout(d, base, draw(st.integers(0, d + 2)), draw(st.booleans()))
    n, top = draw(st.integers(0, 3)), draw(st.integers(0, base - 1))
    digits = draw(hnp.arrays(np.int32, (n, d), elements=st.integers(0, top), fill=st.just(0)))
    scales = np.abs(draw(hnp.arrays(np.float32, (n, layout.buckets), elements=st.floats(0, 2.0**127, width=32))))
    if layout.bucket:
        digits[np.repeat(scales == 0, layout.bucket, axis=1)[:, :d]] = 0
    seeds = draw(hnp.arrays(np.int64, (n, int(layout.seeded)), elements=st.integers(0, 2**32 - 1)))
    return Digits(layout, *map(torch.from_numpy, (digits, scales, seeds)))


def same(one: Payload, other: Payload) -> bool:
    bytes_of = [[part.contiguous().numpy().tobytes() for part in parts(payload).values()] for payload in (one, other)]
    return one.layout == other.layout and bytes_of[0] == bytes_of[1]


def refused_or_canonical(message: bytes, layout: Layout) -> None:
    try:
        payload = decode([message], layout)
    except WireError:
        return
    assert encode(payload) == [message]


@given(level_rows() | digit_rows() | value_rows())
def test_round_trip_and_length(payload: Payload) -> None:
    messages = encode(payload)
    bits = size(payload)
    assert bits.dtype == torch.int64
    assert bits.tolist() == [8 * len(message) for message in messages]
    assert all(len(message) <= longest(payload.layout) for message in messages)
    assert same(decode(messages, payload.layout), payload)


@given(level_rows() | digit_rows())
def test_a_row_alone_has_the_bytes_it_has_in_a_cohort(payload: Levels | Digits) -> None:
    messages = encode(payload)
    assert [encode(row(payload, i))[0] for i in range(len(messages))] == messages


@settings(max_examples=200)
@given(level_rows() | digit_rows(), st.data())
def test_mutated_messages(payload: Payload, data: st.DataObject) -> None:
    for message in encode(payload):
        damaged = bytearray(message)
        for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=3)):
            damaged[at] = data.draw(st.integers(0, 255))
        refused_or_canonical(bytes(damaged), payload.layout)
        cut = data.draw(st.integers(0, len(message)))
        refused_or_canonical(message[:cut], payload.layout)
        refused_or_canonical(message[:cut] + message[cut + 1 :], payload.layout)
        refused_or_canonical(message + data.draw(st.binary(min_size=1, max_size=9)), payload.layout)


@given(level_layouts(), st.data())
def test_any_bytes(layout: LevelsLayout, data: st.DataObject) -> None:
    most = longest(layout)
    refused_or_canonical(data.draw(st.binary(max_size=min(most + 1, 400))), layout)
    fill = bytes([data.draw(st.integers(0, 255))])
    norms = np.ones(layout.buckets, "<f4").tobytes()
    refused_or_canonical(norms + fill * (most - len(norms)), layout)
    refused_or_canonical(norms + data.draw(st.binary(max_size=40)), layout)


@given(digit_rows(), st.data())
def test_any_bytes_of_digits(payload: Digits, data: st.DataObject) -> None:
    layout = payload.layout
    head = 4 * layout.seeded * b"\1" + np.ones(layout.buckets, "<f4").tobytes()
    refused_or_canonical(head + data.draw(st.binary(max_size=60)), layout)
    if len(payload.digits):  # a table that is true, and any words
        symbols = np.concatenate([np.asarray(payload.digits[0]), np.zeros(300, np.int32)])
        start = np.packbits(ans.table(np.bincount(symbols, minlength=layout.base))).tobytes()
        refused_or_canonical(head + start + data.draw(st.binary(max_size=40)), replace(layout, d=layout.d + 300))


@given(value_rows(), st.binary(min_size=1, max_size=9))
def test_values_of_another_length(payload: Values, more: bytes) -> None:
    for message in encode(payload):
        with pytest.raises(WireError, match="bytes, expected"):
            decode([message + more], payload.layout)
        if message:
            with pytest.raises(WireError, match="bytes, expected"):
                decode([message[:-1]], payload.layout)


def evenly(layout: LevelsLayout) -> list[int]:
    """A row that nothing shortens: large levels, and none of them more often than the others."""
    d, s = layout.d, layout.levels
    if d <= s:
        return [(s - i // 2) * (-1) ** i for i in range(d)]
    return [(2 * i + 1) * (2 * s + 1) // (2 * d) - s for i in range(d)]


@given(level_layouts(), st.randoms(use_true_random=False))
def test_longest_is_hardly_more_than_the_longest(layout: LevelsLayout, random: Random) -> None:
    row = evenly(layout)
    random.shuffle(row)
    payload = Levels(layout, torch.tensor([row], dtype=torch.int32), torch.ones(1, layout.buckets))
    (message,) = encode(payload)
    assert len(message) <= longest(layout) <= 4 * layout.buckets + 1.2 * (len(message) - 4 * layout.buckets) + 3
    with pytest.raises(WireError, match="bytes, expected"):
        decode([message + bytes(longest(layout) + 1 - len(message))], layout)
