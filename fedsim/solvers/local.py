"""What a client does in a round: steps of its local solver from the model it received.

    w_0 = the client's model,   w_{h+1} = w_h - eta_h d_h,   h = 0 .. H-1

    symbol   here            meaning
    H        steps, epochs   steps of a round: given, or so many passes over the client's samples
             batch, order    which samples step h uses
    eta_h    rate            how long it is
    d_h      direction       along what it goes; the gradient of the batch at w_h unless said otherwise
             send            "direction": sum eta_h d_h / sum eta_h;   "difference": w_0 - w_H = sum eta_h d_h

Dividing by the sum of the steps really taken keeps clients with different step sizes, or different numbers of steps,
from weighing more than their share, so the fixed point does not move. Both are summed from the d_h themselves, with
eta_h relative to eta_0, so with H = 1 the direction is exactly d_0, and nothing cancels when eta is small.

Sources: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
Algorithm 1 (the difference); Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020, FedNova (the
division); Sadiev et al., "Don't compress gradients in random reshuffling", NeurIPS 2024, Algorithms 3 and 4, where the
direction of an epoch of reshuffling is what Q-NASTYA and DIANA-NASTYA compress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.errors import ConfigError, DataError
from fedsim.randomness import Stream
from fedsim.solvers.batches import Batches, alone, stacked
from fedsim.solvers.direction import Gradient, LocalDirection, direction_of
from fedsim.solvers.memory import Memory
from fedsim.solvers.order import FRESH, Order
from fedsim.solvers.passes import steps_of_a_pass, walk
from fedsim.solvers.rate import Constant, Here, RateRule, rule_of
from fedsim.solvers.step import Direction
from fedsim.tasks.task import Batch, Task

if TYPE_CHECKING:
    from fedsim.data import Federation


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
    order: str = FRESH
    step: float | str = "1/L"
    send: Literal["direction", "difference"] = "direction"


CONSTANT, GRADIENT = Constant(), Gradient()


@dataclass(frozen=True, slots=True)
class Plan:
    """A ``Local`` ready to run, with its order (None: fresh), step-size rule and direction. step: eta as a number.

    chunk: clients computed at once. 1 is the sequential reference, in which a row has the same bits whatever the
    cohort; more are padded and stacked, equal to it up to rounding, for constant steps along fresh gradients. Bits
    are repeatable for each chunk and number of threads.
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
class _Walk:
    """What one client did."""

    sent: Tensor
    loss: Tensor
    samples: int
    gradients: int
    memory: Memory


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
    plain = local.order == FRESH and isinstance(rate, Constant) and isinstance(direction, Gradient)
    if chunk > 1 and not plain:
        raise ConfigError(
            f"run.chunk = {chunk} stacks constant steps along gradients of fresh batches only; use run.chunk = 1"
        )
    rule_of(rate), direction_of(direction)


def solve(
    task: Task,
    federation: Federation,
    models: Tensor,
    clients: Tensor,
    plan: Plan,
    stream: Stream,
    memories: Mapping[int, Memory] | None = None,
) -> Solution:
    """The directions of n clients from their models.

    models: float[n, d], on the device of the data. clients: int64[n]. stream: the round's Stream(seed, BATCH, round).
    memories: by client number; a client that is not in it starts afresh.

    Raises DataError for a client without samples.
    """
    clients = clients.cpu()
    _check_sizes(clients, federation.sizes[clients])
    if plan.chunk > 1 and clients.shape[0]:
        return _stacked(task, federation, models, clients, plan, stream)
    known = memories or {}
    walks = []
    for i, client in enumerate(clients.tolist()):
        # A copy: where a row begins in memory depends on the cohort, and a library may order its sums by that.
        walks.append(
            _walk(task, federation, models[i : i + 1].clone(), client, plan, stream, known.get(client, Memory()))
        )
    return Solution(
        direction=torch.cat([walk.sent for walk in walks]) if walks else torch.zeros_like(models),
        losses=torch.cat([walk.loss for walk in walks]) if walks else models.new_zeros(0),
        samples=torch.tensor([walk.samples for walk in walks], dtype=torch.int64, device=models.device),
        gradients=torch.tensor([walk.gradients for walk in walks], dtype=torch.int64, device=models.device),
        memories=tuple(walk.memory for walk in walks),
    )


def _walk(
    task: Task, federation: Federation, model: Tensor, client: int, plan: Plan, stream: Stream, memory: Memory
) -> _Walk:
    """One client's round. model: float[1, d]."""
    local, rule, kind = plan.local, rule_of(plan.rate), direction_of(plan.direction)
    batch_of = _batches(federation, client, plan, stream, model.dtype, memory.steps)
    count = local.epochs * steps_of_a_pass(int(federation.sizes[client]), local.batch) or local.steps
    rate, notes = memory.rate, kind.begin(memory.direction)
    # Steps are summed relative to the first that has a length; before it the model has not moved.
    total, lengths, unit = torch.zeros_like(model), 0.0, 0.0
    losses, samples, gradients = [], 0, 0
    for h in range(count):
        here = Here(task, model, batch_of(h))
        eta, rate, cost = rule.step(memory.steps + h, plan.step, here, rate)
        step = kind.step(here, notes)
        notes = step.notes
        samples += here.batch.weights.shape[1]
        gradients += cost + step.gradients
        if h == 0:
            losses.append(step.loss if plan.order is None else _mean_loss(here, step.loss))
        if unit == 0:
            total, lengths, unit = step.row, step.length, eta
        else:
            share = eta / unit
            total, lengths = total + (step.row if share == 1 else share * step.row), lengths + share * step.length
        if h + 1 < count:
            model = model - eta * (step.row if step.move is None else step.move)
    sent = unit * total if local.send == "difference" else total if lengths == 1 else total / lengths
    memory = Memory(memory.steps + count, rate, notes)
    return _Walk(sent, losses[0], samples, gradients, memory)


def _mean_loss(here: Here, loss: Tensor) -> Tensor:
    """F on a batch whose weights, in a pass, need not sum to 1: loss = weight * (F - penalty) + penalty. float[1]."""
    weight = float(here.batch.weights.sum())
    if abs(weight - 1) < 1e-6:
        return loss
    batch = here.batch
    nothing = Batch(batch.features[:, :1], batch.targets[:, :1], torch.zeros_like(batch.weights[:, :1]))
    penalty = here.task.gradients(here.model, nothing)[1]
    return (loss - penalty) / weight + penalty


def _stacked(
    task: Task, federation: Federation, models: Tensor, clients: Tensor, plan: Plan, stream: Stream
) -> Solution:
    """The same for chunks of clients side by side."""
    parts = []
    for start in range(0, clients.shape[0], plan.chunk):
        some = slice(start, start + plan.chunk)
        batches = stacked(federation, clients[some], plan.local.batch, models.dtype)
        parts.append(_side_by_side(task, models[some].clone(), batches, plan, stream))
    directions, losses = zip(*parts, strict=True)
    sizes, local = federation.sizes[clients], plan.local
    samples = local.steps * (sizes.clamp_max(local.batch) if local.batch else sizes).to(models.device)
    memories = tuple(Memory() for _ in range(clients.shape[0]))
    return Solution(torch.cat(directions), torch.cat(losses), samples, samples, memories)


def _side_by_side(task: Task, models: Tensor, batches: Batches, plan: Plan, stream: Stream) -> tuple[Tensor, Tensor]:
    """(what is sent float[n, d], first losses float[n])."""
    gradients, first = task.gradients(models, batches(stream.at(stream.round, index=0)))
    total = gradients
    for index in range(1, plan.local.steps):
        models = models - plan.step * gradients
        gradients, _ = task.gradients(models, batches(stream.at(stream.round, index=index)))
        total = total + gradients
    return (total / plan.local.steps if plan.local.send == "direction" else plan.step * total), first


def _batches(
    federation: Federation, client: int, plan: Plan, stream: Stream, dtype: torch.dtype, done: int
) -> Callable[[int], Batch]:
    """Number of a step within the round -> its batch. done: steps before this round."""
    if plan.order is None:
        fresh = alone(federation, torch.tensor([client]), plan.local.batch, dtype)
        return lambda h: fresh(stream.at(stream.round, index=h))
    ordered = walk(federation, client, plan.local.batch, plan.order, stream.seed, dtype)
    return lambda h: ordered(done + h)


def first_batch(
    federation: Federation, client: int, plan: Plan, stream: Stream, dtype: torch.dtype, memory: Memory
) -> Batch:
    """The batch of a client's first step in the round of ``stream``; see ``solve``."""
    return _batches(federation, client, plan, stream, dtype, memory.steps)(0)


def _check_sizes(clients: Tensor, sizes: Tensor) -> None:
    if clients.shape[0] and not int(sizes.amin()):
        empty = int(clients[sizes.argmin()])
        raise DataError(f"client {empty} has no samples, so it has no gradient; leave it out or use another partition")
