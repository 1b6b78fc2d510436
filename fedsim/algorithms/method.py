"""The switches of bidirectional compression: what a recipe sets and a user may override."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

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
    Quantize,
    Sign,
)
from fedsim.errors import ConfigError
from fedsim.randomness import Stream

AnyCompressor = Identity | Quantize | Natural | NaturalDithering | Sign | Eden | Half
Feedback = Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["step"]


class Uplink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client to server.

    Args:
        compressor: what a direction goes through.
        memory: clients send the difference to what they usually send (h_i), not the direction itself.
        rate: alpha, how fast a memory learns; "auto" is 1 / (2 (omega + 1)).
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

    def alpha(self, d: int) -> float:
        """Memory rate for rows of ``d`` coordinates; 0 without memory. Default: Artemis, section 2 (1/(2(omega+1)))."""
        if not self.memory:
            return 0.0
        if self.rate != "auto":
            return self.rate
        reference = Quantize(self.rate_levels) if self.rate_levels else self.compressor
        return 1.0 / (2.0 * (reference.omega(d) + 1.0))


class Downlink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Server to clients: the compressed update, applied alike by the server and by every client."""

    compressor: AnyCompressor = Quantize()
    feedback: Feedback = 0.0


class ServerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the server turns a cohort's uploads into a step.

    Args:
        step: gamma: a number, or a multiple of 1/L such as "4/L" for convex tasks.
        schedule: "constant", or "inverse-sqrt": gamma / sqrt(k) in round k = 1, 2, ...
        smoothness: which L: the "spectral" norm, or the "frobenius" norm of the published Artemis code.
        weights: "pooled": client i counts n_i / n, so the objective is the mean over all samples; "uniform": 1 / N.
        memory: "pp2": the server keeps the mean of all memories; "pp1": it keeps every client's memory.
        normalise: divide by the "expected" size of the cohort (unbiased) or by the weight of those "present" (FedAvg).
        average: also keep the Polyak-Ruppert mean of the iterates.
        paper_compat: update the mean memory with alpha / (p N), as the published code does, instead of alpha / N.
    """

    step: float | str = "1/L"
    schedule: Literal["constant", "inverse-sqrt"] = "constant"
    smoothness: Literal["spectral", "frobenius"] = "spectral"
    weights: Literal["pooled", "uniform"] = "pooled"
    memory: Literal["pp1", "pp2"] = "pp2"
    normalise: Literal["expected", "present"] = "expected"
    average: bool = False
    paper_compat: bool = False


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


def check(uplink: Uplink, downlink: Downlink, server: ServerOptions, probability: float) -> None:
    """Raise ConfigError for switches that contradict each other, with the reason and the way out."""
    if not uplink.memory:
        for key, value, unset in (
            ("uplink.rate", uplink.rate, "auto"),
            ("uplink.rate_levels", uplink.rate_levels, 0),
            ("uplink.initial", uplink.initial, "zero"),
            ("server.memory", server.memory, "pp2"),
            ("server.paper_compat", server.paper_compat, False),
        ):
            if value != unset:
                raise ConfigError(
                    f"{key} = {value!r} needs memories, but uplink.memory = false; set it to true or drop {key}"
                )
    if uplink.initial == "gradient" and probability < 1:
        raise ConfigError(
            "uplink.initial = 'gradient' needs every client in the first round, but participation is partial; "
            "use initial = 'zero' or participation.scheme = 'full'"
        )
    if server.paper_compat and server.memory == "pp1":
        raise ConfigError(
            "server.paper_compat changes the pp2 update only, but server.memory = 'pp1'; drop one of them"
        )


def check_feedback(name: str, compressor: Compressor, feedback: Feedback, step: float, d: int) -> None:
    """Refuse an error feedback that cannot be stable.

    The error obeys E||e'||^2 <= omega ||x + c e||^2, so it stays bounded only when c^2 omega < 1.
    """
    c, omega = feedback_coefficient(feedback, step), compressor.omega(d)
    if c * c * omega >= 1:
        raise ConfigError(
            f"{name}.feedback = {feedback!r} is {c:.3g} with a compressor of omega = {omega:.3g} at d = {d}: "
            f"the error would grow (c^2 omega >= 1); use feedback = 'step' with a smaller step, or more levels"
        )


def feedback_coefficient(feedback: Feedback, step: float) -> float:
    """The number behind a feedback setting; ``step`` is the server's step size of the round."""
    return step if feedback == "step" else float(feedback)
