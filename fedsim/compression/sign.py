"""Scaled sign: one bit a coordinate and the mean magnitude of a bucket.

    C(x)_j = (||x||_1 / b) sign(x_j),   sign(0) = 1

Biased, so it needs error feedback. ||C(x) - x||^2 = ||x||^2 - ||x||_1^2 / b, and ||x||_1 >= ||x||, so that delta = 1/b
for every row, reached by one number alone; 2/pi on Gaussian rows. Rounding the scale to float32 takes 2^-48 of it.

Source: Karimireddy, Rebjock, Stich, Jaggi, "Error feedback fixes SignSGD", ICML 2019, section 4; 1-bit SGD with scale.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from fedsim.compression import buckets
from fedsim.compression.payload import Digits, DigitsLayout, Layout, Payload
from fedsim.errors import DivergedError, WireError
from fedsim.flat import tree_sum
from fedsim.randomness import Stream


class Sign(msgspec.Struct, frozen=True, tag_field="compressor", tag="sign", forbid_unknown_fields=True):
    """Scaled sign. Args: bucket: coordinates that share a scale; 0: the whole row."""

    bucket: Annotated[int, msgspec.Meta(ge=0)] = 0

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return DigitsLayout(d, 2, buckets.size(self.bucket, d))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Digits: 1 for a negative number. ``noise`` and ``clients`` are not used.

        Raises DivergedError when a row is not finite or its mean magnitude is beyond float32.
        """
        (n, d), bucket = rows.shape, buckets.size(self.bucket, rows.shape[1])
        sums = tree_sum(buckets.cut(rows.abs(), bucket), dim=2)
        counts = torch.full_like(sums, bucket)
        counts[:, -1] = d - bucket * (counts.shape[1] - 1)
        scales = (sums / counts).to(torch.float32)
        if not bool(torch.isfinite(scales).all()):
            raise DivergedError("a row to compress is not finite or its mean exceeds 3.4e38; use a smaller step size")
        digits = (rows < 0) & (buckets.spread(scales, bucket, d) > 0)
        seeds = torch.zeros(n, 0, dtype=torch.int64)
        return Digits(DigitsLayout(d, 2, bucket), digits.to(torch.int32), scales, seeds)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Digits -> dtype[n, d]: the scale or its opposite."""
        if not isinstance(payload, Digits) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"sign got {type(payload).__name__} of another layout")
        scales = buckets.spread(payload.scales.to(dtype), payload.layout.bucket, payload.layout.d)
        return scales * (1 - 2 * payload.digits).to(dtype)

    def omega(self, d: int) -> float:
        """Infinity: it is biased."""
        return math.inf

    def delta(self, d: int) -> float:
        """1 / b, for the worst row."""
        return 1.0 / buckets.size(self.bucket, d)

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): d signs and 32 for each bucket's scale, and 0."""
        return d + 32.0 * -(-d // buckets.size(self.bucket, d)), 0.0
