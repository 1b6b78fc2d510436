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
eta_h relative to eta_0, so with H = 1 the direction is exactly d_0, and nothing cancels when eta is small. Networks
along gradients are walked by ``stacked.descend``, one by one, where the difference of several steps is w_0 - w_H as it
is.

Sources: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
Algorithm 1 (the difference); Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020, FedNova (the
division); Sadiev et al., "Don't compress gradients in random reshuffling", NeurIPS 2024, Algorithms 3 and 4, where the
direction of an epoch of reshuffling is what Q-NASTYA and DIANA-NASTYA compress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import DataError
from fedsim.randomness import Stream, only
from fedsim.solvers import stacked
from fedsim.solvers.batches import alone
from fedsim.solvers.course import Ints
from fedsim.solvers.direction import direction_of
from fedsim.solvers.memory import Memory
from fedsim.solvers.passes import steps_of_a_pass, walk
from fedsim.solvers.plan import Ask, Done, Group, Local, Plan, Rows, Solution, check_plan
from fedsim.solvers.rate import Here, rule_of
from fedsim.solvers.transfer import sent
from fedsim.tasks.task import Batch, Task

if TYPE_CHECKING:
    from fedsim.data import Federation

__all__ = ["Local", "Plan", "Solution", "check_plan", "gathered", "groups_of", "solve", "solve_group", "solve_into"]


_NONE: Ints = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Walk:
    """What one client sends, float[1, d], its first loss, float[1], and the rest."""

    sent: Tensor
    loss: Tensor
    done: Done


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
    return solve_into(task, federation, plan, Ask(models, clients.cpu(), stream, memories or {}), Rows.like(models))


def solve_into(task: Task, federation: Federation, plan: Plan, ask: Ask, rows: Rows) -> Solution:
    """``solve`` into rows that are there already; the solution's directions and losses are views of them."""
    groups = groups_of(federation, ask.clients, plan)
    return gathered(groups, [solve_group(task, federation, plan, ask, group, rows) for group in groups], rows)


def gathered(groups: Sequence[Group], done: Sequence[Done], rows: Rows) -> Solution:
    """What groups did, in the order of the cohort. rows: where they wrote."""
    places = np.array([place for group in groups for place in group], dtype=np.int64)
    order, device = np.argsort(places), rows.losses.device

    def counts(each: list[Ints]) -> Tensor:
        whole = each[0] if len(each) == 1 else np.concatenate((_NONE, *each))
        return sent(whole[order], device)

    memories = [memory for one in done for memory in one.memories]
    return Solution(
        direction=rows.direction,
        losses=rows.losses,
        samples=counts([one.samples for one in done]),
        gradients=counts([one.gradients for one in done]),
        memories=tuple(map(memories.__getitem__, order.tolist())),
    )


def groups_of(federation: Federation, clients: Tensor, plan: Plan) -> list[Group]:
    """Which clients of a cohort are solved together; how the groups are spread over processes changes no bit.

    Raises DataError for a client without samples.
    """
    _check_sizes(clients, federation)
    # A step of length zero never moves, so only the reference says what it sends.
    if plan.chunk == 1 or plan.step == 0:
        return [[place] for place in range(clients.shape[0])]
    return stacked.groups_of(federation, clients, plan)


def solve_group(task: Task, federation: Federation, plan: Plan, ask: Ask, group: Group, rows: Rows) -> Done:
    """Solve for one group of ``groups_of``: directions and losses go into ``rows``, the rest is returned."""
    if plan.step != 0 and (plan.chunk > 1 or stacked.alone(task, plan)):
        return stacked.solve_group(task, federation, plan, ask, group, rows)
    (place,) = group
    client = int(ask.clients[place])
    # A copy: where a row begins in memory depends on the cohort, and a library may order its sums by that.
    model, memory = ask.models[place : place + 1].clone(), ask.memories.get(client, Memory())
    walked = _walk(task, federation, model, client, plan, ask.stream, memory)
    rows.direction[place], rows.losses[place] = walked.sent[0], walked.loss[0]
    return walked.done


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
    return _Walk(sent, losses[0], Done(np.array([samples]), np.array([gradients]), [memory]))


def _mean_loss(here: Here, loss: Tensor) -> Tensor:
    """F on a batch whose weights, in a pass, need not sum to 1: loss = weight * (F - penalty) + penalty. float[1]."""
    weight = float(here.batch.weights.sum())
    if abs(weight - 1) < 1e-6:
        return loss
    batch = here.batch
    nothing = Batch(batch.features[:, :1], batch.targets[:, :1], torch.zeros_like(batch.weights[:, :1]))
    penalty = here.task.gradients(here.model, nothing)[1]
    return (loss - penalty) / weight + penalty


def _batches(
    federation: Federation, client: int, plan: Plan, stream: Stream, dtype: torch.dtype, done: int
) -> Callable[[int], Batch]:
    """Number of a step within the round -> its batch. done: steps before this round."""
    if plan.order is None:
        fresh = alone(federation, only(client), plan.local.batch, dtype)
        return lambda h: fresh(stream.at(stream.round, index=h))
    ordered = walk(federation, client, plan.local.batch, plan.order, stream.seed, dtype)
    return lambda h: ordered(done + h)


def first_batch(
    federation: Federation, client: int, plan: Plan, stream: Stream, dtype: torch.dtype, memory: Memory
) -> Batch:
    """The batch of a client's first step in the round of ``stream``; see ``solve``."""
    return _batches(federation, client, plan, stream, dtype, memory.steps)(0)


def _check_sizes(clients: Tensor, federation: Federation) -> None:
    sizes = federation.sizes_of(clients).numpy()
    if len(sizes) and not sizes.min():
        empty = int(clients[sizes.argmin()])
        raise DataError(f"client {empty} has no samples, so it has no gradient; leave it out or use another partition")
