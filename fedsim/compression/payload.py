"""What crosses the wire, before bits: the integers and scalars of a message, one row a client."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout, Placed, PlacedLayout


@dataclass(frozen=True, slots=True)
class ValuesLayout:
    """Rows of ``d`` plain numbers of type ``dtype`` (a float of 16, 32 or 64 bits), little-endian on the wire."""

    d: int
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class LevelsLayout:
    """Rows of ``d`` integers in [-levels, levels] and one float32 norm for each bucket of ``bucket`` coordinates."""

    d: int
    levels: int
    bucket: int

    @property
    def buckets(self) -> int:
        """Number of norms in a row; the last bucket may be shorter."""
        return -(-self.d // self.bucket)


@dataclass(frozen=True, slots=True)
class DigitsLayout:
    """Rows of ``d`` integers in [0, base), a float32 scale for each bucket of ``bucket`` of them (0: none), and a seed
    of 32 bits where ``seeded``. ``kept``: coordinates of the rows that they stand for, where those are fewer; else 0.
    """

    d: int
    base: int
    bucket: int = 0
    seeded: bool = False
    kept: int = 0

    @property
    def buckets(self) -> int:
        """Number of scales in a row; the last bucket may be shorter."""
        return -(-self.d // self.bucket) if self.bucket else 0


@dataclass(frozen=True, slots=True)
class Values:
    """Uncompressed rows. values: layout.dtype[n, d]."""

    layout: ValuesLayout
    values: Tensor


@dataclass(frozen=True, slots=True)
class Levels:
    """Quantized rows. levels: int32[n, d], |levels| <= layout.levels; norms: float32[n, buckets], >= 0."""

    layout: LevelsLayout
    levels: Tensor
    norms: Tensor


@dataclass(frozen=True, slots=True)
class Digits:
    """Rows that keep every coordinate as one of a few symbols.

    digits: int32[n, d], in [0, base), 0 in a bucket of scale zero; scales: float32[n, buckets], >= 0; seeds:
    int64[n, 0] or int64[n, 1], in [0, 2^32).
    """

    layout: DigitsLayout
    digits: Tensor
    scales: Tensor
    seeds: Tensor


@dataclass(frozen=True, slots=True)
class Sparse:
    """Quantized rows without the levels that are zero; what ``Levels`` says of the same rows, ``dense`` makes of it.

    starts: int64[n + 1]; the nonzeros of row i are those from starts[i] to starts[i + 1]. places: int32[K], coordinate
    of each nonzero, ascending in a row; levels: int32[K]; norms: float32[n, buckets].
    """

    layout: LevelsLayout
    starts: Tensor
    places: Tensor
    levels: Tensor
    norms: Tensor

    def dense(self) -> Levels:
        """With the zeros."""
        n, d = len(self.norms), self.layout.d
        rows = torch.repeat_interleave(torch.arange(n), self.starts.diff())
        levels = torch.zeros(n * d, dtype=torch.int32)
        levels[rows * d + self.places] = self.levels
        return Levels(self.layout, levels.view(n, d), self.norms)


@dataclass(frozen=True, slots=True)
class FactorsLayout:
    """Rows of ``d`` coordinates as matrices [rows, columns], row by row and zeros at the end, of rank ``rank``."""

    d: int
    rows: int
    columns: int
    rank: int


@dataclass(frozen=True, slots=True)
class Factors:
    """Matrices left @ right^T. left: float32[n, rank, rows]; right: float32[n, rank, columns]."""

    layout: FactorsLayout
    left: Tensor
    right: Tensor


@dataclass(frozen=True, slots=True)
class PartsLayout:
    """Rows of ``d`` coordinates in parts, one after another, each with a layout of its own."""

    d: int
    parts: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """parts: payloads of n rows each."""

    layout: PartsLayout
    parts: tuple[Payload, ...]


Layout = (
    ValuesLayout
    | LevelsLayout
    | DigitsLayout
    | (PlacedLayout | DrawnLayout | MaskedLayout | FactorsLayout)  # of fewer numbers than the row has
    | PartsLayout
)
Payload = (
    Values
    | Levels
    | Digits
    | (Placed | Drawn | Masked | Factors)  # of fewer numbers than the row has
    | Parts
)
Received = Payload | Sparse
"""What the server's arithmetic takes; only a ``Payload`` has an encoding, which is that of the same rows."""


def row(payload: Payload, i: int) -> Payload:
    """The message of one client: row ``i`` as a payload of one row (views, no copies)."""
    if isinstance(payload, Parts):
        return Parts(payload.layout, tuple(row(part, i) for part in payload.parts))
    held = {field.name: getattr(payload, field.name) for field in fields(payload) if field.name != "layout"}
    cut: dict[str, Any] = {
        name: part[i : i + 1] if isinstance(part, Tensor) else row(part, i) for name, part in held.items()
    }
    return replace(payload, **cut)


def parts(payload: Payload) -> dict[str, Tensor]:
    """What crosses, by name: tensors whose first axis is the rows."""
    if isinstance(payload, Parts):
        named = ((f"{i}.{name}", part) for i, inner in enumerate(payload.parts) for name, part in parts(inner).items())
        return dict(named)
    found: dict[str, Tensor] = {}
    for field in fields(payload):
        part = getattr(payload, field.name)
        if isinstance(part, Tensor):
            found[field.name] = part
        elif field.name != "layout":
            found |= {f"{field.name}.{name}": inner for name, inner in parts(part).items()}
    return found
