"""Rows in parts <-> bytes; see ``coding`` for the calls.

The messages of the parts in order. One whose layout has messages of several lengths is preceded by its own, in bytes,
as a LEB128 varint (see ``frame``), but for the last part: its length is what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.compression.payload import Parts, PartsLayout
from fedsim.errors import WireError
from fedsim.wire.frame import read_varint, varint, varint_bytes
from fedsim.wire.kept import Bounds, Decode, Encode, Size

MAX_PARTS = 2**16


def of_each(
    part_bounds: Bounds, part_size: Size, part_encode: Encode, part_decode: Decode
) -> tuple[Bounds, Size, Encode, Decode]:
    """The format: the calls of ``coding`` that code one part -> the same four."""

    def varying(layout: PartsLayout) -> list[bool]:
        """Which parts are preceded by their length."""
        ends = [part_bounds(part) for part in layout.parts]
        return [least != most for least, most in ends[:-1]] + [False]

    def bounds(layout: PartsLayout) -> tuple[int, int]:
        if not 1 <= len(layout.parts) <= MAX_PARTS:
            raise WireError(f"a row in {len(layout.parts)} parts has no wire format; use 1 to {MAX_PARTS}")
        least = most = 0
        for told, part in zip(varying(layout), layout.parts, strict=True):
            low, high = part_bounds(part)
            least, most = least + low + told * varint_bytes(low), most + high + told * varint_bytes(high)
        return least, most

    def size(payload: Parts) -> Tensor:
        total = torch.zeros((), dtype=torch.int64)
        for told, part in zip(varying(payload.layout), payload.parts, strict=True):
            bits = part_size(part).cpu()
            total = total + bits + told * 8 * varints_bytes(bits // 8)
        return total

    def encode(payload: Parts) -> list[bytes]:
        columns = []
        for told, part in zip(varying(payload.layout), payload.parts, strict=True):
            columns.append([varint(len(message)) * told + message for message in part_encode(part)])
        return [b"".join(pieces) for pieces in zip(*columns, strict=True)]

    def decode(messages: Sequence[bytes], layout: PartsLayout) -> Parts:
        columns: list[list[bytes]] = [[] for _ in layout.parts]
        for message in messages:
            for column, piece in zip(columns, pieces_of(message, layout), strict=True):
                column.append(piece)
        found = [part_decode(column, part) for column, part in zip(columns, layout.parts, strict=True)]
        return Parts(layout, tuple(found))

    def pieces_of(message: bytes, layout: PartsLayout) -> list[bytes]:
        pieces, position = [], 0
        for i, (told, part) in enumerate(zip(varying(layout), layout.parts, strict=True)):
            length = part_bounds(part)[1]
            if told:
                length, position = read_varint(message, position)
            elif i == len(layout.parts) - 1:
                length = len(message) - position
            if length > len(message) - position or length < 0:
                raise WireError(f"part {i} announces {length} bytes, {len(message) - position} are left")
            pieces.append(message[position : position + length])
            position += length
        return pieces

    return bounds, size, encode, decode


def varints_bytes(numbers: Tensor) -> Tensor:
    """``varint_bytes`` of int64[n] below 2^53: frexp's exponent is the bit length of a whole number."""
    lengths = torch.frexp(numbers.clamp(min=1).to(torch.float64)).exponent
    return (lengths.to(torch.int64) + 6) // 7
