"""Rows of which some coordinates cross: layouts and payloads, one message a row.

What was kept of a row is itself a row, shorter, with a layout and a payload of its own: so kept numbers can be floats
or levels. Where it stood is either told, or drawn by the receiver from a seed as the sender drew it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fedsim.compression.payload import Layout, Payload


@dataclass(frozen=True, slots=True)
class PlacedLayout:
    """Rows of ``d`` coordinates of which ``k`` cross, with their places; ``kept`` is the layout of k coordinates."""

    d: int
    k: int
    kept: Layout


@dataclass(frozen=True, slots=True)
class Placed:
    """places: int32[n, k], ascending in a row, in [0, d). kept: what stood there, n rows."""

    layout: PlacedLayout
    places: Tensor
    kept: Payload


@dataclass(frozen=True, slots=True)
class DrawnLayout:
    """Rows of ``d`` coordinates, put into a random order and dealt into ``blocks`` blocks, of which one crosses.

    The order is one of max(d, k blocks) places; those beyond the row hold zeros. Block b are the places of rank k b to
    k b + k - 1, in ascending order. ``kept`` is the layout of k coordinates.
    """

    d: int
    k: int
    blocks: int
    kept: Layout

    @property
    def width(self) -> int:
        """Places in the order."""
        return max(self.d, self.k * self.blocks)


@dataclass(frozen=True, slots=True)
class Drawn:
    """seeds: int64[n], 32-bit numbers that give the order. numbers: int64[n], whose block. kept: what stood there."""

    layout: DrawnLayout
    seeds: Tensor
    numbers: Tensor
    kept: Payload


@dataclass(frozen=True, slots=True)
class MaskedLayout:
    """Rows of ``d`` coordinates, each of which crosses with chance ``chance`` / 2^32, as a float32."""

    d: int
    chance: int


@dataclass(frozen=True, slots=True)
class Masked:
    """seeds: int64[n], 32-bit numbers that give the mask. values: float32[n, d], +0.0 where nothing crosses."""

    layout: MaskedLayout
    seeds: Tensor
    values: Tensor
