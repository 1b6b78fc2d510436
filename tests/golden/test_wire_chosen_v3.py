"""Version 3 of messages of which the receiver is told, or draws, the places: byte for byte, as ``test_wire_v3``.

The places that a seed means are part of the format. They were compared with those of ``tests/oracle``.
"""

from __future__ import annotations

import pytest
import torch

from fedsim.compression import Bernoulli, Identity, LowRank, PermK, Quantize, RandK, SparseTernary, TopK
from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout, Placed, PlacedLayout
from fedsim.compression.payload import (
    Factors,
    FactorsLayout,
    Levels,
    LevelsLayout,
    Payload,
    Values,
    ValuesLayout,
    parts,
)
from fedsim.randomness import Purpose, Stream
from fedsim.wire import decode, encode, size


def placed(d: int, places: list[int]) -> Placed:
    k = len(places)
    kept = Values(ValuesLayout(k), torch.tensor([[1.0] * k]))
    return Placed(PlacedLayout(d, k, kept.layout), torch.tensor([places], dtype=torch.int32), kept)


LEVELS = Levels(LevelsLayout(3, 1, 3), torch.tensor([[1, 0, -1]], dtype=torch.int32), torch.tensor([[2.0]]))
ONE = "0000803f"

MESSAGES: dict[str, tuple[Payload, str]] = {
    # 00010 (b = 2), gap mod 4 of the gaps 3, 13, 5: 11 01 01; then 0, 1110, 10 and six zeros of padding
    "places by gaps": (placed(30, [3, 17, 23]), f"16ae80 {ONE * 3}"),
    # 00000 (b = 0), the gaps 1, 0, 0, 1, 0, 0: 10 0 0 10 0 0; three zeros of padding
    "places in a bitmap": (placed(8, [1, 2, 3, 5, 6, 7]), f"0440 {ONE * 6}"),
    # 11110, 62 and 63 in six bits, seven zeros of padding
    "places in a table": (placed(64, [62, 63]), f"f7df80 {ONE * 2}"),
    "every place": (placed(2, [0, 1]), ONE * 2),
    # 00000 (b = 0), the gaps 0, 1, 0: 0 10 0 and seven zeros of padding; then the levels' own message
    "levels at places": (
        Placed(PlacedLayout(9, 3, LEVELS.layout), torch.tensor([[0, 2, 3]], dtype=torch.int32), LEVELS),
        "0200 00000040 c0",
    ),
    "a seed": (
        Drawn(
            DrawnLayout(9, 1, 1, ValuesLayout(1)), torch.tensor([0x01020304]), torch.tensor([0]), placed(9, [0]).kept
        ),
        f"04030201 {ONE}",
    ),
    "a seed and a block": (
        Drawn(
            DrawnLayout(300, 1, 300, ValuesLayout(1)),
            torch.tensor([0xFFFFFFFF]),
            torch.tensor([258]),
            placed(9, [0]).kept,
        ),
        f"ffffffff 0201 {ONE}",
    ),
    "a mask": (
        Masked(MaskedLayout(8, 2**30), torch.tensor([5]), torch.tensor([[0, 0, 0, 0, 0, 1.0, 0, 0]])),
        f"05000000 {ONE}",
    ),
    "factors": (
        Factors(FactorsLayout(5, 3, 2, 1), torch.tensor([[[1.0, 0, 0]]]), torch.tensor([[[-2.5, 1.0]]])),
        f"{ONE} 00000000 00000000 000020c0 {ONE}",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    payload, text = MESSAGES[name]
    expected = bytes.fromhex(text)
    assert encode(payload) == [expected]
    assert size(payload).tolist() == [8 * len(expected)]
    received = decode([expected], payload.layout)
    assert received.layout == payload.layout
    assert all(torch.equal(part, parts(payload)[key]) for key, part in parts(received).items())


ROW = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0]])
COMPRESSED = {
    RandK(0.25): "403b1ba6 000000c1 0000a041",
    RandK(0.25, values=Quantize(2)): "403b1ba6 4653ac41 60d6",
    Bernoulli(0.25): "403b1ba6 000000c1 0000a041 0000c0c1 000000c2",
    PermK(3): "c6e890d0 02 000040c1 000090c1 0000c0c1",
    TopK(0.25): "f6e0 0000e040 000000c1",
    TopK(0.25, values=Identity("float64")): "f6e0 0000000000001c40 00000000000020c0",
    SparseTernary(0.25): "0000f040 7c02",
    LowRank(1): "89c150be a75bc0be 452b0cbf b72838bf f3aa11c1 17362f41",
}


@pytest.mark.parametrize("compressor", COMPRESSED, ids=repr)
def test_what_compressors_send(compressor: RandK) -> None:
    """Client 2 in round 1 of seed 7."""
    payload = compressor.compress(ROW, Stream(7, Purpose.UPLINK, 1), torch.tensor([2]))
    assert encode(payload)[0].hex() == COMPRESSED[compressor].replace(" ", "")
