"""Numbers of 16 bits, rounded to the nearest: bfloat16, and float16 after a power of two.

    type      bits of a fraction    |error| / |x| at most
    bfloat16                   8    2^-8
    float16                   11    2^-11, and 2^-39 of the row's largest magnitude where that is more

A float16 ends at 65504 and at 6e-8, where gradients do not, so each row is first divided by the power of two that takes
its largest magnitude into [2^14, 2^15), and the exponent is sent before the row, as one more float16 (a whole number of
at most 1009 in magnitude, which a float16 holds exactly). bfloat16 has the range of float32: a row beyond 3.38e38 is
refused, and numbers below 1e-38 may lose more than 2^-8 of themselves.

Rounding to nearest is biased, so omega is infinite; delta = 1 - 2^-16 or 1 - 2^-22 - d 2^-78.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import torch
from torch import Tensor

from fedsim.compression.payload import Layout, Payload, Values, ValuesLayout
from fedsim.errors import DivergedError, WireError
from fedsim.randomness import Stream

_TOP = 15
_LEAST = -990
"""Of what 2^-exponent is still finite for; only float64 has smaller numbers."""


class Half(msgspec.Struct, frozen=True, tag_field="compressor", tag="half", forbid_unknown_fields=True):
    """Args: values: the type of a number on the wire, "bfloat16" or "float16"."""

    values: Literal["bfloat16", "float16"] = "bfloat16"

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates; a float16 row has one number more, its exponent."""
        return ValuesLayout(d, torch.bfloat16) if self.values == "bfloat16" else ValuesLayout(d + 1, torch.float16)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Values. ``noise`` and ``clients`` are not used.

        Raises DivergedError when a row is not finite, or not after rounding.
        """
        layout = self.layout(rows.shape[1])
        assert isinstance(layout, ValuesLayout)
        if self.values == "float16":
            largest = torch.nn.functional.pad(rows.abs(), (0, 1)).amax(dim=1, keepdim=True)
            found = torch.frexp(largest.to(torch.float64))[1].clamp(min=_LEAST) - _TOP
            exponents = torch.where(largest > 0, found, 0).to(torch.float64)
            rows = torch.cat([exponents, rows.to(torch.float64) * 2.0**-exponents], dim=1)
        values = rows.to(layout.dtype)
        if not bool(torch.isfinite(values).all()):
            raise DivergedError("a row to round is not finite or exceeds 3.38e38; use a smaller step size")
        return Values(layout, values)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Values -> dtype[n, d]."""
        kind = self.layout(1)
        assert isinstance(kind, ValuesLayout)
        if not isinstance(payload, Values) or payload.layout.dtype != kind.dtype:
            raise WireError(f"half got {type(payload).__name__} of another layout, expected {self.values}")
        if self.values == "bfloat16":
            return payload.values.to(dtype)
        exponents, values = payload.values[:, :1].to(torch.float64), payload.values[:, 1:].to(torch.float64)
        return (values * 2.0**exponents).to(dtype)

    def omega(self, d: int) -> float:
        """Infinity: rounding to nearest is biased."""
        return math.inf

    def delta(self, d: int) -> float:
        """1 less the square of the rounding (top of this file)."""
        return 1 - 2.0**-16 if self.values == "bfloat16" else 1 - 2.0**-22 - d * 2.0**-78

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 16 d and 0."""
        return 16.0 * d, 0.0
