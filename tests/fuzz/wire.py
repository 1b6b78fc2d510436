"""Targets in ``fedsim.wire``: frames, bundles of messages, and every code in its compiled and its plain form."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from fedsim import kernels
from fedsim.compression import places
from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout, Placed, PlacedLayout
from fedsim.compression.payload import (
    Digits,
    DigitsLayout,
    Factors,
    FactorsLayout,
    Layout,
    Levels,
    LevelsLayout,
    Parts,
    PartsLayout,
    Payload,
    Values,
    ValuesLayout,
    parts,
)
from fedsim.errors import WireError
from fedsim.wire import (
    HEADER_BYTES,
    Frame,
    Kind,
    decode,
    decode_frame,
    encode,
    encode_frame,
    longest,
    pack_messages,
    size,
    unpack_messages,
)
from fedsim.wire.levels import MAX_LEVELS
from tests.fuzz.drive import Case, Target

LAYOUTS: dict[str, Layout] = {
    "ternary": LevelsLayout(64, 1, 64),
    "buckets": LevelsLayout(90, 4, 32),
    "sixteen": LevelsLayout(300, 16, 300),
    "largest": LevelsLayout(7, MAX_LEVELS, 3),
    "far": LevelsLayout(4000, 1, 4000),
    "float32": ValuesLayout(9),
    "float64": ValuesLayout(5, torch.float64),
    "places": PlacedLayout(60, 6, ValuesLayout(6)),
    "places, levels": PlacedLayout(300, 40, LevelsLayout(40, 4, 16)),
    "places, most": PlacedLayout(50, 45, LevelsLayout(45, 1, 45)),
    "places, all": PlacedLayout(7, 7, LevelsLayout(7, 2, 7)),
    "places, few": PlacedLayout(2**31 - 1, 2, ValuesLayout(2)),
    "order": DrawnLayout(50, 8, 1, ValuesLayout(8)),
    "blocks": DrawnLayout(50, 8, 7, ValuesLayout(8)),
    "blocks, levels": DrawnLayout(40, 6, 300, LevelsLayout(6, 3, 1)),
    "mask": MaskedLayout(30, 2**30),
    "mask, all": MaskedLayout(3, 2**32),
    "factors": FactorsLayout(11, 3, 4, 2),
    "digits": DigitsLayout(90, 16, 30, seeded=True),
    "digits, exponents": DigitsLayout(200, 511),
    "parts": PartsLayout(
        100, (LevelsLayout(60, 1, 60), ValuesLayout(3), LevelsLayout(30, 4, 8), MaskedLayout(7, 2**31))
    ),
}

_CRC = struct.Struct("<II")
_LIMIT = 300


def sealed(data: bytes) -> bytes:
    """The same frame with a length and a checksum that are right, so that what is behind them is reached."""
    if len(data) < HEADER_BYTES:
        return data
    head, body = data[:32] + struct.pack("<I", len(data) - HEADER_BYTES), data[HEADER_BYTES:]
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def frames() -> list[bytes]:
    """One of each kind, and ends of the range of every field."""
    octets = np.random.default_rng(1).bytes
    some = [Frame(kind, octets(8), 3, 7, 2, octets(8), octets(9 * kind)) for kind in Kind]
    most = Frame(Kind.UPLOAD, b"\xff" * 8, *[2**32 - 1] * 3, b"\xff" * 8, b"")
    return [encode_frame(frame) for frame in (*some, most)]


def _frame(data: bytes) -> None:
    assert encode_frame(decode_frame(data, _LIMIT)) == data


def _sealed_frame(data: bytes) -> None:
    _frame(sealed(data))


def _messages(data: bytes) -> None:
    messages = unpack_messages(data, (0, 200), 20)
    assert len(messages) <= 20
    assert pack_messages(messages) == data


def rows_of(layout: Layout, seed: int) -> Payload:
    """Rows from empty to full."""
    generator = np.random.default_rng(seed)
    if isinstance(layout, PartsLayout):
        return Parts(layout, tuple(rows_of(part, seed + i) for i, part in enumerate(layout.parts)))
    shares = np.array([0.0, 3 / layout.d, 0.02, 0.1, 0.4, 1.0])
    if isinstance(layout, ValuesLayout):
        values = generator.standard_normal((6, layout.d))
        return Values(layout, torch.from_numpy(values).to(layout.dtype))
    if isinstance(layout, FactorsLayout):
        shapes = (6, layout.rank, layout.rows), (6, layout.rank, layout.columns)
        left, right = (torch.from_numpy(generator.standard_normal(shape)).float() for shape in shapes)
        return Factors(layout, left, right)
    if isinstance(layout, PlacedLayout):
        gaps = generator.multinomial(layout.d - layout.k, np.ones(layout.k + 1) / (layout.k + 1), 4)[:, :-1]
        ends = np.zeros((2, layout.k), np.int64)  # the first places, and the last
        ends[1, 0] = layout.d - layout.k
        stood = np.cumsum(np.concatenate([gaps, ends]) + 1, axis=1) - 1
        return Placed(layout, torch.from_numpy(stood.astype(np.int32)), rows_of(layout.kept, seed))
    seeds = torch.from_numpy(generator.integers(2**32, size=6))
    if isinstance(layout, MaskedLayout):
        values = torch.from_numpy(generator.standard_normal((6, layout.d))).float()
        return Masked(layout, seeds, torch.where(places.mask(layout, seeds), values, 0.0))
    if isinstance(layout, DrawnLayout):
        numbers, kept = torch.from_numpy(generator.integers(layout.blocks, size=6)), rows_of(layout.kept, seed)
        beyond = places.drawn(layout, seeds, numbers) >= layout.d
        for part in parts(kept).values():
            if part.shape == beyond.shape:
                part[beyond] = 0
        return Drawn(layout, seeds, numbers, kept)
    if isinstance(layout, DigitsLayout):
        digits = generator.binomial(layout.base - 1, generator.random((6, 1)), (6, layout.d)).astype(np.int32)
        scales = np.abs(generator.standard_normal((6, layout.buckets))).astype(np.float32)
        return Digits(layout, *map(torch.from_numpy, (digits, scales)), seeds[:, None][:, : int(layout.seeded)])
    tops = np.minimum([1, layout.levels, 3, layout.levels, 2, layout.levels], layout.levels)
    levels = np.stack([generator.integers(-top, top + 1, layout.d) for top in tops])
    levels = levels * (generator.random(levels.shape) < shares[:, None])
    norms = np.abs(generator.standard_normal((6, layout.buckets))).astype(np.float32)
    norms[generator.random(norms.shape) < 0.2] = 0
    levels[np.repeat(norms == 0, layout.bucket, axis=1)[:, : layout.d]] = 0
    return Levels(layout, torch.from_numpy(levels.astype(np.int32)), torch.from_numpy(norms))


@contextmanager
def form(compiled: bool) -> Iterator[None]:
    """One of the two forms of the code."""
    before, kernels.installed = kernels.installed, lambda: compiled
    try:
        yield
    finally:
        kernels.installed = before


def numbers(payload: Payload) -> tuple[bytes, ...]:
    """All of a payload's bits."""
    return tuple(part.numpy().tobytes() for part in parts(payload).values())


def _attempt(data: bytes, layout: Layout, compiled: bool) -> Payload | WireError:
    with form(compiled):
        try:
            payload = decode([data], layout)
        except WireError as error:
            return error
        assert encode(payload) == [data]
        assert size(payload).tolist() == [8 * len(data)]
    return payload


def _code(layout: Layout, data: bytes) -> None:
    """Both forms say the same of every input."""
    one, other = (_attempt(data, layout, compiled) for compiled in (True, False))
    if isinstance(one, WireError) or isinstance(other, WireError):
        assert str(one) == str(other)
        raise one  # type: ignore[misc]
    assert numbers(one) == numbers(other)


def _code_case(name: str) -> Case:
    layout = LAYOUTS[name]
    seeds = [message for seed in range(3) for message in encode(rows_of(layout, seed))]
    return Case(seeds, partial(_code, layout), (WireError,), bound=longest(layout) + 8)


FRAME = Target("frame", lambda: Case(frames(), _frame, (WireError,), [b"FS\x01"], 400), 4)
SEALED = Target("frame, sealed", lambda: Case(frames(), _sealed_frame, (WireError,), [b"FS\x01"], 400), 4)
_BUNDLES = [pack_messages(b) for b in ([], [b""], [b"ab", b"", b"c" * 130], [bytes(200)] * 3, [b"x"] * 20)]
MESSAGES = Target(
    "messages", lambda: Case(_BUNDLES, _messages, (WireError,), [b"\x80\x01", b"\xff\xff\xff\xff\x0f"], 700), 4
)
CODES = [Target(f"code, {name}", partial(_code_case, name), 0.1 if name == "far" else 0.5) for name in LAYOUTS]
TARGETS = [FRAME, SEALED, MESSAGES, *CODES]
