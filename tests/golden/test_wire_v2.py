"""Version 2 of the wire, byte for byte.

A failure here means that peers and stored frames of version 2 are no longer understood: raise ``frame.VERSION``, and
keep this file for as long as version 2 is read. The bytes were compared with the slow codec of ``tests/oracle``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedsim.compression.payload import Digits, DigitsLayout, Levels, LevelsLayout, Payload, Values, ValuesLayout, parts
from fedsim.wire import GENESIS, Frame, Kind, chain, decode, decode_frame, encode, encode_frame, pack_messages, size


def row_of(levels: list[int], norms: list[float], s: int, bucket: int) -> Levels:
    layout = LevelsLayout(len(levels), s, bucket)
    return Levels(layout, torch.tensor([levels], dtype=torch.int32), torch.tensor([norms]))


def digits_of(digits: list[int], scales: list[float], seeds: list[int], base: int, bucket: int) -> Digits:
    layout = DigitsLayout(len(digits), base, bucket, seeded=bool(seeds))
    scale, seed = torch.tensor([scales], dtype=torch.float32), torch.tensor([seeds], dtype=torch.int64)
    return Digits(layout, torch.tensor([digits], dtype=torch.int32), scale, seed)


def scattered(d: int, nonzero: dict[int, int]) -> list[int]:
    return [nonzero.get(i, 0) for i in range(d)]


MESSAGES: dict[str, tuple[Payload, str]] = {
    "float32": (Values(ValuesLayout(3), torch.tensor([[1.0, -2.5, float("inf")]])), "0000803f 000020c0 0000807f"),
    "float64": (
        Values(ValuesLayout(2, torch.float64), torch.tensor([[0.1, -0.0]], dtype=torch.float64)),
        "9a9999999999b93f 0000000000000080",
    ),
    "norms of zero": (row_of([0, 0, 0], [0.0, 0.0], s=1, bucket=2), "00000000 00000000"),
    "no nonzero level": (row_of([0, 0, 0], [1.5], s=1, bucket=3), "0000c03f 0f"),
    # 0110 (b = 6), then sign and gap mod 64 of the gaps 7, 33, 0, 257, 348:
    # 0 000111, 1 100001, 0 000000, 1 000001, 0 011100; then 0, 0, 0, 11110, 111110 and three ones of padding
    "sparse, s = 1": (
        row_of(scattered(650, {7: 1, 41: -1, 42: 1, 300: -1, 649: 1}), [0.75], 1, 650),
        "0000403f 60f84041383df7",
    ),
    # 0011 (b = 3), 0010 (w = 2), then sign, |level| - 1 and gap mod 8 of the gaps 3, 0, 12, 21:
    # 0 00 011, 1 01 000, 0 11 100, 1 00 101; then 0, 0, 10, 110 and one one of padding
    "sparse, s = 4": (row_of(scattered(40, {3: 1, 4: -2, 17: 4, 39: -1}), [3.0], 4, 40), "00004040 320e87252d"),
    # 1111, 39 digits of base 3 in 62 bits, 2 digits (0, 2: number 2) in 4 bits, two zeros of padding
    "dense, s = 1": (row_of([1, -1, 0] * 13 + [-1, 1], [1.0], s=1, bucket=41), "0000803f fa46532fab87afc6c8"),
    "dense, s = 16, a bucket of norm zero": (
        row_of([16, -16, 7, -3, 0, 0, 0, 0, 0, 0, 5, -11, 16], [2.5, 0.0, 1e-3], s=16, bucket=5),
        "00002040 00000000 6f12833a 047fcd2269e1f8",
    ),
    # 1111; 5 and 12 in 4 bits each; the bit lengths 5, 7, 5, 0, 0, 5 of the counts 25, 125, 25, 0, 0, 25 in unary; ...
    "entropy, s = 8": (
        row_of([0, 0, 1, 0, -1, 0, 0, 4] * 25, [1.0], s=8, bucket=200),
        "0000803ff3b3efef8faf40b0ce54f6fbf84e281f1c6d486b59b5b93d4d82e3d2f2554457ae9512c98334596912276c725da3b10a06",
    ),
    "seeded digits, fixed": (
        digits_of([3, 0, 1, 2, 0, 0, 0], [1.5, 0.0], [0x01020304], base=4, bucket=4),
        "040302010000c03f00000000c600",
    ),
    "digits without scales, entropy": (
        digits_of([0, 6, 0, 0, 9] * 40, [], [], base=511, bucket=0),
        "00027f81f8fdd2e081244a12caa2ad865244e3b223219a54b3a86d85c79163ec4e74a3e8c29acba9095c9aa5",
    ),
    "digits, one symbol": (digits_of([1] * 100, [2.0], [], base=2, bucket=100), "00000040ffa0"),
    "digits, scale of zero": (digits_of([0] * 9, [0.0], [], base=2, bucket=9), "00000000"),
    "bfloat16": (
        Values(ValuesLayout(2, torch.bfloat16), torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16)),
        "803f 20c0",
    ),
    "float16": (Values(ValuesLayout(2, torch.float16), torch.tensor([[1.0, -2.5]], dtype=torch.float16)), "003c 00c1"),
    "largest levels of a quantizer": (row_of([32767, -32767], [1.0], s=32767, bucket=2), "0000803f ffffd00020"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    payload, text = MESSAGES[name]
    expected = bytes.fromhex(text)
    assert encode(payload) == [expected]
    assert size(payload).tolist() == [8 * len(expected)]
    received = decode([expected], payload.layout)
    assert received.layout == payload.layout
    assert all(torch.equal(part, parts(payload)[name]) for name, part in parts(received).items())


FRAME = Frame(Kind.MODEL, b"run-0001", 3, 0xFFFFFFFF, 2, bytes(range(8)), b"body")
#           round    client   epoch    digest           length
ADDRESS = "03000000 ffffffff 02000000 0001020304050607"
FRAMES = {
    "MODEL": (FRAME, f"4653 02 01 72756e2d30303031 {ADDRESS} 04000000 6089c096 626f6479"),
    "UPDATES": (
        replace(FRAME, kind=Kind.UPDATES, body=pack_messages([b"one", b"", bytes(200)])),
        f"4653 02 02 72756e2d30303031 {ADDRESS} cf000000 2ed9279d 036f6e65 00 c801 {'00' * 200}",
    ),
    "UPLOAD": (replace(FRAME, kind=Kind.UPLOAD), f"4653 02 03 72756e2d30303031 {ADDRESS} 04000000 1fa1514c 626f6479"),
    "MEMORY": (replace(FRAME, kind=Kind.MEMORY), f"4653 02 04 72756e2d30303031 {ADDRESS} 04000000 c0c86378 626f6479"),
    "MOMENTS": (replace(FRAME, kind=Kind.MOMENTS), f"4653 02 05 72756e2d30303031 {ADDRESS} 04000000 dfdf93f8 626f6479"),
    "SHARPNESS": (
        replace(FRAME, kind=Kind.SHARPNESS),
        f"4653 02 06 72756e2d30303031 {ADDRESS} 04000000 bfe0f2a2 626f6479",
    ),
    "REFRESH": (replace(FRAME, kind=Kind.REFRESH), f"4653 02 07 72756e2d30303031 {ADDRESS} 04000000 a0f70222 626f6479"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name: str) -> None:
    frame, text = FRAMES[name]
    expected = bytes.fromhex(text)
    assert encode_frame(frame) == expected
    assert decode_frame(expected, 300) == frame


def test_there_is_a_frame_of_every_kind() -> None:
    assert list(FRAMES) == [kind.name for kind in Kind]


def test_history() -> None:
    digest, seen = GENESIS, []
    for message in (b"first", b"second", b""):
        digest = chain(digest, message)
        seen.append(digest.hex())
    assert seen == ["fbe9fe89d88190f6", "53a3b04bb8849822", "114d6523263e8ded"]
