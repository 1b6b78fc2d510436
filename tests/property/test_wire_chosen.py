"""Rows of which some coordinates cross <-> messages: as ``test_wire_coding``, for the layouts of sparsifiers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.compression import places
from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout, Placed, PlacedLayout
from fedsim.compression.payload import (
    Factors,
    FactorsLayout,
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
from fedsim.wire import decode, encode, longest, size
from fedsim.wire.coding import bounds


def kept_rows(layout: ValuesLayout | LevelsLayout, n: int, generator: np.random.Generator) -> Values | Levels:
    if isinstance(layout, ValuesLayout):
        octets = generator.bytes(n * layout.d * layout.dtype.itemsize)  # any floats, NaN too
        kind = np.float32 if layout.dtype == torch.float32 else np.float64
        return Values(layout, torch.from_numpy(np.frombuffer(octets, kind).reshape(n, layout.d).copy()))
    levels = generator.integers(-layout.levels, layout.levels + 1, (n, layout.d), np.int32)
    levels *= generator.random((n, layout.d)) < generator.choice([0.1, 1.0])
    return Levels(layout, torch.from_numpy(levels), torch.ones(n, layout.buckets))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    d = draw(st.integers(1, 200) | st.integers(1, 8))
    k = draw(st.integers(1, d) | st.just(d) | st.integers(1, -(-d // 20)))
    kept = draw(
        st.sampled_from([ValuesLayout(k), ValuesLayout(k, torch.float64), LevelsLayout(k, 1, k), LevelsLayout(k, 7, 5)])
    )
    blocks = draw(st.integers(1, 9) | st.sampled_from([256, 257]))
    shape = draw(st.integers(1, d))
    return draw(
        st.sampled_from(
            [
                PlacedLayout(d, k, kept),
                DrawnLayout(d, k, 1, kept),
                DrawnLayout(d, -(-d // blocks), blocks, ValuesLayout(-(-d // blocks))),
                MaskedLayout(d, draw(st.sampled_from([1, 2**30, 2**31, 2**32]))),
                FactorsLayout(d, -(-d // shape), shape, draw(st.integers(1, 3))),
            ]
        )
    )


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    layout, n = draw(layouts()), draw(st.integers(0, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if isinstance(layout, FactorsLayout):
        left, right = (torch.randn(n, layout.rank, size) for size in (layout.rows, layout.columns))
        return Factors(layout, left, right)
    seeds = torch.from_numpy(generator.integers(0, 2**32, n))
    if isinstance(layout, MaskedLayout):
        values = kept_rows(ValuesLayout(layout.d), n, generator).values
        return Masked(layout, seeds, torch.where(places.mask(layout, seeds), values, torch.zeros(())))
    assert isinstance(layout, PlacedLayout | DrawnLayout)
    kept = kept_rows(layout.kept, n, generator)
    if isinstance(layout, PlacedLayout):
        reach = draw(st.integers(layout.k, layout.d))  # all in front, or anywhere
        chosen = [np.sort(generator.permutation(reach)[: layout.k]) for _ in range(n)]
        return Placed(layout, torch.from_numpy(np.array(chosen, np.int32).reshape(n, layout.k)), kept)
    numbers = torch.from_numpy(generator.integers(0, layout.blocks, n))
    if isinstance(kept, Values):
        beyond = places.drawn(layout, seeds, numbers) >= layout.d
        kept = replace(kept, values=torch.where(beyond, torch.zeros((), dtype=kept.values.dtype), kept.values))
    return Drawn(layout, seeds, numbers, kept)


def same(one: Payload, other: Payload) -> bool:
    bytes_of = [[part.contiguous().numpy().tobytes() for part in parts(payload).values()] for payload in (one, other)]
    return one.layout == other.layout and bytes_of[0] == bytes_of[1]


def refused_or_canonical(message: bytes, layout: Layout) -> None:
    try:
        payload = decode([message], layout)
    except WireError:
        return
    assert encode(payload) == [message]
    assert size(payload).tolist() == [8 * len(message)]


@settings(max_examples=300)
@given(payloads())
def test_round_trip_and_length(payload: Payload) -> None:
    messages = encode(payload)
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    least, most = bounds(payload.layout)
    assert all(least <= len(message) <= most for message in messages)
    assert same(decode(messages, payload.layout), payload)
    assert [encode(row(payload, i))[0] for i in range(len(messages))] == messages


@settings(max_examples=300)
@given(payloads(), st.data())
def test_mutated_messages(payload: Payload, data: st.DataObject) -> None:
    for message in encode(payload):
        damaged = bytearray(message)
        for at in data.draw(st.lists(st.integers(0, min(len(damaged) - 1, 30)), min_size=1, max_size=3)):
            damaged[at] = data.draw(st.integers(0, 255))
        refused_or_canonical(bytes(damaged), payload.layout)
        cut = data.draw(st.integers(0, len(message)))
        refused_or_canonical(message[:cut], payload.layout)
        refused_or_canonical(message[:cut] + message[cut + 1 :], payload.layout)
        refused_or_canonical(message + data.draw(st.binary(min_size=1, max_size=9)), payload.layout)


@settings(max_examples=300)
@given(layouts(), st.data())
def test_any_bytes(layout: Layout, data: st.DataObject) -> None:
    least, most = bounds(layout)
    length = data.draw(st.integers(least, most))
    start = data.draw(st.binary(max_size=min(length, 60)))
    refused_or_canonical(start + bytes([data.draw(st.integers(0, 255))]) * (length - len(start)), layout)


@pytest.mark.parametrize("d", range(1, 11))
def test_bounds_of_places_are_reached(d: int) -> None:
    """All sets of all sizes."""
    for k in range(1, d + 1):
        layout = PlacedLayout(d, k, ValuesLayout(k))
        sets = torch.tensor(list(combinations(range(d), k)), dtype=torch.int32)
        payload = Placed(layout, sets, Values(layout.kept, torch.zeros(len(sets), k)))
        lengths = {len(message) for message in encode(payload)}
        assert (min(lengths), max(lengths)) == bounds(layout)
        assert same(decode(encode(payload), layout), payload)


@given(st.integers(1, 5000), st.data())
def test_no_places_have_a_longer_code_than_the_last(d: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d))
    layout = PlacedLayout(d, k, ValuesLayout(k))
    payload = Placed(layout, torch.arange(d - k, d, dtype=torch.int32)[None], Values(layout.kept, torch.zeros(1, k)))
    assert size(payload).tolist() == [8 * longest(layout)]
    some = np.sort(np.random.default_rng(d).permutation(d)[:k]).astype(np.int32)
    other = replace(payload, places=torch.from_numpy(some)[None])
    assert int(size(other)) <= 8 * longest(layout)


def test_bounds_of_the_others_are_reached() -> None:
    for layout, seeds in ((MaskedLayout(9, 2**32), [5]), (MaskedLayout(1, 2**31), range(40))):
        numbers = torch.tensor(list(seeds))
        mask = places.mask(layout, numbers)
        lengths = {len(message) for message in encode(Masked(layout, numbers, mask.float()))}
        assert max(lengths) == longest(layout)
        assert layout.d == 9 or min(lengths) == 4
    assert bounds(DrawnLayout(9, 2, 1, LevelsLayout(2, 1, 2))) == (4 + 4, 4 + 4 + 1)
    assert [bounds(DrawnLayout(9, 1, blocks, ValuesLayout(1)))[1] for blocks in (1, 256, 257, 2**16 + 1)] == [
        8,
        9,
        10,
        11,
    ]
    assert bounds(FactorsLayout(9, 3, 3, 2)) == (48, 48)


PLACED = Placed(
    PlacedLayout(5, 2, ValuesLayout(2)),
    torch.tensor([[1, 3]], dtype=torch.int32),
    Values(ValuesLayout(2), torch.ones(1, 2)),
)
DRAWN = Drawn(
    DrawnLayout(5, 2, 3, ValuesLayout(2)),
    torch.tensor([7]),
    torch.tensor([2]),
    Values(ValuesLayout(2), torch.ones(1, 2)),
)
MASKED = Masked(MaskedLayout(3, 2**32), torch.tensor([7]), torch.ones(1, 3))
FACTORS = Factors(FactorsLayout(5, 3, 2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 2))
ONES = torch.ones(1, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (replace(PLACED, layout=PlacedLayout(5, 0, ValuesLayout(0))), "no wire format"),
        (replace(PLACED, layout=PlacedLayout(1, 2, ValuesLayout(2))), "no wire format"),
        (replace(PLACED, layout=PlacedLayout(5, 2, ValuesLayout(3))), "no wire format"),
        (replace(PLACED, layout=PlacedLayout(2**31, 2, ValuesLayout(2))), "no wire format"),
        (replace(PLACED, places=PLACED.places.to(torch.int64)), "int64"),
        (replace(PLACED, places=PLACED.places[0]), r"\[2\], expected"),
        (replace(PLACED, places=PLACED.places[:, :1]), r"\[1, 1\], expected"),
        (replace(PLACED, places=ONES), "ascending"),
        (replace(PLACED, places=ONES * torch.tensor([3, 2])), "int64|ascending"),
        (replace(PLACED, places=torch.tensor([[-1, 3]], dtype=torch.int32)), "ascending"),
        (replace(PLACED, places=torch.tensor([[1, 5]], dtype=torch.int32)), "ascending"),
        (replace(PLACED, kept=Values(ValuesLayout(2), torch.ones(1, 3))), "expected torch.float32"),
        (replace(DRAWN, layout=DrawnLayout(5, 0, 3, ValuesLayout(0))), "no wire format"),
        (replace(DRAWN, layout=DrawnLayout(5, 2, 0, ValuesLayout(2))), "no wire format"),
        (replace(DRAWN, layout=DrawnLayout(5, 2, 2**30, ValuesLayout(2))), "no wire format"),
        (replace(DRAWN, layout=DrawnLayout(5, 2, 3, ValuesLayout(1))), "no wire format"),
        (replace(DRAWN, seeds=torch.tensor([2**32])), "seeds are .* to 4294967295"),
        (replace(DRAWN, seeds=torch.tensor([-1])), "seeds are"),
        (replace(DRAWN, seeds=torch.tensor([1.0])), "seeds are torch.float32"),
        (replace(DRAWN, numbers=torch.tensor([3])), "blocks are .* to 2"),
        (replace(DRAWN, numbers=torch.tensor([[1]])), "blocks are"),
        (replace(MASKED, layout=MaskedLayout(0, 1)), "no wire format"),
        (replace(MASKED, layout=MaskedLayout(3, 0)), "no wire format"),
        (replace(MASKED, layout=MaskedLayout(3, 2**32 + 1)), "no wire format"),
        (replace(MASKED, values=torch.ones(1, 4)), r"\[1, 4\], expected torch.float32\[1, 3\]"),
        (replace(MASKED, values=torch.ones(1, 3, dtype=torch.float64)), "float64"),
        (replace(MASKED, layout=MaskedLayout(3, 1)), "outside the mask"),
        (replace(MASKED, layout=MaskedLayout(3, 1), values=-torch.zeros(1, 3)), "outside the mask"),
        (replace(FACTORS, layout=FactorsLayout(5, 2, 2, 1)), "no wire format"),
        (replace(FACTORS, layout=FactorsLayout(5, 3, 2, 0)), "no wire format"),
        (replace(FACTORS, left=torch.ones(1, 1, 4)), r"factors are torch.float32\[1, 1, 4\]"),
        (replace(FACTORS, right=torch.ones(1, 1, 2, dtype=torch.float64)), "factors are"),
    ],
)
def test_payloads_that_do_not_fit_are_refused(payload: Payload, says: str) -> None:
    for call in (encode, size):
        with pytest.raises(WireError, match=says):
            call(payload)


def test_another_code_for_the_same_places_is_refused() -> None:
    """The shortest code alone is read: of 40 coordinates the first two, by each code."""
    layout = PlacedLayout(40, 2, ValuesLayout(2))
    codes = {
        "rice 0": "00000 00",
        "rice 1": "00001 0000",
        "fixed": "11110 000000 000001",
        "padded with ones": "00000 00 1",
    }
    for name, bits in codes.items():
        bits = bits.replace(" ", "")
        bits += "0" * (-len(bits) % 8)
        head = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
        if name == "rice 0":
            assert encode(decode([head + bytes(8)], layout)) == [head + bytes(8)]
        else:
            with pytest.raises(WireError, match="encoding of its places"):
                decode([head + bytes(8)], layout)


@pytest.mark.parametrize(
    "bits",
    [
        "11110 000001 000001",  # a place twice
        "11110 000101 000001",  # descending
        "11110 000101 101000",  # 40
        "11111 11" + 38 * "0",  # a code that there is not
        "00100 0000 1111 1",  # two remainders, and no zero for the gaps
        "11101" + 43 * "0",  # too short for its remainders
        "00000 0" + 42 * "1",  # one zero for two gaps
        "00011 000 000" + 30 * "1" + "0" + 6 * "1" + "0",  # beyond the row
    ],
)
def test_what_is_no_code_is_refused(bits: str) -> None:
    layout = PlacedLayout(40, 2, ValuesLayout(2))
    bits = bits.replace(" ", "")
    bits += "0" * (-len(bits) % 8)
    head = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    (_, most) = bounds(layout)
    for filler in (b"", b"\xff" * 8):
        with pytest.raises(WireError):
            decode([(head + filler)[:most]], layout)


def test_zeros_stand_beyond_the_row() -> None:
    """5 coordinates in 3 blocks of 2: one block has a place too many, and +0.0 there."""
    layout = DRAWN.layout
    (beyond,) = (
        number for number in range(3) if (places.drawn(layout, torch.tensor([7]), torch.tensor([number])) >= 5).any()
    )
    for number in range(3):
        message = (7).to_bytes(4, "little") + bytes([number])
        zero = decode([message + bytes(8)], layout)
        assert isinstance(zero, Drawn)
        if number == beyond:
            with pytest.raises(WireError, match="beyond the end"):
                decode([message + bytes(7) + b"\x80"], layout)  # -0.0
        else:
            decode([message + bytes(7) + b"\x80"], layout)
    with pytest.raises(WireError, match="block 3 of an order of 3"):
        decode([(7).to_bytes(4, "little") + bytes([3]) + bytes(8)], layout)
