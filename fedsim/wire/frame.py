"""Frames: one body of bytes with a header that says whose it is. Little-endian, ``HEADER_BYTES`` = 40, then the body.

    offset  bytes   field     meaning
         0      2   magic     "FS"
         2      1   version   3
         3      1   kind      what the body is (``Kind``)
         4      8   run       the run it belongs to
        12      4   round     u32
        16      4   client    u32; 2^32 - 1 is the server (``fedsim.randomness.SERVER``)
        20      4   epoch     u32, of the memory that both ends of the link hold
        24      8   digest    of the link's history (``chain``)
        32      4   length    u32, bytes of the body
        36      4   crc       u32, CRC-32 (zlib's) of the 36 bytes before it and the body

The body of UPDATES is any number of messages, each after its length: a LEB128 varint (7 bits a byte, low bits first,
the high bit set on all bytes but the last, no needless last zero).

Version 2 had one more code for levels than version 1. In version 3 levels are sent by an arithmetic code.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from fedsim.errors import WireError

HEADER_BYTES = 40
VERSION = 3
MAGIC = b"FS"
RUN_BYTES = 8
DIGEST_BYTES = 8

GENESIS = bytes(DIGEST_BYTES)
"""The digest of a link on which nothing was sent."""

_FIELDS = struct.Struct("<2sBB8sIII8sI")
_CRC = struct.Struct("<I")
_U32 = 0xFFFFFFFF
_VARINT_BYTES = 5
"""Bytes of the longest varint: a body is shorter than 2^32 bytes."""


class Kind(IntEnum):
    """What a body is. The values are part of the format: never reuse or renumber one."""

    MODEL = 1
    UPDATES = 2
    UPLOAD = 3
    MEMORY = 4
    MOMENTS = 5
    SHARPNESS = 6
    REFRESH = 7


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Frame:
    """One body and its address. run, digest: 8 bytes each; round, client, epoch: unsigned 32-bit numbers."""

    kind: Kind
    run: bytes
    round: int
    client: int
    epoch: int
    digest: bytes
    body: bytes


def encode_frame(frame: Frame) -> bytes:
    """Frame -> HEADER_BYTES + len(frame.body) bytes. Raises WireError if a field does not fit its place."""
    for name, value, expected in (("run", frame.run, RUN_BYTES), ("digest", frame.digest, DIGEST_BYTES)):
        if len(value) != expected:  # struct would pad or cut it without a word
            raise WireError(f"{name} of a frame has {len(value)} bytes, expected {expected}")
    numbers = {"round": frame.round, "client": frame.client, "epoch": frame.epoch, "body length": len(frame.body)}
    for name, number in numbers.items():
        if not 0 <= number <= _U32:
            raise WireError(f"{name} of a frame is {number}, expected 0 to {_U32}")
    place = (frame.run, frame.round, frame.client, frame.epoch, frame.digest)
    header = _FIELDS.pack(MAGIC, VERSION, Kind(frame.kind), *place, len(frame.body))
    return header + _CRC.pack(_crc(header, frame.body)) + frame.body


def decode_frame(data: bytes, limit: int) -> Frame:
    """Inverse of ``encode_frame`` for bodies of at most ``limit`` bytes.

    The length is checked before anything is read. Raises WireError on everything that ``encode_frame`` does not write,
    and nothing else.
    """
    if len(data) > HEADER_BYTES + limit:
        raise WireError(f"frame of {len(data)} bytes, expected at most {HEADER_BYTES} + {limit}")
    if len(data) < HEADER_BYTES:
        raise WireError(f"frame of {len(data)} bytes is cut short: its header alone has {HEADER_BYTES}")
    magic, version, kind, run, round_, client, epoch, digest, length = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"not a fedsim frame: it starts with 0x{magic.hex()}, expected 0x{MAGIC.hex()}")
    if version != VERSION:
        raise WireError(
            f"version {version}, this fedsim reads version {VERSION}; install the same fedsim on both sides"
        )
    body = bytes(data[HEADER_BYTES:])
    if len(body) != length:
        raise WireError(
            f"frame announces a body of {length} bytes and has {len(body)}; it was cut or extended on its way"
        )
    if _CRC.unpack_from(data, _FIELDS.size)[0] != _crc(data[: _FIELDS.size], body):
        raise WireError("checksum of the frame does not match; it was damaged on its way, send it again")
    if kind not in _KINDS:
        raise WireError(f"unknown kind of frame {kind}, expected one of {[f'{k.value} {k.name}' for k in Kind]}")
    return Frame(Kind(kind), run, round_, client, epoch, digest, body)


def pack_messages(messages: Sequence[bytes]) -> bytes:
    """Messages of less than 2^32 bytes -> the body of an UPDATES frame.

    >>> pack_messages([b"ab", b""])
    b'\\x02ab\\x00'
    """
    return b"".join(part for message in messages for part in (varint(len(message)), message))


def unpack_messages(body: bytes, bounds: tuple[int, int], count_limit: int) -> list[bytes]:
    """Inverse of ``pack_messages`` for at most ``count_limit`` messages. bounds: bytes of the shortest and the longest.

    The shortest counts: a million empty messages would be a frame of 1 MB. Raises WireError on everything that
    ``pack_messages`` does not write, and nothing else.
    """
    least, most = bounds
    messages: list[bytes] = []
    position, end = 0, len(body)
    while position < end:
        if len(messages) == count_limit:
            raise WireError(f"more than {count_limit} messages in one frame")
        length = body[position]
        if length > 0x7F:
            length, position = read_varint(body, position)
        else:
            position += 1
        if not least <= length <= most:
            bound = f"at most {most}" if length > most else f"at least {least}"
            raise WireError(f"message {len(messages)} announces {length} bytes, expected {bound}")
        if length > end - position:
            raise WireError(f"message {len(messages)} announces {length} bytes, {end - position} are left")
        messages.append(body[position : position + length])
        position += length
    return messages


def chain(digest: bytes, message: bytes) -> bytes:
    """Running digest of a link's history: BLAKE2b with 8 bytes of output over the digest so far and the next message.

    Equal digests at both ends mean the same messages in the same order. That tells accidents apart (a message lost,
    repeated or swapped); 8 bytes are too few against a forger. Raises WireError if ``digest`` is not 8 bytes.

    >>> chain(GENESIS, b"first").hex()
    'fbe9fe89d88190f6'
    """
    if len(digest) != DIGEST_BYTES:
        raise WireError(f"digest has {len(digest)} bytes, expected {DIGEST_BYTES}; a link starts from GENESIS")
    return hashlib.blake2b(digest + message, digest_size=DIGEST_BYTES).digest()


def varint_bytes(number: int) -> int:
    """Bytes of the length that ``pack_messages`` writes before a message of ``number`` bytes."""
    return -(-max(number, 1).bit_length() // 7)


def _crc(header: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(header))


def varint(number: int) -> bytes:
    """A number >= 0 as a LEB128 varint."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(octets) + bytes([number])


def read_varint(body: bytes, position: int) -> tuple[int, int]:
    """Inverse of ``varint``: (number, position after it). Raises WireError on what that does not write."""
    number = 0
    for i, octet in enumerate(body[position : position + _VARINT_BYTES]):
        number |= (octet & 0x7F) << 7 * i
        if octet <= 0x7F:
            if not octet and i:
                raise WireError(f"length at byte {position} is written with a needless zero byte")
            return number, position + i + 1
    raise WireError(f"length at byte {position} does not end within {_VARINT_BYTES} bytes")
