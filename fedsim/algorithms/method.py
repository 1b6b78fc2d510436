"""The switches of bidirectional compression: what a recipe sets and a user may override."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
import torch
from torch import Tensor

from fedsim.compression import (
    Compressor,
    Eden,
    Half,
    Identity,
    Layout,
    Natural,
    NaturalDithering,
    Payload,
    PerTensor,
    Quantize,
    Sign,
    Sparsifier,
    fitted,
)
from fedsim.randomness import Stream

AnyCompressor = Identity | Quantize | Natural | NaturalDithering | Sign | Eden | Half | Sparsifier | PerTensor
Feedback = Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["step"]


class Uplink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client to server.

    Args:
        compressor: what a direction goes through.
        memory: clients send the difference to what they usually send (h_i), not the direction itself.
        rate: alpha, how fast a memory learns; "auto" is 1 / (2 (omega + 1)), or 1 where the compressor is biased or
            the message is corrected, as EF21, DASHA and MARINA do.
        correction: a: a message carries C(g_i - k_i - a (h_i - k_i)), where k_i is what the client computed last. 1:
            C(g_i - h_i), nothing of k_i; "auto" is 1 / (1 + 2 omega) (DASHA); 0: the change of the gradient (MARINA).
        synchronise: probability of a round in which all clients send what they computed in full, as their memory, and
            nothing else; "auto" is 1 / (1 + omega) (MARINA).
        rate_levels: when > 0, "auto" takes the omega of s-quantization with so many levels, not the compressor's own
            (the published "SGD with memory" is uncompressed but learns at the quantizer's rate).
        initial: memories start at "zero", or at the first "gradient", uploaded in full and counted (all clients).
        feedback: coefficient of the error feedback: 0 is off, "step" is the server's step size (as in the published
            code of Artemis for Dore and DoubleSqueeze).
    """

    compressor: AnyCompressor = Quantize()
    memory: bool = False
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] | Literal["auto"] = "auto"
    rate_levels: Annotated[int, msgspec.Meta(ge=0)] = 0
    initial: Literal["zero", "gradient"] = "zero"
    feedback: Feedback = 0.0
    correction: Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["auto"] = 1.0
    synchronise: Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["auto"] = 0.0

    def alpha(self, d: int) -> float:
        """Memory rate for rows of ``d`` coordinates; 0 without memory. Default: Artemis, section 2 (1/(2(omega+1)))."""
        if not self.memory:
            return 0.0
        if self.rate != "auto":
            return self.rate
        return 1.0 if self.correction != 1.0 else memory_rate(self.compressor, self.rate_levels, d)

    def correct(self, d: int) -> float:
        """a, for rows of ``d`` coordinates. Default: DASHA (Tyurin and Richtarik, ICLR 2023), Theorem 6.1."""
        return 1.0 / (1.0 + 2.0 * self.compressor.omega(d)) if self.correction == "auto" else self.correction

    def full(self, d: int) -> float:
        """Probability of a round in full. Default: MARINA (Gorbunov et al., ICML 2021), Corollary 2.1."""
        return 1.0 / (1.0 + self.compressor.omega(d)) if self.synchronise == "auto" else self.synchronise


class Downlink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Server to clients.

    Args:
        compressor: what the message goes through.
        feedback: coefficient of the error feedback, as for the uplink.
        memory: "none": the update is compressed, and applied by the server and by every client alike (Artemis).
            "update": so is its difference to H, which both ends keep (EF21-BC). "model": what is compressed is the
            difference of the server's model to H; the server keeps its own model, and clients compute at H + message
            (MCM, EF21-P).
        rate: how fast H learns; "auto" is 1 / (2 (omega + 1)), or 1 where the compressor is biased.
        each: a message and an H of its own for every client (Rand-MCM); who was absent has nothing to catch up with.
    """

    compressor: AnyCompressor = Quantize()
    feedback: Feedback = 0.0
    memory: Literal["none", "update", "model"] = "none"
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] | Literal["auto"] = "auto"
    each: bool = False

    def beta(self, d: int) -> float:
        """Rate of H for rows of ``d`` coordinates; 0 without. Default: as in the published code of MCM."""
        if self.memory == "none":
            return 0.0
        return memory_rate(self.compressor, 0, d) if self.rate == "auto" else self.rate


def memory_rate(compressor: Compressor, levels: int, d: int) -> float:
    """1 / (2 (omega + 1)), and 1 for a biased compressor. levels: when > 0, of the s-quantization to take instead."""
    omega = (Quantize(levels) if levels else compressor).omega(d)
    return 1.0 / (2.0 * (omega + 1.0)) if math.isfinite(omega) else 1.0


Channel = TypeVar("Channel", Uplink, Downlink)


def fitted_channel(channel: Channel, sizes: tuple[int, ...]) -> Channel:
    """With its compressor for a model whose tensors have so many coordinates each."""
    return msgspec.structs.replace(channel, compressor=fitted(channel.compressor, sizes))


class ServerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the server turns a cohort's uploads into a step.

    Args:
        step: gamma: a number, or a multiple of 1/L such as "4/L" for convex tasks.
        schedule: "constant", or "inverse-sqrt": gamma / sqrt(k) in round k = 1, 2, ...
        smoothness: which L: the "spectral" norm, or the "frobenius" norm of the published Artemis code.
        weights: "pooled": client i counts n_i / n, so the objective is the mean over all samples; "uniform": 1 / N.
        memory: "pp2": the server keeps the mean of all memories; "pp1": it keeps every client's memory.
        normalise: divide by the "expected" size of the cohort (unbiased), by the weight of those "present" (FedAvg), or
            by that of all "registered" clients: those absent count with what they usually send (EF21-PP).
        average: also keep the Polyak-Ruppert mean of the iterates.
        paper_compat: update the mean memory with alpha / (p N), as the published code does, instead of alpha / N.
        aggregate: what is made of a cohort's directions: their weighted "mean", or what a hostile minority cannot move
            far, a "geometric-median", "median" or "trimmed-mean" (``fedsim.algorithms.robust``).
        trim: share of a cohort that a trimmed mean leaves out at either end of each coordinate; 0: no trimmed mean.
        clip: directions are shortened to so many times their median length; 0: they are not.
    """

    step: float | str = "1/L"
    schedule: Literal["constant", "inverse-sqrt"] = "constant"
    smoothness: Literal["spectral", "frobenius"] = "spectral"
    weights: Literal["pooled", "uniform"] = "pooled"
    memory: Literal["pp1", "pp2"] = "pp2"
    normalise: Literal["expected", "present", "registered"] = "expected"
    average: bool = False
    paper_compat: bool = False
    aggregate: Literal["mean", "geometric-median", "median", "trimmed-mean"] = "mean"
    trim: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.0
    clip: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def robust(self) -> bool:
        """Whether the estimate is made of rows that are looked at one by one, and not of sums alone."""
        return self.aggregate != "mean" or self.clip > 0


RowMap = Callable[[Tensor], Tensor]
"""float[n, d] -> float[n, d]."""


@dataclass(frozen=True, slots=True)
class Space:
    """Coordinates other than the model's own, in which a method works.

    step: the estimate of the gradient -> the step along it, in the model's coordinates. uplink: gradients -> what the
    uplink compresses, and back; downlink: steps -> what the downlink compresses, and back; None: as they are.
    """

    step: RowMap
    uplink: tuple[RowMap, RowMap] | None = None
    downlink: tuple[RowMap, RowMap] | None = None


@dataclass(frozen=True, slots=True)
class Within:
    """A compressor that works in other coordinates: the variance constant holds there."""

    compressor: Compressor
    into: RowMap
    back: RowMap

    def layout(self, d: int) -> Layout:
        """As the compressor's."""
        return self.compressor.layout(d)

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> payload of the mapped rows."""
        return self.compressor.compress(self.into(rows), noise, clients)

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Payload -> dtype[n, d], mapped back."""
        return self.back(self.compressor.decompress(payload, dtype))

    def omega(self, d: int) -> float:
        """As the compressor's."""
        return self.compressor.omega(d)

    def delta(self, d: int) -> float:
        """As the compressor's."""
        return self.compressor.delta(d)

    def formula_bits(self, d: int) -> tuple[float, float]:
        """As the compressor's."""
        return self.compressor.formula_bits(d)


class Method(msgspec.Struct, frozen=True):
    """A complete bidirectional method for rows of ``d`` coordinates. space: where it works; None: the model's own."""

    uplink: Uplink
    downlink: Downlink
    server: ServerOptions
    d: int
    space: Space | None = None

    @property
    def up(self) -> Compressor:
        """What a direction goes through, gradient to gradient."""
        maps = None if self.space is None else self.space.uplink
        return self.uplink.compressor if maps is None else Within(self.uplink.compressor, *maps)

    @property
    def down(self) -> Compressor:
        """What an update goes through, step to step."""
        maps = None if self.space is None else self.space.downlink
        return self.downlink.compressor if maps is None else Within(self.downlink.compressor, *maps)

    def step(self, estimate: Tensor) -> Tensor:
        """Estimate of the gradient, float[d] -> the step along it."""
        return estimate if self.space is None else self.space.step(estimate[None])[0]

    @property
    def alpha(self) -> float:
        """Memory rate of the uplink."""
        return self.uplink.alpha(self.d)

    @property
    def beta(self) -> float:
        """Memory rate of the downlink."""
        return self.downlink.beta(self.d)

    @property
    def correction(self) -> float:
        """a of the uplink."""
        return self.uplink.correct(self.d)


def feedback_coefficient(feedback: Feedback, step: float) -> float:
    """The number behind a feedback setting; ``step`` is the server's step size of the round."""
    return step if feedback == "step" else float(feedback)
