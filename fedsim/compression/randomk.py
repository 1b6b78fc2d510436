"""Coordinates chosen at random, which cost no bits: the message holds a seed, and both ends draw the places from it.

    rand-k      k of d places, all sets alike      C(x)_j = (d / k) x_j [j chosen]     omega = d / k - 1
                without the factor d / k, biased                                       delta = k / d
    Bernoulli   each place with chance p           C(x)_j = x_j / p [j chosen]         omega = 1 / p - 1
    PermK       block i of a random order, of N    C_i(x)_j = N x_j [j in block i]     omega = N - 1

Each is exact: E||C(x) - x||^2 = omega ||x||^2 for every row, and 1 - delta of it for the biased one, because each
coordinate crosses with the same chance c = k / d, p or 1 / N: E (x_j [j chosen] / c - x_j)^2 = (1 / c - 1) x_j^2, and
E (x_j [j chosen] - x_j)^2 = (1 - c) x_j^2.

What is kept may be compressed again. With an unbiased second compressor of constant omega_2 at k coordinates,
independent of the places, 1 + omega = (d / k) (1 + omega_2). Without the factor, what is left out is orthogonal to what
is kept, so the error is ||x||^2 - E||y||^2 + E||C_2(y) - y||^2 <= (1 - delta_2 k / d) ||x||^2 for y = C(x).

Sources: rand-k: Konečný and Richtárik, "Randomized distributed mean estimation", 2018; biased: Stich, Cordonnier and
Jaggi, "Sparsified SGD with memory", NeurIPS 2018; PermK: Szlendak, Tyurin and Richtárik, "Permutation compressors for
provably faster distributed nonconvex optimization", ICLR 2022, definition 2. A composition: Artemis' rule
(1 + omega_1) (1 + omega_2) - 1.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from fedsim.compression import places
from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout
from fedsim.compression.identity import Identity
from fedsim.compression.payload import Layout, Payload, ValuesLayout
from fedsim.compression.quantize import Quantize
from fedsim.errors import WireError
from fedsim.randomness import Stream, only

SEED_BITS = 64
"""Of a seed, as the papers count; on the wire it has 32."""

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class RandK(msgspec.Struct, frozen=True, tag_field="compressor", tag="rand-k", forbid_unknown_fields=True):
    """k coordinates of each row, drawn without replacement.

    Args:
        fraction: k / d; k is the nearest number, at least 1.
        unbiased: multiply by d / k. Without, the error is smaller and the mean is k / d x: use error feedback.
        values: what the kept numbers go through: "identity" (float32 or float64) or "quantize".
    """

    fraction: Share = 0.01
    unbiased: bool = True
    values: Identity | Quantize = Identity()

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> DrawnLayout:
        k = places.share(self.fraction, d)
        return DrawnLayout(d, k, 1, self.values.layout(k))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Drawn. Raises DivergedError when a number is not finite or too large for the wire's type."""
        layout, seeds = self._layout(rows.shape[1]), places.seeds(noise, clients)
        chosen = places.drawn(layout, seeds, torch.zeros_like(seeds)).to(rows.device)
        kept = places.finite(rows).gather(1, chosen) * (layout.d / layout.k if self.unbiased else 1.0)
        return Drawn(layout, seeds, torch.zeros_like(seeds), places.packed(self.values, kept, noise, clients))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Drawn -> dtype[n, d]."""
        if not isinstance(payload, Drawn) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"rand-k of {self.fraction} got {type(payload).__name__} of another layout")
        chosen = places.drawn(payload.layout, payload.seeds, payload.numbers)
        return places.scatter(self.values.decompress(payload.kept, dtype), chosen, payload.layout.d)

    def omega(self, d: int) -> float:
        """(d / k) (1 + omega of the values) - 1; infinity without the factor d / k > 1."""
        k = places.share(self.fraction, d)
        if not self.unbiased and k < d:
            return math.inf
        return d / k * (1.0 + self.values.omega(k)) - 1.0

    def delta(self, d: int) -> float:
        """k / d times delta of the values, without the factor d / k; else 1 - omega where that is positive."""
        k = places.share(self.fraction, d)
        return max(0.0, 1.0 - self.omega(d)) if self.unbiased else k / d * self.values.delta(k)

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): those of the k values and a seed of 64 bits."""
        message, shared = self.values.formula_bits(places.share(self.fraction, d))
        return message + SEED_BITS, shared


class Bernoulli(msgspec.Struct, frozen=True, tag_field="compressor", tag="bernoulli", forbid_unknown_fields=True):
    """Each coordinate with the same chance, independent of the others; a message is as long as the draw has it.

    Args:
        probability: p, rounded to a multiple of 2^-32, at least one.
    """

    probability: Share = 0.01

    def _chance(self) -> int:
        return max(1, round(self.probability * 2**32))

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return MaskedLayout(d, self._chance())

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Masked. Raises DivergedError when a number is not finite or too large for float32."""
        layout, seeds = MaskedLayout(rows.shape[1], self._chance()), places.seeds(noise, clients)
        values = (places.finite(rows) * (2**32 / layout.chance)).to(torch.float32)
        masked = torch.where(places.mask(layout, seeds).to(rows.device), values, torch.zeros_like(values))
        return Masked(layout, seeds, places.finite(masked))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Masked -> dtype[n, d]."""
        if not isinstance(payload, Masked) or payload.layout.chance != self._chance():
            raise WireError(f"bernoulli of {self.probability} got {type(payload).__name__} of another layout")
        return payload.values.to(dtype)

    def omega(self, d: int) -> float:
        """1 / p - 1."""
        return 2**32 / self._chance() - 1.0

    def delta(self, d: int) -> float:
        """1 - omega, where that is positive."""
        return max(0.0, 1.0 - self.omega(d))

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 32 p d and a seed of 64 bits, on average; and 0."""
        return 32.0 * self.probability * d + SEED_BITS, 0.0


class PermK(msgspec.Struct, frozen=True, tag_field="compressor", tag="perm-k", forbid_unknown_fields=True):
    """Client i sends N times block i mod N of an order of the coordinates that all clients of a round share.

    When clients 0 to N - 1 all send, the mean of their messages is exact for equal rows; for others its variance is
    mean ||x_i||^2 - ||mean x_i||^2. When m of the N take part and the server divides by m, coordinates of those that
    are away are missing: each message is still unbiased, and for equal rows the variance is (N / m - 1) ||x||^2, as
    against (N - 1) / m ||x||^2 of clients that draw alone. Of more clients than N, those of equal number modulo N send
    the same block. The order is that of a seed, purpose and round; a lone sender (the downlink) sends one block of it.

    Args:
        parts: N, the number of blocks; the number of clients for the collective guarantee.
    """

    parts: Annotated[int, msgspec.Meta(ge=1, le=2**20)]

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> DrawnLayout:
        k = -(-d // self.parts)
        return DrawnLayout(d, k, self.parts, ValuesLayout(k))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Drawn. Raises DivergedError when a number is not finite or too large for float32."""
        layout, numbers = self._layout(rows.shape[1]), clients % self.parts
        seeds = places.seeds(noise, only()).expand(len(clients))
        chosen = places.drawn(layout, seeds, numbers).to(rows.device)
        filled = torch.nn.functional.pad(places.finite(rows), (0, layout.width - layout.d))
        kept = filled.gather(1, chosen) * float(self.parts)
        return Drawn(layout, seeds, numbers, places.packed(Identity(), kept, noise, clients))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Drawn -> dtype[n, d]."""
        if not isinstance(payload, Drawn) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"perm-k of {self.parts} parts got {type(payload).__name__} of another layout")
        layout, chosen = payload.layout, places.drawn(payload.layout, payload.seeds, payload.numbers)
        return places.scatter(Identity().decompress(payload.kept, dtype), chosen, layout.width)[:, : layout.d]

    def omega(self, d: int) -> float:
        """N - 1: of a message alone."""
        return self.parts - 1.0

    def delta(self, d: int) -> float:
        """1 for one part, else 0 (1 - omega where that is positive)."""
        return max(0.0, 1.0 - self.omega(d))

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 32 d / N, and a seed of 64 bits for all."""
        return 32.0 * d / self.parts, float(SEED_BITS)
