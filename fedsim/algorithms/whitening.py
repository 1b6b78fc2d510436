"""Feature whitening in a federation: whose second moments whiten a step.

    mode     local step        what is compressed         what the server steps along
    off      d_m               d_m                        mean of d_m
    shared   G_m P             G_m K in whitened space    (mean of G_m) P;  P = K K' of the pooled moments
    mixing   d_m = G_m P_m     d_m A_m                    [sum v_m d_m A_m] [sum v_m A_m]^-1

shared. Every client uploads the moments A_m of its samples at the current model, the server pools A = sum v_m A_m and
sends A to those who take part; A stays for ``refresh`` rounds. In the coordinates W K^-T the round is the method
without whitening, so its theorems hold with the constants of the whitened problem, because the compressors act in those
coordinates (compressing G and multiplying by P afterwards would cost up to cond(P) in omega). A memory is kept as a
gradient H; in whitened coordinates it is H K, so at a refresh it becomes (H K_old) K_old^-1 K_new by itself.

mixing. In every round each client whitens its local steps itself (direction.kind = "whitened") and sends d_m A_m and
the A_m of its last refresh; A_m is damped wherever it is used. With d_m = W - W_m the server's line is the
preconditioned mixing W_{t+1} = [sum v_m W_m A_m] [sum v_m A_m]^-1. With one local step it equals "shared" with a
refresh in each round. What is compressed is d_m A_m as it is, because clients do not know the pooled A before they
send: its noise does grow by up to cond(P), so lossy compressors need small steps here.

Second moments tell about the data of a client; they cross in the clear.

Source: FedPM (AAAI 2026, arXiv 2511.09100) for mixing; Artemis and DIANA for the method in whitened coordinates.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from torch import Tensor

from fedsim.algorithms.method import Space
from fedsim.errors import ConfigError
from fedsim.flat import tree_sum
from fedsim.solvers.local import Local
from fedsim.solvers.memory import Notes
from fedsim.solvers.metric import Metric, Route, metric
from fedsim.solvers.rate import Count, Here, Positive
from fedsim.solvers.step import Direction, Step
from fedsim.solvers.whitening import Whitened, whitenable
from fedsim.tasks.layer import Layer, unpack


class Off(msgspec.Struct, frozen=True, tag_field="mode", tag="off", forbid_unknown_fields=True):
    """No whitening, unless the clients do it by themselves (direction.kind = "whitened")."""


class Shared(msgspec.Struct, frozen=True, tag_field="mode", tag="shared", forbid_unknown_fields=True):
    """One pooled covariance for all clients.

    Args:
        damping: what is added to every variance, relative to the mean square of the features.
        ema: what is kept of the pooled moments at a refresh.
        refresh: rounds from one pooling to the next; 0: only once.
        route: "cholesky" or "evd", which is the basis in which messages are compressed.
        max_features: layers with more inputs keep their plain gradient and cost no moments.
    """

    damping: Positive = 0.1
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    refresh: Annotated[int, msgspec.Meta(ge=0)] = 0
    route: Route = "cholesky"
    max_features: Count = 1024


class Mixing(msgspec.Struct, frozen=True, tag_field="mode", tag="mixing", forbid_unknown_fields=True):
    """Preconditioned mixing (FedPM) of clients that whiten by themselves; its numbers are those of [direction]."""


Whitening = Off | Shared | Mixing


class Along(msgspec.Struct, frozen=True):
    """A direction whose steps the pooled moments precondition; what it sends stays a gradient."""

    inner: Direction
    metric: Metric

    def begin(self, notes: Notes) -> Notes:
        """As the inner direction."""
        return self.inner.begin(notes)

    def step(self, here: Here, notes: Notes) -> Step:
        """The inner step, walked along its preconditioned row."""
        step = self.inner.step(here, notes)
        return msgspec.structs.replace(step, move=self.metric.precondition(step.row))


def pool(rows: Tensor, weights: Tensor, previous: Tensor | None, ema: float) -> Tensor:
    """Packed moments of a cohort, float[n, k], n >= 1 -> float[k]: their mean by v_i, after ``ema`` of the last one."""
    mean = tree_sum((weights / tree_sum(weights, dim=0))[:, None] * rows, dim=0)
    return mean if previous is None else ema * previous + (1 - ema) * mean


def space(options: Whitening, found: Metric | None) -> Space | None:
    """The coordinates of a round. found: the maps of the pooled moments; None before there are any."""
    if found is None:
        return None
    if isinstance(options, Shared):
        return Space(found.precondition, (found.whiten, found.unwhiten), (found.whiten_step, found.unwhiten_step))
    return Space(found.precondition)


def metric_of(options: Whitening, direction: object, row: Tensor, layers: tuple[Layer, ...]) -> Metric:
    """The maps of packed moments, float[k], with the damping that the mode says."""
    numbers = options if isinstance(options, Shared) else direction
    assert isinstance(numbers, Shared | Whitened)
    assert numbers.route != "recursive"
    return metric(unpack(row, layers), layers, numbers.damping, numbers.route)


def layers_of(options: Whitening, direction: object, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers whose moments cross the wire or whiten a local step; none without whitening.

    Raises ConfigError for a task without such layers.
    """
    if isinstance(options, Shared):
        return whitenable(layers, options.max_features, "whitening.max_features")
    if isinstance(direction, Whitened):
        return whitenable(layers, direction.max_features, "direction.max_features")
    return ()


def check(options: Whitening, direction: object, local: Local, chunk: int, server_step: float | str) -> None:
    """Raise ConfigError for choices that contradict each other, with the way out."""
    whitened = isinstance(direction, Whitened)
    if isinstance(options, Shared) and whitened:
        raise ConfigError(
            "whitening.mode = 'shared' and direction.kind = 'whitened' would whiten twice; "
            "use direction.kind = 'gradient'"
        )
    if isinstance(options, Mixing) and (not isinstance(direction, Whitened) or direction.route == "recursive"):
        raise ConfigError(
            "whitening.mode = 'mixing' mixes what clients whiten by an inverse; use direction.kind = 'whitened' with "
            "route 'cholesky' or 'evd'"
        )
    if isinstance(options, Shared) and chunk > 1 and (local.steps > 1 or local.epochs):
        raise ConfigError(f"run.chunk = {chunk} does not whiten local steps, and there are several; use run.chunk = 1")
    steps = [("server.step", server_step)] + [("local.step", local.step)] * (
        local.steps > 1 or local.epochs > 0 or local.send == "difference"
    )
    for key, step in steps if whitened or not isinstance(options, Off) else ():
        if isinstance(step, str):
            raise ConfigError(
                f"{key} = {step!r} is a step for the gradient, but this one is whitened; give a number, for example "
                f"{key} = 1.0"
            )
