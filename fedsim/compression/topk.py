"""The coordinates of largest magnitude, of equal ones the first: biased, for error feedback and memories of rate 1.

    top-k   C(x)_j = x_j [j in T]                   delta = k / d
    STC     C(x)_j = mu sign(x_j) [j in T],         delta = min(1 / k, k / d)
            mu = mean of |x_j| over the nonzeros of T

T holds the k coordinates of largest magnitude, whose squares are at least k / d of all. The values of top-k may be
compressed again: what is left out is orthogonal to what is kept, so delta is k / d times delta of the values.

STC errs by ||x||^2 - ||x_T||_1^2 / m, m the number of nonzeros in T, because mu is the best factor of those signs. If
m < k, T holds all of x and ||x_T||_1^2 >= ||x||^2, so that delta = 1 / m serves. If m = k: for magnitudes
a_1 >= a_2 >= ... of fixed sum over T, ||x||^2 is at most sum_T a_j^2 + (d - k) a_k^2, a convex function of the a in T,
whose largest value is at a corner of the ordered simplex: k equal magnitudes, where ||x_T||_1^2 / (k ||x||^2) = k / d,
or fewer than k equal ones and zeros, where it is at least 1 / k. The first is reached, the second approached by
(1, e, e, ...) as e falls to zero.

Sources: top-k: Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018; STC: Sattler, Wiedemann, Müller
and Samek, "Robust and communication-efficient federated learning from non-iid data", IEEE TNNLS 2020. The constant of
STC is derived here.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor

from fedsim.compression import places
from fedsim.compression.chosen import Placed, PlacedLayout
from fedsim.compression.identity import Identity
from fedsim.compression.payload import Layout, Levels, LevelsLayout, Payload
from fedsim.compression.quantize import Quantize
from fedsim.compression.randomk import Share
from fedsim.errors import WireError
from fedsim.flat import tree_sum
from fedsim.randomness import Stream


class TopK(msgspec.Struct, frozen=True, tag_field="compressor", tag="top-k", forbid_unknown_fields=True):
    """The k coordinates of largest magnitude, and their places.

    Args:
        fraction: k / d; k is the nearest number, at least 1.
        values: what the kept numbers go through: "identity" (float32 or float64) or "quantize".
    """

    fraction: Share = 0.01
    values: Identity | Quantize = Identity()

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> PlacedLayout:
        k = places.share(self.fraction, d)
        return PlacedLayout(d, k, self.values.layout(k))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Placed. Raises DivergedError when a number is not finite or too large for the wire's type."""
        layout = self._layout(rows.shape[1])
        chosen = places.largest(places.finite(rows), layout.k).to(rows.device)
        kept = places.packed(self.values, rows.gather(1, chosen), noise, clients)
        return Placed(layout, chosen.to(torch.int32), kept)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Placed -> dtype[n, d]."""
        if not isinstance(payload, Placed) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"top-k of {self.fraction} got {type(payload).__name__} of another layout")
        kept = self.values.decompress(payload.kept, dtype)
        return places.scatter(kept, payload.places.to(torch.int64), payload.layout.d)

    def omega(self, d: int) -> float:
        """Infinity: biased; unless k = d, where it is that of the values."""
        k = places.share(self.fraction, d)
        return math.inf if k < d else self.values.omega(k)

    def delta(self, d: int) -> float:
        """k / d times delta of the values."""
        k = places.share(self.fraction, d)
        return k / d * self.values.delta(k)

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): those of the k values, and ceil(log2 d) for each place."""
        k = places.share(self.fraction, d)
        message, shared = self.values.formula_bits(k)
        return message + k * (d - 1).bit_length(), shared


class SparseTernary(msgspec.Struct, frozen=True, tag_field="compressor", tag="stc", forbid_unknown_fields=True):
    """STC: the signs of the k coordinates of largest magnitude times one number, the mean of those magnitudes.

    Zeros are not among the k. A message is that of a quantizer of one level whose norm is the mean.

    Args:
        fraction: k / d; k is the nearest number, at least 1.
    """

    fraction: Share = 0.01

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return LevelsLayout(d, 1, d)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Levels. Raises DivergedError when a number is not finite or the mean too large for float32."""
        d = rows.shape[1]
        chosen = places.largest(places.finite(rows), places.share(self.fraction, d)).to(rows.device)
        kept = rows.gather(1, chosen)
        count = (kept != 0).sum(dim=1).clamp(min=1)
        means = places.finite((tree_sum(kept.abs().to(torch.float64), dim=1) / count).to(torch.float32))[:, None]
        signs = (kept.sign() * (means > 0)).to(torch.int32)  # a mean below float32's smallest number is no message
        return Levels(LevelsLayout(d, 1, d), places.scatter(signs, chosen, d), means)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Levels -> dtype[n, d]."""
        if not isinstance(payload, Levels) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"stc got {type(payload).__name__} of another layout")
        return payload.norms.to(dtype) * payload.levels.to(dtype)

    def omega(self, d: int) -> float:
        """Infinity: biased; 0 for one coordinate."""
        return math.inf if d > 1 else 0.0

    def delta(self, d: int) -> float:
        """min(1 / k, k / d), which is at least 1 / d."""
        k = places.share(self.fraction, d)
        return min(1.0 / k, k / d)

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): a sign and a Golomb-coded gap for each of k, and a float.

        With q = k / d: b = 1 + floor(log2(log(phi - 1) / log(1 - q))), phi the golden ratio, and b + 1 / (1 - (1 -
        q)^(2^b)) bits a gap (Sattler et al., equation 17). No gap where k = d.
        """
        k = places.share(self.fraction, d)
        if k == d:
            return 32.0 + d, 0.0
        left = math.log1p(-k / d)
        b = max(0, 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / left)))
        return 32.0 + k * (1 + b - 1 / math.expm1(2**b * left)), 0.0
