"""The constants of an experiment that theorems ask for, computed from its data, and the steps that they admit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import sqrt

import torch
from torch import Tensor

from fedsim.algorithms.method import Method, ServerOptions, fitted_channel
from fedsim.algorithms.theory import Problem, Setting, Steps, facts, theorem_of
from fedsim.algorithms.whitening import Off
from fedsim.compression import fitted
from fedsim.data import Examples, Federation
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.network import certain
from fedsim.participation import KofN
from fedsim.solvers.direction import Gradient
from fedsim.solvers.order import FRESH
from fedsim.solvers.passes import steps_of_a_pass
from fedsim.solvers.rate import Constant
from fedsim.tasks import Task, optimum
from fedsim.tasks.linear import Linear, Squares
from fedsim.tasks.task import Batch, full_batch

WHOLE = (FRESH, "reshuffle", "shuffle-once", "incremental", "synchronised")
"""Orders in which a batch of all samples holds each of them once."""


@dataclass(frozen=True, slots=True)
class Noise(facts.Noise):
    """And where it is. optimum: w*, float64[d]; value: F(w*), of the method's own objective.

    lowest: F*, the smallest mean loss over all samples; offset: how far that mean is above it at w*, 0 unless clients
    of unequal size count alike.
    """

    optimum: Tensor
    value: float
    lowest: float
    offset: float


def setting(experiment: Experiment, federation: Federation, task: Task) -> Setting:
    """What decides which theorem covers an experiment."""
    local, sizes, server = experiment.local, federation.sizes, experiment.server
    everything = local.batch == 0 or local.batch >= int(sizes.max())
    full_gradient = local.epochs + local.steps * (not local.epochs) == 1 and everything and local.order in WHOLE
    single = full_gradient or (local.epochs == 0 and local.steps == 1)
    everybody = experiment.participation.probability(federation.clients) == 1
    alike = server.weights == "uniform" or bool((sizes == sizes[0]).all())
    constant = server.normalise == "expected" or (isinstance(experiment.participation, KofN) and alike)
    return Setting(
        convex=convexity(federation, task) > 0 or mean_convexity(server, federation, task) > 0,
        full_participation=everybody,
        always_there=certain(experiment.network),
        equal_batches=full_gradient or len({steps_of_a_pass(n, local.batch) for n in sizes.tolist()}) == 1,
        equal_weights=alike,
        constant_steps=isinstance(experiment.rate, Constant) and server.schedule == "constant",
        plain_gradient=isinstance(experiment.direction, Gradient),
        plain_features=isinstance(experiment.whitening, Off),
        epoch_of_reshuffling=full_gradient or (local.epochs == 1 and local.order == "reshuffle"),
        single_step=single,
        one_gradient=full_gradient or (single and local.order == FRESH),
        full_gradient=full_gradient,
        sends_direction=local.send == "direction",
        expected_sum=everybody or (constant and not server.paper_compat),
    )


def client_weights(server: ServerOptions, sizes: Tensor) -> Tensor:
    """v_i, float64[N]: a client's share of the samples, or 1 / N. sizes: samples of each, [N]."""
    sizes = sizes.to(torch.float64)
    return sizes / sizes.sum() if server.weights == "pooled" else torch.full_like(sizes, 1.0 / len(sizes))


def sample_weights(server: ServerOptions, federation: Federation) -> Tensor:
    """Of every sample in F = sum_i v_i F_i, float64[samples]."""
    sizes = federation.sizes
    return torch.repeat_interleave(client_weights(server, sizes) / sizes, sizes)


def convexity(federation: Federation, task: Task) -> float:
    """mu of the objective: the smallest of the clients', 0 for a task that is not convex."""
    try:
        return min(task.convexity(federation.shard(i)) for i in range(federation.clients))
    except ConfigError:
        return 0.0


def mean_convexity(server: ServerOptions, federation: Federation, task: Task) -> float:
    """mu of F itself, 0 for a task that is not convex: least squares can be strongly convex where no client's is."""
    if isinstance(task, Linear) and task.loss_of_score is Squares:
        everything, weights = federation.all(), sample_weights(server, federation)
        rows = everything.features.flatten(1).to(torch.float64)
        smallest = float(torch.linalg.eigvalsh(rows.T @ (weights[:, None] * rows))[0].clamp_min(0))
        return Squares.curvature * smallest + task.l2
    return convexity(federation, task)


def problem(experiment: Experiment, federation: Federation, task: Task) -> Problem:
    """The constants of an experiment. Raises ConfigError for a task that is not convex."""
    local, sizes, n = experiment.local, federation.sizes.tolist(), federation.clients
    shards = [federation.shard(i) for i in range(n)]
    weights = client_weights(experiment.server, federation.sizes)
    batches = steps_of_a_pass(max(sizes), local.batch) if local.order != FRESH else 1
    heaviest = 1.0
    if batches > 1:
        heaviest = max(steps_of_a_pass(n, local.batch) * min(local.batch, n) / n for n in sizes)
    smooth = torch.tensor([task.smoothness(shard, "spectral") for shard in shards], dtype=torch.float64)
    up, down = (fitted(way.compressor, task.sizes) for way in (experiment.uplink, experiment.downlink))
    p = experiment.participation.probability(n)
    chosen = n / (n - 1) if isinstance(experiment.participation, KofN) and n > 1 else 1.0
    return Problem(
        clients=n,
        share=float(weights.max()),
        probability=p,
        sampling=1 + (1 / p - 1) * chosen,
        up=up.omega(task.dim),
        down=down.omega(task.dim),
        up_delta=up.delta(task.dim),
        down_delta=down.delta(task.dim),
        smoothness=float(weights.to(smooth) @ smooth),
        client_smoothness=sqrt(float(weights.to(smooth) @ smooth.square())),
        largest_smoothness=float(smooth.max()),
        batch_smoothness=max(map(partial(_batch_smoothness, task, local.batch), shards, smooth.tolist())),
        sample_smoothness=task.sample_smoothness(federation.all()) * heaviest,
        convexity=mean_convexity(experiment.server, federation, task),
        client_convexity=convexity(federation, task),
        batches=batches,
        full_gradient=setting(experiment, federation, task).full_gradient,
    )


def _batch_smoothness(task: Task, batch: int, shard: Examples, smoothness: float) -> float:
    """L_b of one client; smoothness: its L_i."""
    share = _spread(len(shard), min(batch, len(shard)) or len(shard))
    return share * task.sample_smoothness(shard) + (1 - share) * smoothness if share else smoothness


def _spread(n: int, b: int) -> float:
    """Variance of the mean of b distinct ones out of n, over that of one of them."""
    return (n - b) / (b * (n - 1)) if n > 1 else 0.0


def theory_steps(experiment: Experiment, federation: Federation, task: Task) -> Steps:
    """The largest steps that a theorem admits for this experiment. Raises ConfigError with the reasons if none does."""
    uplink, downlink = fitted_channel(experiment.uplink, task.sizes), fitted_channel(experiment.downlink, task.sizes)
    method = Method(uplink, downlink, experiment.server, task.dim)
    constants, where = problem(experiment, federation, task), setting(experiment, federation, task)
    theorem = theorem_of(where, method)
    reasons = theorem.reasons(where, method)
    if reasons:
        raise ConfigError(
            f"'theory': no theorem covers this experiment: {'; '.join(reasons)}; give the step as a number or as 'c/L'"
        )
    steps = theorem.admissible(constants, method)
    if not steps.admit_rate(method.alpha):
        raise ConfigError(
            f"'theory': {steps.theorem} needs memories that learn at most at {steps.alpha:.4g}, but uplink.rate = "
            f"{method.alpha:.4g}; use uplink.rate = 'auto', or give the step as a number or as 'c/L'"
        )
    return steps


def noise(experiment: Experiment, federation: Federation, task: Task) -> Noise:
    """B^2 (zeta^2) and sigma^2 at the optimum of F = sum_i v_i F_i.

    A fresh batch of b distinct samples has sigma^2 = V (n - b) / (b (n - 1)), V the variance of the samples' gradients.
    In a pass of m steps every sample weighs m / n, so a batch of s samples has the gradient a (its mean) with a = m s /
    n, which is not 1 when b does not divide n. Drawn without replacement, its squared distance from the mean over all
    is a^2 V (n - s) / (s (n - 1)) + (a - 1)^2 ||mean||^2 on average, all of these without l2, whose gradient is in
    every step whole. sigma^2 is the mean over the steps of a pass and clients.
    """
    weights = client_weights(experiment.server, federation.sizes).tolist()
    point, value, lowest, offset = rest(experiment.server, federation, task)
    model = point.to(federation.features.dtype)[None]
    client_noise, batch_noise = 0.0, 0.0
    for i, weight in enumerate(weights):
        shard = federation.shard(i)
        mean, _ = task.gradients(model, full_batch(shard.features, shard.targets, model.dtype))
        client_noise += float(mean.square().sum()) * weight
        n = len(shard)
        b = min(experiment.local.batch, n) or n
        if n > 1 and b < n:
            variance = _sample_variance(task, model, shard.features, shard.targets, mean)
            if experiment.local.order == FRESH:
                batch_noise += variance * _spread(n, b) * weight
                continue
            steps = steps_of_a_pass(n, b)
            data = mean - task.gradients(model, _nothing(shard))[0]
            for size, times in ((b, n // b), (n % b, 1)):
                if size:
                    a = steps * size / n
                    found = a**2 * variance * _spread(n, size) + (a - 1) ** 2 * float(data.square().sum())
                    batch_noise += found * times / steps * weight
    return Noise(client_noise, batch_noise, point, value, lowest, offset)


def rest(server: ServerOptions, federation: Federation, task: Task) -> tuple[Tensor, float, float, float]:
    """Where the method's objective is smallest: the last four fields of ``Noise``."""
    everything, sizes = federation.all(), federation.sizes
    point, value = optimum(task, everything, sample_weights(server, federation))
    if server.weights == "pooled" or bool((sizes == sizes[0]).all()):
        return point, value, value, 0.0
    _, lowest = optimum(task, everything)
    return point, value, lowest, max(0.0, task.loss(point.to(everything.features.dtype), everything) - lowest)


def _nothing(shard: Examples) -> Batch:
    """A batch without weight, on which only l2 has a gradient."""
    return replace(full_batch(shard.features[:1], shard.targets[:1], shard.features.dtype), weights=torch.zeros(1, 1))


def _sample_variance(task: Task, model: Tensor, features: Tensor, targets: Tensor, mean: Tensor) -> float:
    """Mean over samples of ||grad f_j - mean||^2."""
    total = 0.0
    for start in range(0, len(features), 1024):
        some, labels = features[start : start + 1024], targets[start : start + 1024]
        ones = torch.ones((len(some), 1), dtype=model.dtype, device=model.device)
        rows, _ = task.gradients(model.expand(len(some), -1), Batch(some[:, None], labels[:, None], ones))
        total += float((rows - mean).square().sum())
    return total / len(features)
