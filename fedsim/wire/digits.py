"""Rows of digits <-> bytes; see ``coding`` for the calls.

  seed    a little-endian 32-bit number, where the layout has one
  scales  one little-endian float32 for each bucket: finite, >= 0, not -0.0
  body    nothing if there are scales and all are zero. Else one of
            fixed     the digits grouped (see ``bits``), then zeros to a whole byte
            entropy   a table of the digits' counts and an ANS code (see ``ans``); always shorter than the fixed body,
                      so that its length tells which one it is

The entropy code is tried where the bits of its table and the digits' zero-order entropy (``ans.estimate``) are fewer
than those of the fixed body, and taken where its bytes are. A digit in a bucket of scale zero is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.compression.payload import Digits, DigitsLayout
from fedsim.errors import WireError
from fedsim.wire import ans
from fedsim.wire.bits import grouped, grouped_length, read_grouped
from fedsim.wire.values import matrix, scales_of

MAX_BASE = 2**17
_NONE = np.zeros(0, np.uint8)


@cache
def bounds(layout: DigitsLayout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message (a fixed body). Raises WireError if it has no format."""
    if layout.d < 1 or layout.bucket < 0 or not 2 <= layout.base <= MAX_BASE:
        raise WireError(f"{layout} has no wire format; use d >= 1, bucket >= 0 and a base from 2 to {MAX_BASE}")
    head = 4 * (layout.seeded + layout.buckets)
    return head, head + (grouped_length(layout.d, layout.base) + 7) // 8


def size(payload: Digits) -> Tensor:
    """Bits of each row's message, int64[n]. A row for which the entropy code is tried has to be encoded."""
    return torch.tensor([8 * len(message) for message in encode(payload)], dtype=torch.int64)


def encode(payload: Digits) -> list[bytes]:
    """One message a row."""
    digits, scales, seeds = _checked(payload)
    layout = payload.layout
    starts = zip(seeds.astype("<u4"), scales.astype("<f4"), strict=True)
    heads = [seed.tobytes() + row.tobytes() for seed, row in starts]
    written = np.logical_or(scales.any(axis=1), not layout.bucket).tolist()
    return [head + _body(row, layout) if some else head for head, row, some in zip(heads, digits, written, strict=True)]


def decode(messages: Sequence[bytes], layout: DigitsLayout) -> Digits:
    """Messages whose lengths are within ``bounds``; whether they are canonical is left to the caller."""
    (least, most), seed = bounds(layout), 4 * layout.seeded
    digits = np.zeros((len(messages), layout.d), np.int32)
    for i, message in enumerate(messages):
        body = np.frombuffer(message, np.uint8, offset=least) if len(message) > least else _NONE
        if len(message) == most:
            bits = np.unpackbits(body)[: grouped_length(layout.d, layout.base)]
            digits[i] = read_grouped(bits, layout.d, layout.base)
        elif body.size or not layout.bucket:
            digits[i] = ans.decode(body, 0, layout.d, layout.base)
    scales = matrix([message[seed:least] for message in messages], np.dtype("<f4"), layout.buckets)
    seeds = matrix([message[:seed] for message in messages], np.dtype("<u4"), int(layout.seeded)).astype(np.int64)
    return Digits(layout, *map(torch.from_numpy, (digits, scales, seeds)))


def _body(digits: NDArray[np.int32], layout: DigitsLayout) -> bytes:
    fixed = grouped_length(layout.d, layout.base)
    counts = np.bincount(digits, minlength=layout.base)
    if ans.least(counts) < fixed:
        body = ans.encode(digits, counts, _NONE)
        if len(body) < (fixed + 7) // 8:
            return body
    return np.packbits(grouped(digits.astype(np.int64), layout.base)).tobytes()


def _checked(payload: Digits) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    bounds(payload.layout)
    layout, n = payload.layout, len(payload.digits)
    for name, part, kind, shape in (
        ("digits", payload.digits, torch.int32, (n, layout.d)),
        ("scales", payload.scales, torch.float32, (n, layout.buckets)),
        ("seeds", payload.seeds, torch.int64, (n, int(layout.seeded))),
    ):
        if part.shape != shape or part.dtype != kind:
            raise WireError(f"{name} are {part.dtype}{list(part.shape)}, expected {kind}{list(shape)}")
    digits, scales = payload.digits.detach().cpu().numpy(), scales_of(payload.scales)
    seeds = payload.seeds.cpu().numpy()
    if digits.size and (int(digits.min()) < 0 or int(digits.max()) >= layout.base):
        raise WireError(f"digits are {digits.min()} to {digits.max()}, expected 0 to {layout.base - 1}")
    if seeds.size and (int(seeds.min()) < 0 or int(seeds.max()) >= 2**32):
        raise WireError(f"seeds are {seeds.min()} to {seeds.max()}, expected 0 to {2**32 - 1}")
    if not scales.all():
        stray = digits.astype(bool) & np.repeat(scales == 0, layout.bucket, axis=1)[:, : layout.d]
        if stray.any():
            raise WireError("a digit other than zero in a bucket of scale zero; its scale cannot be zero")
    return np.ascontiguousarray(digits), scales, seeds
