"""Rounding to powers of two at random: natural compression of every number, natural dithering of a bucket.

    C(x)_j = sign(x_j) 2^e with chance 2 - |x_j| 2^-e, sign(x_j) 2^(e+1) else,    e = floor(log2 |x_j|)
    D(x)_j = norm sign(x_j) D'(|x_j| / norm),   D' rounds at random to a neighbour among 0, 2^(1-s), ..., 1/2, 1

    paper    here      meaning
    C_nat    Natural   every number becomes a sign and an exponent
    s        levels    of natural dithering: its largest, 1, and s - 1 halvings of it
    ||x||_p  scales    2-norm or infinity norm of the bucket, rounded up to float32

Both are unbiased, up to the resolution of u, as s-quantization.

Natural compression: between 2^e and 2^(e+1) the variance is (|x| - 2^e)(2^(e+1) - |x|), at most x^2 / 8, reached at
|x| = 4/3 2^e: omega = 1/8. The exponents kept are -127 to 127, which with a sign and zero are 9 bits. Below 2^-127 a
number is rounded to 0 or 2^-127 and its variance may exceed x^2 / 8; above 2^127 a row is refused.

Natural dithering with t = 2^(1-s): omega = 1/8 + min(sqrt(b) t, b t^2 / 4) for buckets of b coordinates. A coordinate
above t norm has variance at most x^2 / 8. One below has |x| (t norm - |x|), which is at most t norm |x|, in sum at most
t norm ||x||_1 <= t sqrt(b) ||x||^2, and at most (t norm)^2 / 4. (The source has b t^2 instead of b t^2 / 4.)

Source: Horvath, Ho, Horvath, Sahu, Canini, Richtarik, "Natural compression for distributed deep learning",
arXiv 1905.10988, theorems 1 and 7.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.compression import buckets
from fedsim.compression.payload import Digits, DigitsLayout, Layout, Payload
from fedsim.errors import DivergedError, WireError
from fedsim.randomness import Stream

_LEAST, _MOST = -127, 127
_BASE = 2 * (_MOST - _LEAST + 1) + 1


class Natural(msgspec.Struct, frozen=True, tag_field="compressor", tag="natural", forbid_unknown_fields=True):
    """Natural compression: 9 bits a number in fixed width, a third of that for most gradients. It has no options."""

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return DigitsLayout(d, _BASE)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Digits: 0 for 0, else 2 (exponent + 128), less 1 if positive. Row i draws clients[i]'s noise.

        Raises DivergedError when a number is not finite or exceeds 2^127.
        """
        n, d = rows.shape
        magnitudes = rows.abs()
        if not bool((magnitudes <= 2.0**_MOST).all()):
            raise DivergedError("a row to compress is not finite or has a number above 1.7e38; use a smaller step size")
        places = _rounded(magnitudes, -_LEAST, noise.uniform(clients, d, rows.dtype))
        return Digits(DigitsLayout(d, _BASE), _signed(places, rows), *_bare(n))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Digits -> dtype[n, d]: signs and powers of two."""
        digits = _check(self, payload).digits
        return _read(digits, 2.0 ** torch.arange(_LEAST, _MOST + 1, dtype=torch.float64), dtype)

    def omega(self, d: int) -> float:
        """Variance constant: 1/8."""
        return 0.125

    def delta(self, d: int) -> float:
        """1 - omega = 7/8."""
        return 0.875

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 9 d, a sign and an exponent each, and 0."""
        return 9.0 * d, 0.0


class NaturalDithering(
    msgspec.Struct, frozen=True, tag_field="compressor", tag="natural-dithering", forbid_unknown_fields=True
):
    """Natural dithering.

    Args:
        levels: s, from 1 to 127; 1 is s-quantization with one level.
        norm: "l2" or "linf".
        bucket: coordinates that share a norm; 0: the whole row.
    """

    levels: Annotated[int, msgspec.Meta(ge=1, le=127)] = 8
    norm: Literal["l2", "linf"] = "l2"
    bucket: Annotated[int, msgspec.Meta(ge=0)] = 0

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return DigitsLayout(d, 2 * self.levels + 1, buckets.size(self.bucket, d))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Digits: 0 for 0, else 2 k, less 1 if positive, for norm 2^(k - s). A zero bucket stays zero.

        Raises DivergedError when a row is not finite or its norm is beyond float32.
        """
        layout = self.layout(rows.shape[1])
        assert isinstance(layout, DigitsLayout)
        magnitudes = rows.abs()
        norms = buckets.norms(magnitudes, layout.bucket, self.norm == "linf")
        if not bool(torch.isfinite(norms).all()):
            raise DivergedError("a row to compress is not finite or its norm exceeds 3.4e38; use a smaller step size")
        safe = torch.where(norms > 0, norms, torch.ones_like(norms)).to(rows.dtype)
        scaled = magnitudes / buckets.spread(safe, layout.bucket, layout.d)  # in [0, 1]
        places = _rounded(scaled, self.levels - 1, noise.uniform(clients, layout.d, rows.dtype))
        return Digits(layout, _signed(places, rows), norms, _bare(len(rows))[1])

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Digits -> dtype[n, d]: norm times a power of two."""
        digits, d = _check(self, payload), payload.layout.d
        levels = _read(digits.digits, 2.0 ** torch.arange(1 - self.levels, 1, dtype=torch.float64), dtype)
        return buckets.spread(digits.scales.to(dtype), digits.layout.bucket, d) * levels

    def omega(self, d: int) -> float:
        """Variance constant of the worst row of ``d`` coordinates (formula at the top of this file)."""
        b, t = buckets.size(self.bucket, d), 2.0 ** (1 - self.levels)
        return 0.125 + min(math.sqrt(b) * t, b * t * t / 4)

    def delta(self, d: int) -> float:
        """1 - omega, where the variance is less than the row itself."""
        return max(0.0, 1.0 - self.omega(d))

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): d (1 + ceil(log2 s)) and 32 for each bucket's norm, and 0.

        The source's figure: a sign and one of s levels each. They are s + 1 with zero.
        """
        count = -(-d // buckets.size(self.bucket, d))
        return d * (1.0 + math.ceil(math.log2(self.levels))) + 32.0 * count, 0.0


def _check(compressor: Natural | NaturalDithering, payload: Payload) -> Digits:
    if not isinstance(payload, Digits) or payload.layout != compressor.layout(payload.layout.d):
        raise WireError(f"{compressor.__struct_config__.tag} got {type(payload).__name__} of another layout")
    return payload


def _bare(n: int) -> tuple[Tensor, Tensor]:
    """No scales, no seeds."""
    return torch.zeros(n, 0), torch.zeros(n, 0, dtype=torch.int64)


def _rounded(magnitudes: Tensor, halvings: int, draws: Tensor) -> Tensor:
    """Numbers >= 0 at random to 0 or to a power of two from 2^-halvings on: 0 or 1, 2, ...; int32[n, d]."""
    mantissas, exponents = torch.frexp(magnitudes)  # mantissa 2^exponent, mantissa in [1/2, 1)
    low = magnitudes < 2.0**-halvings
    places = torch.where(low, 0, exponents.to(torch.int32) + halvings)
    chances = torch.where(low, magnitudes * 2.0**halvings, 2 * mantissas - 1)
    return places + (draws < chances)


def _signed(places: Tensor, rows: Tensor) -> Tensor:
    """0 for place 0, else 2 place, less 1 where the number is positive: int32[n, d]."""
    return torch.where(places > 0, 2 * places - (rows > 0).to(torch.int32), 0).to(torch.int32)


def _read(digits: Tensor, powers: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of ``_signed``, to powers[place - 1] with a sign. powers: float64[k]."""
    values = torch.stack([powers, -powers], dim=1).flatten()
    table = torch.cat([torch.zeros(1, dtype=torch.float64), values]).to(digits.device, dtype)
    return table[digits.long()]
