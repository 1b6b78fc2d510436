"""Small steps of models of one layer: a compiled loop over the clients of a group instead of products over all of them.

When a step is a few thousand numbers, calling a library for it costs more than the step. The kernel adds the d_h up, as
the reference does, and a row's bits do not depend on the clients beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import torch

from fedsim import kernels
from fedsim.solvers.course import Course, Ints
from fedsim.solvers.direction import Gradient
from fedsim.solvers.lengths import Steps
from fedsim.solvers.order import incremental
from fedsim.solvers.plan import Ask, Plan, Rows
from fedsim.tasks.linear import Logits, Squares
from fedsim.tasks.stack import Classes, Head, Number, Stack

if TYPE_CHECKING:
    from fedsim.data import Federation

SMALL = 2**16
"""Samples of a step times coordinates up to which the loop is the quicker one."""

_FILE: Ints = np.empty((0, 0, 0), np.int64)


def fits(stack: Stack | None, federation: Federation, plan: Plan) -> TypeGuard[Stack]:
    """Whether the loop is for these steps: small ones, along gradients, in float32 or float64 on the CPU.

    Never in the reference (chunk 1), whose bits must not depend on the sizes of the other clients, as this rule does.
    """
    features = federation.features
    if stack is None or plan.chunk == 1 or len(stack.layers) > 1 or not isinstance(plan.direction, Gradient):
        return False
    layer = stack.layers[0]
    if features.dtype not in (torch.float32, torch.float64) or not kernels.available(features):
        return False
    mean = len(federation.targets) / federation.clients
    return min(mean, plan.local.batch or mean) * layer.outputs * layer.width <= SMALL and _loss(stack.head) is not None


def descend(stack: Stack, course: Course, ask: Ask, group: list[int], rows: Rows) -> None:
    """Directions and first losses of a group, into ``rows``."""
    from fedsim.kernels import epoch

    plan, federation = course.plan, course.federation
    loss = _loss(stack.head)
    assert loss is not None
    steps, layer, out = Steps(course), stack.layers[0], rows.direction.numpy()
    kind, top = out.dtype.type, int(course.steps.max())
    same, fresh = steps.same is not None, plan.order is None
    models = ask.models[:1] if ask.models.stride(0) == 0 else ask.models
    factors = 1 / steps.lengths() if plan.local.send == "direction" else steps.unit
    with np.errstate(over="ignore"):  # a step beyond float32 is infinite, as is then the model, which says so
        unit, factors = steps.unit.astype(kind), factors.astype(kind)
    way = np.stack((course.starts, course.sizes, course.batches, course.done, course.steps))
    shares = np.empty((0, 0), kind)
    filed = plan.order is incremental or (fresh and course.whole)
    pages = [(0, top, _FILE)] if filed else ((h, h + len(p), p) for h, p, _ in course.found(ask.stream))
    for first, last, listed in pages:
        if not same:
            shares = np.array([steps.at(h) / steps.unit for h in range(first, last)], kind)
        epoch.walk(
            federation.features.flatten(1).numpy(),
            federation.targets.numpy(),
            np.ascontiguousarray(models.numpy()),
            np.array(group),
            way,
            np.ascontiguousarray(listed),
            shares,
            unit,
            factors,
            (layer.outputs, layer.inputs, layer.weight, -1 if layer.bias is None else layer.bias),
            (*loss, fresh),
            kind(stack.l2),
            first,
            last,
            out,
            rows.losses.numpy(),
        )


def _loss(head: Head) -> tuple[int, bool] | None:
    """What the kernel knows the head as: its loss, and whether classes are signs."""
    from fedsim.kernels import epoch

    if isinstance(head, Classes):
        return epoch.CLASSES, False
    if isinstance(head, Number) and isinstance(head.loss, Squares | Logits):
        return epoch.SQUARES if isinstance(head.loss, Squares) else epoch.LOGITS, head.signed
    return None
