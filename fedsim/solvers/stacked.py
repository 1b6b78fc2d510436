"""Clients side by side: the loop of ``fedsim.solvers.local`` for a group of them, equal to it up to rounding.

    small     tasks with a ``Stack`` of one layer, along gradients, in small steps: see ``fedsim.solvers.small``
    descend   tasks with a ``Stack``, along gradients: product and step are one operation, no gradient row is made;
              modules that vmap takes (``fedsim.tasks.mapped``); and one client of any module (``fedsim.tasks.walker``),
              which is the reference of modules
    walk      momentum, sam, and tasks whose gradients come as rows

With send = "difference" and several steps ``descend`` sends w_0 - w_H as it is, as FedAvg does, so it is exact to the
rounding of w, not of the difference. Everything else sends sums of d_h, as the reference does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.randomness import Stream
from fedsim.solvers import small
from fedsim.solvers.course import Course, batches_of, steps_of
from fedsim.solvers.direction import Gradient, Momentum, Sam
from fedsim.solvers.lengths import Floats, Steps, column
from fedsim.solvers.memory import Memory, Notes
from fedsim.solvers.plan import Ask, Done, Group, Plan, Rows
from fedsim.solvers.rate import Constant, Harmonic
from fedsim.solvers.transfer import sent
from fedsim.tasks.stack import Moving, Walkers, penalties
from fedsim.tasks.task import Batch, Task

if TYPE_CHECKING:
    from fedsim.data import Federation

PADDED = 2**22
"""Numbers of features in one step of a group, padding included; a single client may have more."""

LONG_ROW = 2**13
"""Coordinates from which a row is written where it belongs; of shorter ones it is quicker to copy a group at once."""

NOTHING = Memory()


def groups_of(federation: Federation, clients: Tensor, plan: Plan) -> list[Group]:
    """Most steps and largest batches first, then equally many in each group, at most ``plan.chunk``."""
    if not clients.shape[0]:
        return []
    sizes = federation.sizes_of(clients).numpy()
    steps, batches = steps_of(plan, sizes), batches_of(plan, sizes)
    order = np.lexsort((-batches, -steps))
    inputs = math.prod(federation.features.shape[1:])
    most = -(-len(order) // -(-len(order) // plan.chunk))
    if most == len(order) and most * int(batches.max()) * inputs <= PADDED:
        return [order.tolist()]
    groups: list[Group] = [[]]
    widest = 0
    for place, width in zip(order.tolist(), batches[order].tolist(), strict=True):
        widest = max(widest, width)
        if groups[-1] and (len(groups[-1]) == most or (len(groups[-1]) + 1) * widest * inputs > PADDED):
            groups.append([])
            widest = width
        groups[-1].append(place)
    return groups


def solve_group(task: Task, federation: Federation, plan: Plan, ask: Ask, group: Group, rows: Rows) -> Done:
    """Solve for one group of ``groups_of``; see ``fedsim.solvers.local.solve_group``."""
    clients = ask.clients.numpy()[group]
    memories = [ask.memories.get(client, NOTHING) for client in clients.tolist()]
    course = Course.of(federation, plan, clients, np.array([memory.steps for memory in memories]))
    notes = [memory.direction for memory in memories]
    if isinstance(plan.direction, Momentum):
        notes = [plan.direction.begin(note) for note in notes]
    stack = task.stack
    if small.fits(stack, federation, plan):
        small.descend(stack, course, ask, group, rows)
    else:
        _side_by_side(task, course, ask, group, rows, notes)
    samples = course.samples
    steps = (course.done + course.steps).tolist()
    remembered = [Memory(k, memory.rate, note) for k, memory, note in zip(steps, memories, notes, strict=True)]
    return Done(samples, 2 * samples if isinstance(plan.direction, Sam) else samples, remembered)


def _side_by_side(task: Task, course: Course, ask: Ask, group: Group, rows: Rows, notes: list[Notes]) -> None:
    """Directions and first losses into ``rows``; ``notes`` become those after the round."""
    beside = group == list(range(group[0], group[0] + len(group)))
    places = sent(np.array(group), ask.models.device)
    shared = ask.models.stride(0) == 0
    models = ask.models[: len(group)] if shared else ask.models.index_select(0, places)
    walkers = _room(task, course, rows, models) if isinstance(course.plan.direction, Gradient) else None
    if walkers is not None:
        losses, factors = descend(models, course, ask.stream, walkers)

        def write(out: Tensor, first: int) -> None:
            last = first + out.shape[0]
            walkers.write(out, first)
            if factors is not None:
                out.mul_(column(factors[first:last], out)[:, 0])

        if beside:
            write(rows.direction[group[0] : group[0] + len(group)], 0)
        elif task.dim < LONG_ROW:
            out = torch.empty_like(rows.direction[: len(group)])
            write(out, 0)
            rows.direction.index_copy_(0, places, out)
        else:
            for i, place in enumerate(group):
                write(rows.direction[place : place + 1], i)
    else:
        out = torch.empty_like(rows.direction[: len(group)])
        losses = _Walk(task, course, models.clone()).run(ask.stream, out, notes)
        rows.direction.index_copy_(0, places, out)
    rows.losses.index_copy_(0, places, losses)


def alone(task: Task, plan: Plan) -> bool:
    """Whether the reference of one client is ``descend`` too."""
    return (
        task.walker is not None and isinstance(plan.direction, Gradient) and isinstance(plan.rate, Constant | Harmonic)
    )


def _room(task: Task, course: Course, rows: Rows, like: Tensor) -> Moving | None:
    """Room for a group's models, used again by the next group; None where gradients come as rows."""
    # With one step the models need not move, and the sum is the gradient itself.
    summed = course.plan.local.send == "direction" or int(course.steps[0]) == 1
    key = (course.plan.chunk, summed)
    found = rows.scratch.get(key)
    if found is None or found.room < len(course.clients):
        if course.plan.chunk == 1 and task.walker is not None:
            found = task.walker(summed)
        elif task.stack is not None:
            found = Walkers.of(task.stack, len(course.clients), summed, like)
        elif task.mapped is not None:
            found = task.mapped(len(course.clients), summed, like)
        else:
            return None
        rows.scratch[key] = found
    return found


def descend(models: Tensor, course: Course, stream: Stream, walkers: Moving) -> tuple[Tensor, Floats | None]:
    """(first losses float[c], what rows of ``walkers`` are multiplied by, if at all). models: float[c, d]."""
    steps, plan, count, top = Steps(course), course.plan, models.shape[0], int(course.steps[0])
    summed, head, l2 = walkers.summed, walkers.head, walkers.l2
    walkers.load(models)
    first, h, a = models.new_zeros(count), 0, count
    for page in course.pages(stream, models.dtype):
        answers, features = head.answers(page.targets, models.dtype), walkers.prepared(page.features)
        parts = [page.split(part) for part in (features, answers, page.weights[:, None])]
        for x, y, weight in zip(*parts, strict=True):
            if x.shape[0] != a:
                a = x.shape[0]
                walkers.keep(a)
            etas = None if steps.same is not None else column(steps.at(h)[:a], models)
            shares = None if not summed else steps.shares(h, a, models)
            scale = shares if summed else etas
            balanced = None if h else (weight if plan.order is None else weight / weight.sum(dim=1, keepdim=True))
            found, losses = walkers.errors(x, y, weight if scale is None else weight * scale, balanced)
            if losses is not None:
                first = losses + penalties(models, l2)
            h += 1
            if summed:
                walkers.add(found, 1.0 if shares is None else shares, h == 1)
                if h < top:
                    following = int(np.count_nonzero(course.steps > h))
                    unit = steps.same if steps.same is not None else column(steps.unit[:following], models)
                    walkers.follow(following, unit)
            elif steps.same is not None:
                walkers.descend(found, steps.same, 1 - steps.same * l2)
            else:
                assert etas is not None
                walkers.descend(found, 1.0, 1 - etas * l2 if l2 else 1.0)
    if not summed:
        return first, None
    factors = 1 / steps.lengths() if plan.local.send == "direction" else steps.unit
    return first, factors if bool((factors != 1).any()) else None


class _Walk:
    """A group along gradients that come as rows. models: float[c, d], overwritten."""

    def __init__(self, task: Task, course: Course, models: Tensor) -> None:
        self.course, self.models, self.kind = course, models, course.plan.direction
        self.gradients = _gradients(task, models.dtype)

    def run(self, stream: Stream, out: Tensor, notes: list[Notes]) -> Tensor:
        """As ``descend``; ``notes`` become those after the round."""
        course, models, h = self.course, self.models, 0
        steps, plan, top = Steps(course), course.plan, int(course.steps[0])
        spans = np.zeros(len(course.clients))
        velocity: Tensor | None = None
        if isinstance(self.kind, Momentum):
            velocity, spans = _velocities(notes, models)
        lengths, first = np.zeros(len(course.clients)), models.new_zeros(models.shape[0])
        for page in course.pages(stream, models.dtype):
            parts = [page.split(part) for part in (page.features, page.targets, page.weights)]
            for batch, a in zip(map(Batch, *parts), page.going, strict=True):
                rows, losses = self.gradients(models[:a], batch)
                if h == 0:
                    first = losses if plan.order is None else self._balanced(batch, losses)
                if isinstance(self.kind, Sam):
                    norms = rows.norm(dim=1, keepdim=True)
                    up = models[:a] + self.kind.rho * rows / torch.where(norms > 0, norms, torch.ones_like(norms))
                    rows = self.gradients(up, batch)[0]
                if velocity is not None:
                    assert isinstance(self.kind, Momentum)
                    rows = velocity[:a].mul_(self.kind.beta).add_(rows)
                    spans[:a] = self.kind.beta * spans[:a] + 1
                shares = (steps.at(h) / steps.unit)[:a]
                lengths[:a] += shares * (1 if velocity is None else spans[:a])
                share = None if steps.same is not None else column(shares, models)[:, 0]
                if h == 0:
                    out.copy_(rows)
                else:
                    out[:a].add_(rows if share is None else rows * share)
                h += 1
                if h < top:
                    eta = steps.same if steps.same is not None else column(steps.at(h - 1)[:a], models)[:, 0]
                    models[:a].sub_(eta * rows)
        if velocity is not None:
            notes[:] = [
                {"velocity": row.clone(), "length": torch.tensor(span, dtype=torch.float64)}
                for row, span in zip(velocity[:, None], spans.tolist(), strict=True)
            ]
        if plan.local.send == "direction":
            _divide(out, lengths)
        else:
            out.mul_(column(steps.unit, models)[:, 0])
        return first

    def _balanced(self, batch: Batch, losses: Tensor) -> Tensor:
        """F on batches whose weights need not sum to 1."""
        nothing = Batch(batch.features[:, :1], batch.targets[:, :1], torch.zeros_like(batch.weights[:, :1]))
        penalty = self.gradients(self.models[: losses.shape[0]], nothing)[1]
        return (losses - penalty) / batch.weights.sum(dim=1) + penalty


def _gradients(task: Task, dtype: torch.dtype) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor]]:
    stack = task.stack
    if stack is None:
        return task.gradients
    return lambda rows, batch: stack.gradients(
        rows, batch.features.flatten(2), stack.head.answers(batch.targets, dtype), batch.weights[..., None]
    )


def _velocities(notes: list[Notes], models: Tensor) -> tuple[Tensor, Floats]:
    """(velocity of each client float[c, d], its length float64[c]); zero where there is none."""
    velocity, spans = torch.zeros_like(models), np.zeros(models.shape[0])
    for i, note in enumerate(notes):
        if "velocity" in note:
            velocity[i], spans[i] = note["velocity"][0].to(models), float(note["length"])
    return velocity, spans


def _divide(out: Tensor, lengths: Floats) -> None:
    if bool((lengths != 1).any()):
        out.div_(column(lengths, out)[:, 0])
