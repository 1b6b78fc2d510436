"""s-quantization: each coordinate is rounded at random to one of s + 1 levels of its bucket's norm.

    C(x)_j = ||x|| sign(x_j) (l_j + [u_j < s|x_j|/||x|| - l_j]) / s,    l_j = floor(s |x_j| / ||x||),    u_j ~ U[0, 1)

    paper    here      meaning
    s        levels    number of positive levels
    ||x||    norms     2-norm or infinity norm of the bucket, rounded UP to float32 so that every |x_j| / norm <= 1

Unbiased: E C(x) = x, also with the rounded norm, because both ends use the same norm; up to the resolution of u,
which moves the mean by at most 2^-24 norm / s (2^-32 in float64). A norm below 1e-38 rounds up to a float32 denormal;
then the variance may exceed omega ||x||^2.
Variance: E||C(x) - x||^2 <= omega ||x||^2 with, for buckets of b coordinates,
    2-norm         omega = min(b / s^2, sqrt(b) / s)       Alistarh et al. 2017 (QSGD), Lemma 3.1
    infinity norm  omega = min(b / (4 s^2), (sqrt(b) - 1) / 2)  for s = 1, min(b / (4 s^2), sqrt(b) / s) for s > 1
One level and the infinity norm is TernGrad (Wen et al., NeurIPS 2017) without its clipping, which would be biased.
The infinity norm is derived here: a coordinate at fraction f between two levels has variance (norm/s)^2 f (1 - f), at
most norm^2 / (4 s^2), and norm <= ||x||_2, which gives b / (4 s^2). f (1 - f) <= f <= s |x_j| / norm sums to at most
norm ||x||_1 / s <= sqrt(b) ||x||_2^2 / s. For s = 1 the variance is norm ||x||_1 - ||x||_2^2, at most
(sqrt(b) - 1) / 2 times ||x||_2^2, reached by one coordinate 1 and the rest 1 / (1 + sqrt(b)).

Source: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD", NeurIPS 2017, section 3.1; it is the operator of every
experiment in Philippenko and Dieuleveut, "Artemis", arXiv 2006.14591.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.compression import buckets, fused, sparse
from fedsim.compression.payload import Layout, Levels, LevelsLayout, Payload, Sparse
from fedsim.errors import DivergedError, WireError
from fedsim.randomness import Stream

MAX_LEVELS = 2**15 - 1

_NOT_FINITE = "a row to quantize is not finite or its norm exceeds 3.4e38; use a smaller step size"


class Quantize(msgspec.Struct, frozen=True, tag_field="compressor", tag="quantize", forbid_unknown_fields=True):
    """s-quantization.

    Args:
        levels: s, from 1 to 32767.
        norm: "l2" or "linf".
        bucket: coordinates that share a norm; 0: the whole row.
    """

    levels: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEVELS)] = 1
    norm: Literal["l2", "linf"] = "l2"
    bucket: Annotated[int, msgspec.Meta(ge=0)] = 0

    def _bucket(self, d: int) -> int:
        return buckets.size(self.bucket, d)

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return LevelsLayout(d, self.levels, self._bucket(d))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Levels; row i draws the noise of clients[i]. A zero bucket stays zero.

        Raises DivergedError when a row is not finite or its norm is beyond float32.
        """
        if fused.usable(rows):
            return self.quantize(rows, None, 0.0, noise, clients)[0]
        layout = LevelsLayout(rows.shape[1], self.levels, self._bucket(rows.shape[1]))
        magnitudes = rows.abs()
        norms = buckets.norms(magnitudes, layout.bucket, self.norm == "linf")
        if not bool(torch.isfinite(norms).all()):
            raise DivergedError(_NOT_FINITE)
        safe = torch.where(norms > 0, norms, torch.ones_like(norms)).to(rows.dtype)
        scaled = magnitudes / buckets.spread(safe, layout.bucket, layout.d) * self.levels
        low = scaled.floor()
        up = noise.uniform(clients, layout.d, rows.dtype) < scaled - low
        levels = (low + up) * rows.sign()
        return Levels(layout, levels.to(torch.int32), norms)

    def quantize(
        self, rows: Tensor, memory: Tensor | None, rate: float, noise: Stream, clients: Tensor
    ) -> tuple[Payload, Tensor]:
        """By a kernel, for rows that it can take: see ``fused.quantize``. Raises as ``compress``."""
        layout = LevelsLayout(rows.shape[1], self.levels, self._bucket(rows.shape[1]))
        payload, after = fused.quantize(rows, memory, rate, layout, self.norm == "linf", noise, clients)
        if payload is None:
            raise DivergedError(_NOT_FINITE)
        return payload, after

    def send(
        self, rows: Tensor, memory: Tensor, rate: float, noise: Stream, clients: Tensor, threads: int
    ) -> Sparse | None:
        """See ``cohort.send``. Raises as ``compress``, and then some memories have been stepped."""
        layout = LevelsLayout(rows.shape[1], self.levels, self._bucket(rows.shape[1]))
        linf = self.norm == "linf"
        if not (fused.usable(rows) and fused.usable(memory) and sparse.pays(layout, linf)):
            return None
        payload = sparse.quantize(rows, memory, rate, layout, linf, noise, clients, threads)
        if payload is None:
            raise DivergedError(_NOT_FINITE)
        return payload

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Levels -> dtype[n, d]: norm * level / s."""
        levels = self.check(payload)
        if dtype in (torch.float32, torch.float64) and fused.usable(levels.norms):
            return fused.decode(levels, dtype)
        norms = buckets.spread(levels.norms.to(dtype), levels.layout.bucket, levels.layout.d)
        return norms * (levels.levels.to(dtype) / self.levels)

    def check(self, payload: Payload) -> Levels:
        """Raise WireError for a payload of another compressor."""
        if not isinstance(payload, Levels) or payload.layout.levels != self.levels:
            raise WireError(f"quantize with {self.levels} levels got {type(payload).__name__} of another layout")
        return payload

    def omega(self, d: int) -> float:
        """Variance constant of the worst row of ``d`` coordinates (formulas at the top of this file)."""
        b, s = self._bucket(d), self.levels
        if self.norm == "l2":
            return min(b / s**2, math.sqrt(b) / s)
        return min(b / (4 * s**2), (math.sqrt(b) - 1) / 2 if s == 1 else math.sqrt(b) / s)

    def delta(self, d: int) -> float:
        """1 - omega, where the variance is less than the row itself."""
        return max(0.0, 1.0 - self.omega(d))

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round) as the published Artemis code counts them, for the 2-norm.

        It assumes that norm's sparsity: with the infinity norm a real message is longer than this.

        Per bucket 4.5 ln(2 (s^2 + b) / (s (s + sqrt b))) s (s + sqrt b), and one 32-bit norm for a whole round. QSGD's
        theorem 3.2 reads 3 + 1.5 log2(...) instead and one norm for each message; this is the figure of the published
        plots, kept to compare with them. What a message really costs is the length of its encoding.
        """
        return _formula_bits(d, self._bucket(d), self.levels), 32.0


@cache
def _formula_bits(d: int, bucket: int, s: int) -> float:
    bits = 0.0
    for start in range(0, d, bucket):
        b = min(bucket, d - start)
        size = s * (s + math.sqrt(b))
        bits += 4.5 * math.log(2 * (s**2 + b) / size) * size
    return bits
