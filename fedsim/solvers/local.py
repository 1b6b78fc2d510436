"""What a client does in a round: H steps of (stochastic) gradient descent from the model it received.

    w_0 = the client's model,   w_{h+1} = w_h - eta g_h,   g_h = gradient of the h-th batch at w_h,   h = 0 .. H-1

    symbol   here         meaning
    H        steps
    eta      step         client step size
             batch        samples of each g_h; 0: all of them
             send         "direction": (w_0 - w_H) / (H eta), the mean of g_h; "difference": w_0 - w_H

Both are computed from the gradients themselves, so with H = 1 the direction is exactly the gradient, and nothing
cancels when eta is small.

Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
Algorithm 1 (the difference). The direction is the pseudo-gradient of Reddi et al., "Adaptive federated optimization",
ICLR 2021, divided by the sum of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.errors import DataError
from fedsim.randomness import Stream
from fedsim.solvers.batches import Batches, alone, stacked
from fedsim.tasks.task import Task

if TYPE_CHECKING:
    from fedsim.data.examples import Federation


class Local(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client computes in a round.

    Args:
        steps: gradient steps of a round.
        batch: samples of each step, distinct and drawn afresh; 0, or more than the client has: all of them.
        step: size of a step: a number, or a multiple of 1/L such as "4/L" for convex tasks. It has no effect with one
            step and send = "direction".
        send: the "direction" (mean gradient along the way) or the "difference" of the models (as in FedAvg).
    """

    steps: Annotated[int, msgspec.Meta(ge=1, lt=2**24)] = 1
    batch: Annotated[int, msgspec.Meta(ge=0)] = 0
    step: float | str = "1/L"
    send: Literal["direction", "difference"] = "direction"


@dataclass(frozen=True, slots=True)
class Plan:
    """A ``Local`` ready to run. step: its step size as a number.

    chunk: clients computed at once. 1 is the sequential reference, in which a row has the same bits whatever the
    cohort; more are padded and stacked, equal to it up to rounding. Bits repeat for equal chunk and thread counts.
    """

    local: Local
    step: float
    chunk: int = 1


@dataclass(frozen=True, slots=True)
class Solution:
    """What a cohort computed.

    direction: float[n, d]. losses: float[n], F of the received model on the first batch. samples: int64[n], samples
    whose gradient was taken in the round, over all steps.
    """

    direction: Tensor
    losses: Tensor
    samples: Tensor


def solve(task: Task, federation: Federation, models: Tensor, clients: Tensor, plan: Plan, stream: Stream) -> Solution:
    """The directions of n clients from their models.

    models: float[n, d], on the device of the data. clients: int64[n]. stream: the round's Stream(seed, BATCH, round).

    Raises DataError for a client without samples.
    """
    clients, local = clients.cpu(), plan.local
    sizes = federation.sizes[clients]
    _check_sizes(clients, sizes)
    samples = local.steps * (sizes.clamp_max(local.batch) if local.batch else sizes)
    if not clients.shape[0]:
        return Solution(torch.zeros_like(models), models.new_zeros(0), samples.to(models.device))
    parts = []
    for start in range(0, clients.shape[0], plan.chunk):
        some = slice(start, start + plan.chunk)
        batches = (alone if plan.chunk == 1 else stacked)(federation, clients[some], local.batch, models.dtype)
        # A copy: where a row begins in memory depends on the cohort, and a library may order its sums by that.
        parts.append(_walk(task, models[some].clone(), batches, plan, stream))
    directions, losses = zip(*parts, strict=True)
    return Solution(torch.cat(directions), torch.cat(losses), samples.to(models.device))


def _walk(task: Task, models: Tensor, batches: Batches, plan: Plan, stream: Stream) -> tuple[Tensor, Tensor]:
    """(what is sent float[n, d], first losses float[n])."""
    gradients, first = task.gradients(models, batches(stream.at(stream.round, index=0)))
    total = gradients
    for index in range(1, plan.local.steps):
        models = models - plan.step * gradients
        gradients, _ = task.gradients(models, batches(stream.at(stream.round, index=index)))
        total = total + gradients
    return (total / plan.local.steps if plan.local.send == "direction" else plan.step * total), first


def _check_sizes(clients: Tensor, sizes: Tensor) -> None:
    if clients.shape[0] and not int(sizes.amin()):
        empty = int(clients[sizes.argmin()])
        raise DataError(f"client {empty} has no samples, so it has no gradient; leave it out or use another partition")
