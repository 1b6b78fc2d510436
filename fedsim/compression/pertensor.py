"""Each tensor of a model by itself: its own norm, its own largest coordinates, its own rotation.

    C(x) = (C_1(x_1), ..., C_m(x_m)),   x_i the coordinates of tensor i, C_i the compressor at d_i coordinates

    unbiased     omega = max_i omega(d_i), as E||C(x) - x||^2 = sum E||C_i(x_i) - x_i||^2 <= sum omega(d_i) ||x_i||^2
    contraction  delta = min_i delta(d_i), in the same way

Both are reached where the row is in the one tensor. Layers of a network differ in scale by orders of magnitude, and one
norm for all of them leaves nothing of the small ones; buckets of equal size do not know where a layer ends.

Source: Bernstein et al., "signSGD with majority vote", ICLR 2019, and Vogels et al., "PowerSGD", NeurIPS 2019, compress
so; for blocks of any sizes: Zheng, Huang and Kwok, "Communication-efficient distributed blockwise momentum SGD with
error-feedback", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import msgspec
import torch
from torch import Tensor

from fedsim.compression.eden import Eden
from fedsim.compression.half import Half
from fedsim.compression.identity import Identity
from fedsim.compression.lowrank import LowRank
from fedsim.compression.natural import Natural, NaturalDithering
from fedsim.compression.payload import Layout, Parts, PartsLayout, Payload
from fedsim.compression.quantize import Quantize
from fedsim.compression.randomk import Bernoulli, PermK, RandK
from fedsim.compression.sign import Sign
from fedsim.compression.topk import SparseTernary, TopK
from fedsim.errors import WireError
from fedsim.randomness import Stream

if TYPE_CHECKING:
    from fedsim.compression import Compressor

Whole = (
    Identity
    | Quantize
    | Natural
    | NaturalDithering
    | Sign
    | Eden
    | Half
    | (RandK | Bernoulli | PermK | TopK | SparseTernary | LowRank)
)
"""Compressors of a whole row."""


class PerTensor(msgspec.Struct, frozen=True, tag_field="compressor", tag="per-tensor", forbid_unknown_fields=True):
    """A compressor for each tensor of a row.

    Args:
        of: what each of them goes through.
        sizes: coordinates of each tensor, in order; () is the model's own, in an experiment. What is left of a row
            beyond them is one more, and tensors beyond the row are none.
    """

    of: Whole = Quantize()
    sizes: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()

    def cut(self, d: int) -> list[int]:
        """Coordinates of each tensor of a row of ``d``."""
        found: list[int] = []
        for size in (*self.sizes, d):
            if left := d - sum(found):
                found.append(min(size, left))
        return found

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> PartsLayout:
        return PartsLayout(d, tuple(self.of.layout(size) for size in self.cut(d)))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Parts. Each tensor has random numbers of its own. Raises as the compressor does."""
        pieces = torch.split(rows, self.cut(rows.shape[1]), dim=1)
        return Parts(
            self._layout(rows.shape[1]),
            tuple(
                self.of.compress(piece.contiguous(), replace(noise, index=noise.index + i), clients)
                for i, piece in enumerate(pieces)
            ),
        )

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Parts -> dtype[n, d]."""
        if not isinstance(payload, Parts) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"per-tensor {type(self.of).__name__} got {type(payload).__name__} of another layout")
        return torch.cat([self.of.decompress(part, dtype) for part in payload.parts], dim=1)

    def omega(self, d: int) -> float:
        """The largest of the tensors'."""
        return max(self._each(self.of.omega, d))

    def delta(self, d: int) -> float:
        """The smallest of the tensors'."""
        return min(self._each(self.of.delta, d))

    def _each(self, constant: Callable[[int], float], d: int) -> Iterator[float]:
        return (constant(size) for size in self.cut(d))

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): sums over the tensors."""
        messages, shared = zip(*(self.of.formula_bits(size) for size in self.cut(d)), strict=True)
        return sum(messages), sum(shared)


def fitted(compressor: Compressor, sizes: tuple[int, ...]) -> Compressor:
    """The compressor for a model whose tensors have so many coordinates each."""
    if isinstance(compressor, PerTensor) and not compressor.sizes:
        return msgspec.structs.replace(compressor, sizes=sizes)
    return compressor
