"""How a cohort is computed, chosen by a rule and never by a stopwatch, so that a run can be repeated.

    executor     what it does                                                                    bits
    sequential   one client after another: the reference                                         of chunk 1
    stacked      ``chunk`` clients side by side through all their steps                          of its chunk
    workers      groups of ``chunk`` clients (1 unless given) spread over processes              of its chunk

    auto         stacked where the task is a ``Stack`` (least squares, logistic, softmax, mlp, any Sequential of Linear
                 and ReLU) or a module that vmap takes (``fedsim.tasks.mapped``: no convolutions), the solver's choices
                 can be stacked, at least 2 clients are expected in a round, and a step is small: at most ``WIDE``
                 numbers of features a client. A large step keeps a core busy by itself, and copying it beside the
                 others only costs: full gradients of logistic regression are three times as fast stacked at 10^4
                 numbers, and slower from 10^5 on. Otherwise sequential.
                 Either is spread over workers where there are cores, run.threads = 1, and a round is long: at least
                 ``LONG`` samples times coordinates, which take some five milliseconds or more. Therefore a long round
                 is stacked in at least two groups, also where there is one core.
    small        stacked groups of a task of one layer, with steps of at most 2^16 samples times coordinates, take them
                 in a compiled loop on the CPU (``fedsim.solvers.small``): two to five times as fast for 10 clients;
                 in larger steps products over all clients catch up
    chunk = 0    as many models as fit into ``CACHED`` bytes, at least 4: they stay in the cache through all steps

The number of cores decides about workers alone, so not about bits.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedsim.algorithms.whitening import Shared
from fedsim.data import Federation
from fedsim.errors import ConfigError
from fedsim.solvers.plan import unstackable
from fedsim.tasks import Task

if TYPE_CHECKING:
    from fedsim.experiment import Experiment

CACHED, LEAST = 6 * 2**20, 4
WIDE, LONG = 2**16, 2**26


@dataclass(frozen=True, slots=True)
class Choice:
    """executor: "sequential", "stacked" or "workers"; chunk: clients of a group; workers: processes, 0 without."""

    executor: str
    chunk: int
    workers: int


def choose(experiment: Experiment, task: Task, federation: Federation, device: torch.device) -> Choice:
    """What [run] asks for, by the rule where it leaves that open. Raises ConfigError for what contradicts itself."""
    run = experiment.run
    _check(experiment, device)
    if run.executor == "sequential":
        return Choice("sequential", 1, 0)
    chunk = run.chunk
    if run.executor == "stacked" or (run.executor == "auto" and not chunk and _pays(experiment, task, federation)):
        chunk = chunk or chunk_of(task.dim, task.initial(0).element_size())
        if run.executor == "auto" and _long(experiment, task, federation):
            chunk = min(chunk, max(2, math.ceil(_expected(experiment, federation) / 2)))
    chunk = chunk or 1
    if run.executor == "workers":
        return Choice("workers", chunk, run.workers or cores())
    spread = run.executor == "auto" and cores() > 1 and _expected(experiment, federation) > chunk
    if spread and _long(experiment, task, federation) and not _unspreadable(experiment, device):
        return Choice("workers", chunk, run.workers or cores())
    return Choice("sequential" if chunk == 1 else "stacked", chunk, 0)


def chunk_of(dim: int, bytes_each: int) -> int:
    """Models of ``dim`` coordinates that stay in the cache together.

    >>> chunk_of(650, 4), chunk_of(108_478, 4), chunk_of(10**7, 4)
    (2419, 14, 4)
    """
    return max(LEAST, CACHED // (dim * bytes_each))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(experiment: Experiment, device: torch.device) -> None:
    run = experiment.run
    if run.executor == "sequential" and run.chunk > 1:
        raise ConfigError(f"run.executor = 'sequential' and run.chunk = {run.chunk}; drop one, or use 'stacked'")
    if run.executor == "stacked" and run.chunk == 1:
        raise ConfigError("run.executor = 'stacked' and run.chunk = 1 stacks nothing; use 'sequential', or chunk = 0")
    if run.executor == "stacked" and (reason := _unstackable(experiment)):
        raise ConfigError(f"run.executor = 'stacked', but {reason}; use 'auto' or 'sequential'")
    if run.executor == "workers" and (reason := _unspreadable(experiment, device)):
        raise ConfigError(f"run.executor = 'workers', but {reason}")
    if run.workers and run.executor in ("sequential", "stacked"):
        raise ConfigError(f"run.workers = {run.workers}, but run.executor = {run.executor!r} has none; use 'workers'")


def _unstackable(experiment: Experiment) -> str | None:
    local = experiment.local
    if isinstance(experiment.whitening, Shared) and (local.steps > 1 or local.epochs):
        return "whitening.mode = 'shared' whitens several local steps one client after another"
    return unstackable(experiment.rate, experiment.direction)


def _unspreadable(experiment: Experiment, device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"run.device is a {device.type} device, which processes would share; use 'auto'"
    if experiment.run.threads != 1:
        return f"run.threads = {experiment.run.threads}, and a worker has one; use run.threads = 1"
    if isinstance(experiment.whitening, Shared):
        return "whitening.mode = 'shared' changes the steps in every refresh; use 'sequential'"
    if not hasattr(os, "fork"):
        return "this system cannot fork; use 'auto'"
    return None


def _expected(experiment: Experiment, federation: Federation) -> float:
    """Clients of a round."""
    return experiment.participation.probability(federation.clients) * federation.clients


def _pays(experiment: Experiment, task: Task, federation: Federation) -> bool:
    if (
        (task.stack is None and task.mapped is None)
        or _unstackable(experiment)
        or _expected(experiment, federation) < 2
    ):
        return False
    mean = len(federation.targets) / federation.clients
    inputs = federation.features[:1].numel()
    return min(mean, experiment.local.batch or mean) * inputs <= WIDE


def _long(experiment: Experiment, task: Task, federation: Federation) -> bool:
    """Whether a round is worth being spread: enough to do."""
    clients, local = _expected(experiment, federation), experiment.local
    mean = len(federation.targets) / federation.clients
    each = local.epochs * mean if local.epochs else local.steps * min(mean, local.batch or mean)
    return clients * each * task.dim >= LONG
