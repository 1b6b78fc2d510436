"""Payload rows <-> bytes: one message a row, lossless, canonical (one row has one encoding, and only that one is read).

Each layout has a module with its format: ``values``, ``levels``, ``digits``, ``factors``; ``placed`` and ``drawn``,
whose messages hold that of a shorter row (``kept``); and ``parts``, whose messages hold several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedsim.compression.chosen import DrawnLayout, MaskedLayout, PlacedLayout
from fedsim.compression.payload import (
    DigitsLayout,
    FactorsLayout,
    Layout,
    LevelsLayout,
    PartsLayout,
    Payload,
    Received,
    Sparse,
    ValuesLayout,
)
from fedsim.errors import WireError
from fedsim.wire import digits, drawn, factors, kept, levels, parts, placed, values


@dataclass(frozen=True, slots=True)
class Code:
    """The format of one kind of layout. bounds: bytes of the shortest and longest message; total: its decoder itself
    refuses what is no row's encoding, or every string of the right length is one."""

    bounds: Callable[[Any], tuple[int, int]]
    size: Callable[[Any], Tensor]
    encode: Callable[[Any], list[bytes]]
    decode: Callable[[Sequence[bytes], Any], Any]
    total: bool = False


CODES: dict[type, Code] = {
    ValuesLayout: Code(values.bounds, values.size, values.encode, values.decode, total=True),
    LevelsLayout: Code(levels.bounds, levels.size, levels.encode, levels.decode, total=True),
    DigitsLayout: Code(digits.bounds, digits.size, digits.encode, digits.decode),
}


def bounds(layout: Layout) -> tuple[int, int]:
    """Bytes of the shortest and the longest message of this layout. Raises WireError if it has no format."""
    return CODES[type(layout)].bounds(layout)


def longest(layout: Layout) -> int:
    """Bytes that no message of this layout exceeds. Raises WireError if it has no format."""
    return bounds(layout)[1]


def size(payload: Received) -> Tensor:
    """Bits of each row's message, int64[n]: 8 * the length of its encoding.

    It is made only where the length of the entropy code has to be known. Raises WireError where ``encode`` does.
    """
    if isinstance(payload, Sparse):
        return levels.sparse_size(payload)
    return CODES[type(payload.layout)].size(payload)


def encode(payload: Payload) -> list[bytes]:
    """Payload of n rows, on any device -> n messages.

    Raises WireError if the payload does not fit its layout: shape, type, a level or digit beyond its range or in a
    bucket of norm zero, a norm that is not finite or carries a minus sign.
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


_OF_KEPT = bounds, size, encode, decode
CODES[FactorsLayout] = Code(factors.bounds, factors.size, factors.encode, factors.decode, total=True)
CODES[MaskedLayout] = Code(drawn.masked_bounds, drawn.masked_size, drawn.masked_encode, drawn.masked_decode, total=True)
CODES[DrawnLayout] = Code(*kept.before(drawn.HEAD, *_OF_KEPT), total=True)
CODES[PartsLayout] = Code(*parts.of_each(*_OF_KEPT), total=True)
CODES[PlacedLayout] = Code(*kept.before(placed.HEAD, *_OF_KEPT), total=True)
