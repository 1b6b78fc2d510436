"""A few bits a coordinate after a random rotation: DRIVE (1 bit) and EDEN (1 to 4).

    z = H D x / sqrt(b),   q = centroid nearest to y = sqrt(b) z / ||x||,   C(x) = S D H q / sqrt(b)

    paper    here      meaning
    D        signs     random signs, from a 32-bit seed that is sent
    H        hadamard  the Hadamard matrix of order b, a power of two: the coordinates of a bucket and zeros at the end
    y                  nearly Gaussian, whatever x was, of unit variance
    q        centroids the 2^bits Lloyd-Max points of the standard Gaussian
    S        scales    "unbiased": ||x||^2 / <z, q>; "least-squares": <z, q> / ||q||^2. Sent as float32, over sqrt(b)

On rows of many coordinates of like size, and on one coordinate alone, the error is

    bits                          1       2       3       4
    unbiased                   0.571   0.133  0.0358  0.0096   of ||x||^2: 1 / E q^2 - 1
    least-squares              0.363   0.117  0.0345  0.0095   1 - E q^2

What holds of every row is less. With a uniformly random rotation the first would be unbiased; with H D it is not: of
two coordinates a > b > 0, one bit keeps a (1 + b^2 / a^2) and nothing of b. So omega is infinite, and "unbiased" has no
delta either (two equal coordinates: the error is ||x||^2 with one bit). With "least-squares" the error is
||x||^2 (1 - <y, q>^2 / (b ||q||^2)). Each y_k is a sum of x's coordinates with independent signs, over ||x||:
E y^2 = 1, E y^4 <= 3. By the inequality of Cauchy and Schwarz E <y, q>^2 / ||q||^2 >= b (E y q(y))^2 / E q(y)^2, where
y is any of the y_k, and so delta is at least the least value of (E y q)^2 / E q^2 over all laws of those moments: a
linear program for each E q^2, which the tests solve. With one bit it is (E |y|)^2 >= 1/2 (Khintchine's inequality with
Szarek's constant), reached by two equal coordinates.

Source: Vargaftik et al., "DRIVE", NeurIPS 2021, and "EDEN", ICML 2022, arXiv 2108.08842.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.compression import buckets
from fedsim.compression.payload import Digits, DigitsLayout, Layout, Payload
from fedsim.errors import ConfigError, DivergedError, WireError
from fedsim.flat import tree_sum
from fedsim.randomness import Purpose, Stream

CENTROIDS = {
    1: (0.7978845608028654,),
    2: (0.45278003463649197, 1.5104176084990946),
    3: (0.24509417894422184, 0.7560052812058778, 1.343909278505001, 2.151945704536989),
    4: (
        0.12839502985114726,
        0.38804829949029185,
        0.6567591185324658,
        0.9423404564869639,
        1.2562311973471783,
        1.6180463860218859,
        2.069017226531389,
        2.7325895709951724,
    ),
}
"""The positive ones, for each number of bits."""

DELTAS = {1: 0.5, 2: 0.67, 3: 0.89, 4: 0.96}


class Eden(msgspec.Struct, frozen=True, tag_field="compressor", tag="eden", forbid_unknown_fields=True):
    """DRIVE and EDEN with a randomised Hadamard transform.

    Args:
        bits: of a coordinate, 1 to 4.
        scale: "least-squares", the smallest error, for error feedback; or "unbiased", which it nearly is on rows of
            many coordinates of like size and is not on others.
        bucket: coordinates that are rotated together and share a scale, a power of two; 0: the whole row, which is
            lengthened to a power of two.

    Raises ConfigError where the bucket is no power of two.
    """

    bits: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1
    scale: Literal["least-squares", "unbiased"] = "least-squares"
    bucket: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.bucket & (self.bucket - 1):
            raise ConfigError(f"bucket = {self.bucket} of eden is no power of two; use 1024, say, or 0 for whole rows")

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> DigitsLayout:
        whole = 1 << (d - 1).bit_length()
        b = min(self.bucket or whole, whole)
        return DigitsLayout(-(-d // b) * b, 2**self.bits, b, seeded=True, kept=d)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Digits: twice a centroid's number, and 1 where it is negative. clients[i]'s noise is the seed.

        Raises DivergedError when a row is not finite or its norm is beyond float32.
        """
        layout = self._layout(rows.shape[1])
        b, kind = layout.bucket, rows.dtype
        wide = buckets.cut(rows, b)
        norms = tree_sum(wide * wide, dim=2).sqrt()
        if not bool((norms <= torch.finfo(torch.float32).max).all()):
            raise DivergedError("a row to compress is not finite or its norm exceeds 3.4e38; use a smaller step size")
        seeds = noise.words(clients, 1)
        safe = torch.where(norms > 0, norms, torch.ones_like(norms))
        y = hadamard((wide / safe[:, :, None]).to(kind) * _signs(seeds, layout, kind))
        centroids = torch.tensor(CENTROIDS[self.bits], dtype=torch.float64, device=rows.device)
        numbers = torch.bucketize(y.abs().to(torch.float64), (centroids[1:] + centroids[:-1]) / 2)
        found = centroids[numbers]
        along = tree_sum(y.abs().to(torch.float64) * found, dim=2)
        if self.scale == "unbiased":
            scales = norms / torch.where(norms > 0, along, torch.ones_like(along))
        else:
            scales = norms * along / tree_sum(found * found, dim=2) / b
        scales = scales.to(torch.float32)
        digits = torch.where(scales[:, :, None] > 0, 2 * numbers + (y < 0), 0)
        return Digits(layout, digits.flatten(1).to(torch.int32), scales, seeds)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Digits -> dtype[n, d]: rotated back and scaled."""
        if not isinstance(payload, Digits) or payload.layout != self._layout(payload.layout.kept or 1):
            raise WireError(f"eden with {self.bits} bits got {type(payload).__name__} of another layout")
        layout, positive = payload.layout, torch.tensor(CENTROIDS[self.bits], dtype=torch.float64)
        centroids = torch.stack([positive, -positive], dim=1).flatten().to(payload.digits.device, dtype)
        found = centroids[payload.digits.long()].reshape(-1, layout.buckets, layout.bucket)
        rotated = hadamard(found) * _signs(payload.seeds, layout, dtype)
        return (payload.scales.to(dtype)[:, :, None] * rotated).flatten(1)[:, : layout.kept]

    def omega(self, d: int) -> float:
        """Infinity: on some rows it is biased, whatever the scale (top of this file)."""
        return math.inf

    def delta(self, d: int) -> float:
        """Of "least-squares", for every row; 0 of "unbiased"."""
        return DELTAS[self.bits] if self.scale == "least-squares" else 0.0

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): bits of every coordinate of the lengthened row, 32 for each
        scale and 32 for the seed; and 0.
        """
        layout = self._layout(d)
        return float(self.bits * layout.d + 32 * layout.buckets + 32), 0.0


def hadamard(rows: Tensor) -> Tensor:
    """float[..., b] times the Hadamard matrix of order b, a power of two; its square is b times the identity.

    >>> hadamard(torch.tensor([1.0, 2.0, 0.0, 0.0]))
    tensor([ 3., -1.,  3., -1.])
    """
    b, half = rows.shape[-1], 1
    while half < b:
        pairs = rows.reshape(*rows.shape[:-1], b // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        rows = torch.stack([low + high, low - high], dim=-2).reshape(rows.shape)
        half *= 2
    return rows


def _signs(seeds: Tensor, layout: DigitsLayout, dtype: torch.dtype) -> Tensor:
    """Random signs of a seed, int64[n, 1] -> dtype[n, buckets, bucket]: number 32 w + i is bit i of word w."""
    words = Stream(0, Purpose.ROTATION).words(seeds[:, 0], -(-layout.d // 32))
    bits = words[:, :, None] >> torch.arange(32, device=words.device) & 1
    signs: Tensor = 1 - 2 * bits.flatten(1)[:, : layout.d].to(dtype)
    return signs.reshape(-1, layout.buckets, layout.bucket)
