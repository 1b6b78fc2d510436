"""The theory of one experiment: its constants from its data, and what the theorems say about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.algorithms.method import Method, fitted_channel
from fedsim.algorithms.theory import Problem, Promise, Setting, Steps, admissible, promise, uncovered
from fedsim.algorithms.whitening import Off
from fedsim.compression import fitted
from fedsim.data import Examples, Federation
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.solvers.direction import Gradient
from fedsim.solvers.order import FRESH
from fedsim.solvers.passes import steps_of_a_pass
from fedsim.solvers.rate import Constant
from fedsim.tasks import Task, optimum
from fedsim.tasks.task import Batch, full_batch

WHOLE = (FRESH, "reshuffle", "shuffle-once", "incremental", "synchronised")
"""Orders in which a batch of all samples holds each of them once."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Heterogeneity at the optimum. client: zeta^2; batch: sigma^2 of batches of the size in use; value: F(x*)."""

    client: float
    batch: float
    value: float
    optimum: Tensor


def setting(experiment: Experiment, federation: Federation, task: Task) -> Setting:
    """What decides which theorem covers an experiment."""
    local, sizes = experiment.local, federation.sizes
    everything = local.batch == 0 or local.batch >= int(sizes.max())
    full_gradient = local.epochs + local.steps * (not local.epochs) == 1 and everything and local.order in WHOLE
    return Setting(
        convex=convexity(federation, task) > 0,
        full_participation=experiment.participation.probability(federation.clients) == 1,
        equal_batches=full_gradient or len({steps_of_a_pass(n, local.batch) for n in sizes.tolist()}) == 1,
        equal_weights=experiment.server.weights == "uniform" or bool((sizes == sizes[0]).all()),
        constant_steps=isinstance(experiment.rate, Constant) and experiment.server.schedule == "constant",
        plain_gradient=isinstance(experiment.direction, Gradient),
        plain_features=isinstance(experiment.whitening, Off),
        epoch_of_reshuffling=full_gradient or (local.epochs == 1 and local.order == "reshuffle"),
        sends_direction=local.send == "direction",
    )


def convexity(federation: Federation, task: Task) -> float:
    """mu of the objective: the smallest of the clients', 0 for a task that is not convex."""
    try:
        return min(task.convexity(federation.shard(i)) for i in range(federation.clients))
    except ConfigError:
        return 0.0


def problem(experiment: Experiment, federation: Federation, task: Task) -> Problem:
    """The constants of an experiment. Raises ConfigError for a task that is not convex."""
    local = experiment.local
    batches = steps_of_a_pass(int(federation.sizes.max()), local.batch) if local.order != FRESH else 1
    heaviest = 1.0
    if batches > 1:
        heaviest = max(steps_of_a_pass(n, local.batch) * min(local.batch, n) / n for n in federation.sizes.tolist())
    return Problem(
        sample_smoothness=task.sample_smoothness(federation.all()) * heaviest,
        convexity=convexity(federation, task),
        clients=federation.clients,
        batches=batches,
        up=fitted(experiment.uplink.compressor, task.sizes).omega(task.dim),
        down=fitted(experiment.downlink.compressor, task.sizes).omega(task.dim),
    )


def theory_steps(experiment: Experiment, federation: Federation, task: Task) -> Steps:
    """The largest steps that a theorem admits for this experiment. Raises ConfigError with the reasons if none does."""
    uplink, downlink = fitted_channel(experiment.uplink, task.sizes), fitted_channel(experiment.downlink, task.sizes)
    method = Method(uplink, downlink, experiment.server, task.dim)
    constants = problem(experiment, federation, task)
    reasons = uncovered(setting(experiment, federation, task), method)
    if reasons:
        raise ConfigError(
            f"'theory': no theorem covers this experiment: {'; '.join(reasons)}; give the step as a number or as 'c/L'"
        )
    steps = admissible(constants, experiment.uplink.memory, method.alpha)
    if not steps.admit_rate(method.alpha):
        raise ConfigError(
            f"'theory': {steps.theorem} needs memories that learn at most at {steps.alpha:.4g}, but uplink.rate = "
            f"{method.alpha:.4g}; use uplink.rate = 'auto', or give the step as a number or as 'c/L'"
        )
    return steps


def noise(experiment: Experiment, federation: Federation, task: Task) -> Noise:
    """zeta^2 and sigma^2 at the optimum of the mean over clients (all clients count alike).

    Every sample of a pass of m steps weighs m / n, so a batch of s samples has the gradient a (its mean) with a = m s /
    n, which is not 1 when b does not divide n. Drawn without replacement, its squared distance from the mean over all
    is a^2 V (n - s) / (s (n - 1)) + (a - 1)^2 ||mean||^2 on average, V the variance of the samples' gradients, all of
    these without l2, whose gradient is in every step whole. sigma^2 is the mean over the steps of a pass and clients.
    """
    sizes = federation.sizes
    weights = torch.repeat_interleave(1 / (sizes * federation.clients).to(torch.float64), sizes)
    point, value = optimum(task, federation.all(), weights)
    model = point.to(federation.features.dtype)[None]
    client_noise, batch_noise = 0.0, 0.0
    for i in range(federation.clients):
        shard = federation.shard(i)
        mean, _ = task.gradients(model, full_batch(shard.features, shard.targets, model.dtype))
        client_noise += float(mean.square().sum()) / federation.clients
        n = len(shard)
        b = min(experiment.local.batch, n) or n
        if n > 1 and b < n:
            variance = _sample_variance(task, model, shard.features, shard.targets, mean)
            steps = steps_of_a_pass(n, b)
            data = mean - task.gradients(model, _nothing(shard))[0]
            for size, times in ((b, n // b), (n % b, 1)):
                if size:
                    a = steps * size / n
                    found = a**2 * variance * (n - size) / (size * (n - 1)) + (a - 1) ** 2 * float(data.square().sum())
                    batch_noise += found * times / steps / federation.clients
    return Noise(client_noise, batch_noise, value, point)


def promised(experiment: Experiment, federation: Federation, task: Task, server: float, local: float) -> Promise:
    """Rate and neighbourhood of an experiment at its own steps."""
    found = noise(experiment, federation, task)
    constants = problem(experiment, federation, task)
    return promise(constants, experiment.uplink.memory, server, local, found.client, found.batch)


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
