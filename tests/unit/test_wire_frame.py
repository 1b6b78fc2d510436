"""What the frame's decoder and encoder say, field by field."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest

from fedsim.errors import WireError
from fedsim.wire import HEADER_BYTES, Frame, Kind, chain, decode_frame, encode_frame, pack_messages, unpack_messages
from fedsim.wire.frame import varint_bytes

FRAME = Frame(Kind.UPLOAD, b"run-0001", 3, 7, 2, b"digest-8", b"body")


def forged(**places: bytes) -> bytes:
    """FRAME with bytes put at offsets (``at4=b"..."``), under a checksum that fits."""
    data = bytearray(encode_frame(FRAME))
    for name, octets in places.items():
        at = int(name.removeprefix("at"))
        data[at : at + len(octets)] = octets
    data[36:40] = zlib.crc32(data[40:], zlib.crc32(data[:36])).to_bytes(4, "little")
    return bytes(data)


def test_places() -> None:
    data = encode_frame(FRAME)
    assert (data[:4], data[4:12], data[24:32], data[40:]) == (b"FS\x03\x03", b"run-0001", b"digest-8", b"body")
    assert [int.from_bytes(data[at : at + 4], "little") for at in (12, 16, 20, 32)] == [3, 7, 2, 4]
    assert forged() == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (encode_frame(FRAME)[: HEADER_BYTES - 1], "cut short"),
        (bytes(HEADER_BYTES + 5), r"frame of 45 bytes, expected at most 40 \+ 4"),
        (forged(at0=b"SF"), "not a fedsim frame: it starts with 0x5346, expected 0x4653"),
        (forged(at2=b"\x01"), "version 1, this fedsim reads version 3"),
        (forged(at3=b"\x00"), "unknown kind of frame 0"),
        (forged(at3=b"\xff"), "unknown kind of frame 255"),
        (forged(at32=b"\x05"), "announces a body of 5 bytes and has 4"),
        (forged()[:-1], "announces a body of 4 bytes and has 3"),
        (forged()[:-1] + b"x", "checksum"),
        (forged()[:36] + b"1234" + FRAME.body, "checksum"),
    ],
)
def test_refusals(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_frame(data, 4)


def test_the_bound_comes_before_everything() -> None:
    with pytest.raises(WireError, match="expected at most"):
        decode_frame(b"junk" * 100, 4)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (replace(FRAME, run=b"short"), "run of a frame has 5 bytes, expected 8"),
        (replace(FRAME, digest=b"nine-byte"), "digest of a frame has 9 bytes, expected 8"),
        (replace(FRAME, round=2**32), "round of a frame is 4294967296"),
        (replace(FRAME, client=-1), "client of a frame is -1"),
        (replace(FRAME, epoch=2**32), "epoch of a frame is"),
    ],
)
def test_frames_that_cannot_be_written(frame: Frame, says: str) -> None:
    with pytest.raises(WireError, match=says):
        encode_frame(frame)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\x02a", "announces 2 bytes, 1 are left"),
        (b"\x81\x00a", "needless zero"),
        (b"\x80", "does not end"),
        (b"\x80\x80\x80\x80\x80\x01", "does not end within 5 bytes"),
        (b"\xff\xff\xff\xff\x7f", "expected at most 300"),
        (b"\x01a\x00", "message 1 announces 0 bytes, expected at least 1"),
    ],
)
def test_bundles_that_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        unpack_messages(body, (1, 300), 3)


@pytest.mark.parametrize(
    ("length", "varint"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (2**14, b"\x80\x80\x01")]
)
def test_varints(length: int, varint: bytes) -> None:
    assert pack_messages([bytes(length)]) == varint + bytes(length)
    assert varint_bytes(length) == len(varint)


def test_a_digest_of_another_length() -> None:
    with pytest.raises(WireError, match="7 bytes, expected 8"):
        chain(bytes(7), b"message")
