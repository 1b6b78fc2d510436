"""No compression: numbers cross as they are, rounded to the wire's type.

The constant is omega = 0. Rounding a float64 row to float32 moves it by at most 2^-24 relative, and not at all where
the computation is float32.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
from torch import Tensor

from fedsim.compression.payload import Layout, Payload, Values, ValuesLayout
from fedsim.errors import WireError
from fedsim.randomness import Stream


class Identity(msgspec.Struct, frozen=True, tag_field="compressor", tag="identity", forbid_unknown_fields=True):
    """Args: values: the type of a number on the wire, "float32" (32 bits) or "float64" (64 bits)."""

    values: Literal["float32", "float64"] = "float32"

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return ValuesLayout(d, torch.float64 if self.values == "float64" else torch.float32)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Values. ``noise`` and ``clients`` are not used."""
        layout = self.layout(rows.shape[1])
        assert isinstance(layout, ValuesLayout)
        return Values(layout, rows.to(layout.dtype))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Values -> dtype[n, d]."""
        if not isinstance(payload, Values):
            raise WireError(f"identity got {type(payload).__name__}, expected Values")
        return payload.values.to(dtype)

    def omega(self, d: int) -> float:
        """Variance constant: 0."""
        return 0.0

    def delta(self, d: int) -> float:
        """1: nothing is lost but what rounding to the wire's type takes."""
        return 1.0

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 32 d and 0, whatever the wire's type."""
        return 32.0 * d, 0.0
