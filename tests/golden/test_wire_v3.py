"""Version 3 of the wire, byte for byte.

A failure here means that peers and stored frames of version 3 are no longer understood: raise ``frame.VERSION``, and
keep this file for as long as version 3 is read. The bytes were compared with the slow codec of ``tests/oracle``.
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
    "no nonzero level": (row_of([0, 0, 0], [1.5], s=1, bucket=3), "0000c03f 5f"),
    "few nonzeros, s = 1": (
        row_of(scattered(650, {7: 1, 41: -1, 42: 1, 300: -1, 649: 1}), [0.75], 1, 650),
        "0000403f 1a8de639b8039b",
    ),
    "few nonzeros, s = 4": (row_of(scattered(40, {3: 1, 4: -2, 17: 4, 39: -1}), [3.0], 4, 40), "00004040 1af97f60d6c5"),
    "many nonzeros, s = 1": (row_of([1, -1, 0] * 13 + [-1, 1], [1.0], s=1, bucket=41), "0000803f fe29626b4b3e79a113fd"),
    "many nonzeros, s = 16, a bucket of norm zero": (
        row_of([16, -16, 7, -3, 0, 0, 0, 0, 0, 0, 5, -11, 16], [2.5, 0.0, 1e-3], s=16, bucket=5),
        "00002040 00000000 6f12833a 07b0ab26973aacd6",
    ),
    # 11111111; 8 and 12 in 5 bits each; the bit lengths 9, 7, 0, 0, 8 of the counts 500, 100, 0, 0, 200 in unary; ...
    "entropy, s = 8": (
        row_of([0, 0, 1, 0, 4, 0, 0, 4] * 100, [1.0], s=8, bucket=800),
        "0000803fff433fefe3fdf240c4990b404c83dfaed1e6742ae6091d51c188224ead34d762b3d10c55e3280bb59fe54980c2159f7d0a40"
        "bad225ce993a14256ca5573f46b0eb28d043e5d571a963e495f2811e214f43a9d833711d064769b41ec9a5a84b21102dbaec4bd2735e"
        "a1b563fc95128218f59a2f622d5b45ec633635349c21810aa6863c7cb30b51057aca574013",
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
    "largest levels of a quantizer": (row_of([32767, -32767], [1.0], s=32767, bucket=2), "0000803f e622390789"),
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
    "MODEL": (FRAME, f"4653 03 01 72756e2d30303031 {ADDRESS} 04000000 8274481b 626f6479"),
    "UPDATES": (
        replace(FRAME, kind=Kind.UPDATES, body=pack_messages([b"one", b"", bytes(200)])),
        f"4653 03 02 72756e2d30303031 {ADDRESS} cf000000 63d296e3 036f6e65 00 c801 {'00' * 200}",
    ),
    "UPLOAD": (replace(FRAME, kind=Kind.UPLOAD), f"4653 03 03 72756e2d30303031 {ADDRESS} 04000000 fd5cd9c1 626f6479"),
    "MEMORY": (replace(FRAME, kind=Kind.MEMORY), f"4653 03 04 72756e2d30303031 {ADDRESS} 04000000 2235ebf5 626f6479"),
    "MOMENTS": (replace(FRAME, kind=Kind.MOMENTS), f"4653 03 05 72756e2d30303031 {ADDRESS} 04000000 3d221b75 626f6479"),
    "SHARPNESS": (
        replace(FRAME, kind=Kind.SHARPNESS),
        f"4653 03 06 72756e2d30303031 {ADDRESS} 04000000 5d1d7a2f 626f6479",
    ),
    "REFRESH": (replace(FRAME, kind=Kind.REFRESH), f"4653 03 07 72756e2d30303031 {ADDRESS} 04000000 420a8aaf 626f6479"),
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
