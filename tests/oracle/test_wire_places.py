"""Places: the code against one written from the docstring of ``fedsim.wire.placed``, with strings of "0" and "1", and
what a seed draws against sorting the words of the reference's own Philox.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch

from fedsim.compression import places
from fedsim.compression.chosen import DrawnLayout, MaskedLayout, Placed, PlacedLayout
from fedsim.compression.payload import Values, ValuesLayout
from fedsim.wire.coding import decode, encode, size
from tests.oracle import reference

PLACES = 10


def slow_codes(chosen: list[int], d: int) -> list[str]:
    gaps = [place - before - 1 for before, place in zip([-1, *chosen[:-1]], chosen, strict=True)]
    found = []
    for b in range(30):
        plane = "".join(f"{gap % 2**b:0{b}b}" for gap in gaps) if b else ""
        found.append(f"{b:05b}" + plane + "".join("1" * (gap // 2**b) + "0" for gap in gaps))
    width = math.ceil(math.log2(d))
    found.append(f"{30:05b}" + "".join(f"{place:0{width}b}" for place in chosen))
    return found


def slow_head(chosen: list[int], d: int) -> bytes:
    if len(chosen) == d:
        return b""
    bits = min(slow_codes(chosen, d), key=len)  # the first of equal ones
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def random_sets(generator: np.random.Generator) -> tuple[int, list[list[int]]]:
    d = int(generator.choice([1, 2, 3, 8, 33, 64, 65, 200, 1000]))
    k = int(min(d, generator.choice([1, 2, 3, d // 20 + 1, d // 3 + 1, d // 2 + 1, d])))
    reach = int(generator.integers(k, d + 1))
    start = int(generator.choice([0, d - reach]))
    return d, [sorted((start + generator.permutation(reach)[:k]).tolist()) for _ in range(3)]


@pytest.mark.parametrize("seed", range(120))
def test_same_bytes_as_the_slow_code(seed: int) -> None:
    d, sets = random_sets(np.random.default_rng(seed))
    k = len(sets[0])
    layout, values = PlacedLayout(d, k, ValuesLayout(k)), torch.randn(3, k)
    payload = Placed(layout, torch.tensor(sets, dtype=torch.int32), Values(ValuesLayout(k), values))
    messages = encode(payload)
    for message, chosen, numbers in zip(messages, sets, values.tolist(), strict=True):
        assert message == slow_head(chosen, d) + struct.pack(f"<{k}f", *numbers)
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    assert torch.equal(decode(messages, layout).places, payload.places)


def test_every_kind_of_code_is_used() -> None:
    used: set[int] = set()
    for seed in range(120):
        d, sets = random_sets(np.random.default_rng(seed))
        heads = [slow_head(chosen, d) for chosen in sets if len(chosen) < d]
        used |= {head[0] >> 3 for head in heads}
        assert all(8 * len(head) <= 5 + d + 7 for head in heads)  # never longer than a bitmap
    assert used >= {0, 1, 2, 3, 4, 30}


@pytest.mark.parametrize("code", range(0, 30, 4))
def test_gaps_far_apart(code: int) -> None:
    """Four gaps of about 2^code, beyond what a row of 1000 shows."""
    chosen = [int(place) for place in np.cumsum([2**code + 1] * 4) - 1]
    layout = PlacedLayout(2**31 - 1, 4, ValuesLayout(4))
    payload = Placed(layout, torch.tensor([chosen], dtype=torch.int32), Values(ValuesLayout(4), torch.ones(1, 4)))
    (message,) = encode(payload)
    assert message[0] >> 3 in (code, code - 1 if code else 0)
    assert torch.equal(decode([message], layout).places, payload.places)
    assert size(payload).tolist() == [8 * len(message)]


def test_one_place_far_out() -> None:
    """No remainder is long enough for it: a table takes 31 bits, 29 remainder bits would take 30 and 1110."""
    layout = PlacedLayout(2**31 - 1, 1, ValuesLayout(1))
    last = torch.tensor([[2**31 - 2]], dtype=torch.int32)
    (message,) = encode(Placed(layout, last, Values(ValuesLayout(1), torch.ones(1, 1))))
    assert message[:-4] == bytes.fromhex("f7ffffffe0")  # 11110, then thirty ones and a zero


@pytest.mark.parametrize(
    ("d", "k", "blocks"), [(1, 1, 1), (9, 4, 1), (300, 7, 1), (300, 300, 1), (12, 4, 3), (13, 5, 3), (3, 1, 9)]
)
def test_a_seed_orders_places_by_its_words(d: int, k: int, blocks: int) -> None:
    layout = DrawnLayout(d, k, blocks, ValuesLayout(k))
    width = max(d, k * blocks)
    for seed in (0, 1, 77, 2**32 - 1):
        words = reference.words(0, PLACES, 0, seed, width).tolist()
        order = sorted(range(width), key=lambda j: (words[j], j))
        numbers = torch.arange(blocks)
        found = places.drawn(layout, torch.full((blocks,), seed), numbers).tolist()
        assert found == [sorted(order[k * b : k * (b + 1)]) for b in range(blocks)]


def test_a_cohort_is_ordered_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, seeds = DrawnLayout(50, 10, 5, ValuesLayout(10)), torch.tensor([5, 9, 5, 5, 2**32 - 1, 9, 1])
    numbers = torch.tensor([0, 1, 2, 0, 4, 3, 3])
    whole = places.drawn(layout, seeds, numbers)
    monkeypatch.setattr(places, "_AT_ONCE", 150)
    assert torch.equal(places.drawn(layout, seeds, numbers), whole)
    assert places.drawn(layout, seeds[:0], numbers[:0]).shape == (0, 10)


def test_a_seed_draws_a_mask_by_its_words() -> None:
    for chance in (1, 2**30, 3 * 2**30, 2**32):
        found = places.mask(MaskedLayout(40, chance), torch.tensor([3, 2**32 - 1])).tolist()
        assert found == [[word < chance for word in reference.words(0, PLACES, 0, seed, 40)] for seed in (3, 2**32 - 1)]


def test_a_client_draws_its_seed_apart_from_its_noise() -> None:
    """The seed is the first word of the stream whose index is 2^23 more."""
    noise = places.Stream(3, places.Purpose.UPLINK, 5, 2)
    expected = [int(reference.words(3, 3, 5, client, 1, 2 + 2**23)[0]) for client in (0, 8)]
    assert places.seeds(noise, torch.tensor([0, 8])).tolist() == expected
