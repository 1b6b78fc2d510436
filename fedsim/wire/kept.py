"""Messages of rows of which some coordinates cross: a head that tells which, then the message of what was kept.

The head says itself where it ends, and is canonical by its own decoder; so is the message of what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Bounds = Callable[[Any], tuple[int, int]]
Size = Callable[[Any], Tensor]
Encode = Callable[[Any], list[bytes]]
Decode = Callable[[Sequence[bytes], Any], Any]


@dataclass(frozen=True, slots=True)
class Head:
    """bounds: bytes of the shortest and longest head; size: bits of each; decode: messages of at least the bytes of the
    shortest -> (tensors of the payload by name, bytes of each head). check: refuses what was read after the heads."""

    payload: Callable[..., Any]
    bounds: Bounds
    size: Size
    encode: Encode
    decode: Callable[[Sequence[bytes], Any], tuple[dict[str, Tensor], list[int]]]
    check: Callable[[Any], None] = lambda payload: None


def before(
    head: Head, bounds: Bounds, size: Size, encode: Encode, decode: Decode
) -> tuple[Bounds, Size, Encode, Decode]:
    """The format of a head before another message: the calls of ``coding`` that code what was kept -> the same four."""

    def both_bounds(layout: Any) -> tuple[int, int]:
        (least, most), (kept_least, kept_most) = head.bounds(layout), bounds(layout.kept)
        return least + kept_least, most + kept_most

    def both_size(payload: Any) -> Tensor:
        return head.size(payload) + size(payload.kept).cpu()

    def both_encode(payload: Any) -> list[bytes]:
        return [first + kept for first, kept in zip(head.encode(payload), encode(payload.kept), strict=True)]

    def both_decode(messages: Sequence[bytes], layout: Any) -> Any:
        tensors, ends = head.decode(messages, layout)
        kept = decode([message[end:] for message, end in zip(messages, ends, strict=True)], layout.kept)
        payload = head.payload(layout=layout, kept=kept, **tensors)
        head.check(payload)
        return payload

    return both_bounds, both_size, both_encode, both_decode
