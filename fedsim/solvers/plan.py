"""What a client is to do in a round, and what it did. See ``fedsim.solvers.local`` for the symbols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.plugins import NAMES_CODE
from fedsim.randomness import Stream
from fedsim.solvers.direction import Gradient, LocalDirection, Momentum, Sam, direction_of
from fedsim.solvers.memory import Memory
from fedsim.solvers.order import FRESH, Order
from fedsim.solvers.rate import Constant, Harmonic, RateRule, Salr, rule_of
from fedsim.solvers.step import Direction
from fedsim.tasks.stack import Moving


class Local(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client computes in a round.

    Args:
        steps: steps of a round.
        epochs: passes over the client's samples in a round, instead of a number of steps; 0: ``steps`` counts.
        batch: samples of each step; 0, or more than the client has: all of them.
        order: "fresh", "with-replacement", "reshuffle", "shuffle-once", "incremental", "synchronised", or your own as
            "package.module:name".
        step: eta: a number, or a multiple of 1/L such as "4/L" for convex tasks. It has no effect with one step and
            send = "direction".
        send: the "direction" (mean along the way, weighted by the steps) or the "difference" of the models (FedAvg).
    """

    steps: Annotated[int, msgspec.Meta(ge=1, lt=2**24)] = 1
    epochs: Annotated[int, msgspec.Meta(ge=0)] = 0
    batch: Annotated[int, msgspec.Meta(ge=0)] = 0
    order: Annotated[str, msgspec.Meta(extra=NAMES_CODE)] = FRESH
    step: float | str = "1/L"
    send: Literal["direction", "difference"] = "direction"


CONSTANT, GRADIENT = Constant(), Gradient()


@dataclass(frozen=True, slots=True)
class Plan:
    """A ``Local`` ready to run, with its order (None: fresh), step-size rule and direction. step: eta as a number.

    chunk: clients computed at once. 1 is the sequential reference, in which a row has the same bits whatever the
    cohort; more are stacked, equal to it up to rounding, where ``unstackable`` has nothing against it. Bits are
    repeatable for each chunk and number of threads.
    """

    local: Local
    step: float
    chunk: int = 1
    order: Order | None = None
    rate: RateRule = CONSTANT
    direction: LocalDirection | Direction = GRADIENT


@dataclass(frozen=True, slots=True)
class Solution:
    """What a cohort computed.

    direction: float[n, d]. losses: float[n], F of the received model on the first batch. samples: int64[n], samples of
    all steps. gradients: int64[n], sample gradients taken, probes included. memories: what each client remembers, in
    the order of the cohort; pending until its upload is acknowledged.
    """

    direction: Tensor
    losses: Tensor
    samples: Tensor
    gradients: Tensor
    memories: tuple[Memory, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A cohort's round. models: float[n, d]; clients: int64[n] on the CPU; stream, memories: as in ``solve``."""

    models: Tensor
    clients: Tensor
    stream: Stream
    memories: Mapping[int, Memory]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where a cohort's results go. direction: float[n, d]; losses: float[n]. scratch: buffers of the executor."""

    direction: Tensor
    losses: Tensor
    scratch: dict[tuple[int, bool], Moving] = field(default_factory=dict)

    @staticmethod
    def like(models: Tensor) -> Rows:
        """New rows for models float[n, d]."""
        if models.device.type == "cpu":
            # numpy asks for huge pages: a fresh page for every 4 KiB costs more than what is written there.
            kind = np.float64 if models.dtype == torch.float64 else np.float32
            direction = torch.from_numpy(np.empty(tuple(models.shape), kind))
        else:
            direction = torch.empty(models.shape, dtype=models.dtype, device=models.device)
        return Rows(direction, models.new_empty(models.shape[0]))

    def of(self, count: int) -> Rows:
        """The first ``count`` of them, with the same buffers."""
        if count == self.losses.shape[0]:
            return self
        return Rows(self.direction[:count], self.losses[:count], self.scratch)


Group = list[int]
"""Places in a cohort of clients that are solved together."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a group did besides its directions, in its order: see ``Solution``. samples, gradients: int64[c]."""

    samples: NDArray[np.int64]
    gradients: NDArray[np.int64]
    memories: list[Memory]


def check_plan(local: Local, rate: RateRule, direction: LocalDirection, chunk: int) -> None:
    """Raise ConfigError for choices that contradict each other, and for a user's own parts that cannot be made."""
    if local.epochs and local.steps != 1:
        raise ConfigError(
            f"local.epochs = {local.epochs} and local.steps = {local.steps}: a round has one length; drop one"
        )
    if local.epochs and local.order == FRESH:
        raise ConfigError(
            "local.epochs needs an order with passes, but local.order = 'fresh'; use 'reshuffle' or local.steps"
        )
    if local.send == "direction" and not isinstance(rate, Constant) and _single(local) and not _at_server(rate):
        raise ConfigError(
            f"rate.rule = {rate.__struct_config__.tag!r} has no effect on a single local step that is sent as its "
            "direction; use local.steps > 1, local.send = 'difference' or, for salr, rate.level = 'server'"
        )
    if chunk > 1 and (reason := unstackable(rate, direction)):
        raise ConfigError(f"run.chunk = {chunk} stacks clients, but {reason}; use run.chunk = 1")
    rule_of(rate), direction_of(direction)


def _single(local: Local) -> bool:
    return local.steps == 1 and (local.epochs == 0 or (local.epochs == 1 and local.batch == 0))


def _at_server(rate: RateRule) -> bool:
    return isinstance(rate, Salr) and rate.level == "server"


def unstackable(rate: RateRule, direction: LocalDirection | Direction) -> str | None:
    """Why clients cannot be solved side by side; None where they can."""
    if not isinstance(rate, Constant | Harmonic):
        return "rate.rule is neither 'constant' nor 'harmonic', so each client finds its own steps"
    if not isinstance(direction, Gradient | Momentum | Sam):
        return "direction.kind is not one of 'gradient', 'momentum' and 'sam'"
    return None
