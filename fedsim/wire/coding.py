"""Payload rows <-> bytes: one message a row, lossless, canonical (one row has one encoding, and only that one is read).

Each layout has a module with its format: ``values``, ``levels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedsim.compression.payload import Layout, LevelsLayout, Payload, Received, Sparse, ValuesLayout
from fedsim.errors import WireError
from fedsim.wire import levels, values


@dataclass(frozen=True, slots=True)
class Code:
    """The format of one kind of layout. bounds: bytes of the shortest and longest message; total: it needs no proof
    that a message is canonical, as every string of the right length is one."""

    bounds: Callable[[Any], tuple[int, int]]
    size: Callable[[Any], Tensor]
    encode: Callable[[Any], list[bytes]]
    decode: Callable[[Sequence[bytes], Any], Any]
    total: bool = False


CODES: dict[type, Code] = {
    ValuesLayout: Code(values.bounds, values.size, values.encode, values.decode, total=True),
    LevelsLayout: Code(levels.bounds, levels.size, levels.encode, levels.decode),
}


def longest(layout: Layout) -> int:
    """Bytes that no message of this layout exceeds, and one has. Raises WireError if it has no format."""
    return bounds(layout)[1]


def bounds(layout: Layout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message. Raises WireError if the layout has no format."""
    return CODES[type(layout)].bounds(layout)


def size(payload: Received) -> Tensor:
    """Bits of each row's message, int64[n]: 8 * the length of its encoding, without making it.

    Raises WireError where ``encode`` does.
    """
    if isinstance(payload, Sparse):
        return levels.sparse_size(payload)
    return CODES[type(payload.layout)].size(payload)


def encode(payload: Payload) -> list[bytes]:
    """Payload of n rows, on any device -> n messages.

    Raises WireError if the payload does not fit its layout: shape, type, a level beyond s or in a bucket of norm zero,
    a norm that is not finite or carries a minus sign.
    """
    return CODES[type(payload.layout)].encode(payload)


def decode(messages: Sequence[bytes], layout: Layout) -> Payload:
    """n messages -> payload of n rows on the CPU; inverse of ``encode``.

    Lengths are checked before anything is allocated; work and memory are bounded by n * d. Values may be infinite or
    NaN. Raises WireError on anything that ``encode`` does not write, and nothing else.
    """
    code = CODES[type(layout)]
    least, most = bounds(layout)
    for i, message in enumerate(messages):
        if not least <= len(message) <= most:
            raise WireError(f"message {i} has {len(message)} bytes, expected {least} to {most} for {layout}")
    payload: Payload = code.decode(messages, layout)
    for i, (message, canonical) in enumerate(zip(messages, () if code.total else code.encode(payload), strict=False)):
        if message != canonical:
            raise WireError(
                f"message {i} is not the encoding of the row it holds; it was damaged or made by other code"
            )
    return payload
