"""The workloads: FedAvg, 100 clients, one local epoch of plain SGD in stored order, step 0.1, weights n_k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Digits, Dirichlet, split
from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.tasks import Module, Softmax, Task

STEP, CLIENTS, CPU = 0.1, 100, torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """cohorts: int64[n] of each round, the same for everybody."""

    name: str
    task: Task
    federation: Federation
    batch: int
    cohorts: list[Tensor]


def workload(name: str, rounds: int) -> Workload:
    """lr, mlp or cnn, followed by the clients of a round: lr10, mlp100."""
    kind, count = name.rstrip("0123456789"), int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
    rng = np.random.default_rng(count)
    cohorts = [torch.from_numpy(np.sort(rng.choice(CLIENTS, count, replace=False))) for _ in range(rounds)]
    if kind == "lr":
        federation = split(Digits().load(0), Dirichlet(clients=CLIENTS, alpha=0.3), 0).to(CPU, torch.float32)
        return Workload(name, Softmax().build((64,), 10, torch.float32, CPU), federation, 10, cohorts)
    federation = images() if kind == "mlp" else images((1, 28, 28))
    shape = tuple(federation.features.shape[1:])
    factory = Module(f"tests.benchmarks.workloads:{kind}")
    return Workload(name, factory.build(shape, 62, torch.float32, CPU), federation, 20, cohorts)


def images(shape: tuple[int, ...] = (784,)) -> Federation:
    """10,000 synthetic images of 62 classes, 49 to 179 a client."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(49, 152, CLIENTS)
    sizes[:2] = 49, 179
    sizes[2:] += (10_000 - int(sizes.sum())) // (CLIENTS - 2)
    sizes[-1] += 10_000 - int(sizes.sum())
    features = torch.from_numpy(rng.standard_normal((10_000, *shape), dtype=np.float32))
    targets = torch.from_numpy(rng.integers(0, 62, 10_000))
    owners = torch.repeat_interleave(torch.arange(CLIENTS), torch.from_numpy(sizes))
    return federate(Dataset(Examples(features, targets, 62), None, "images"), owners)


def mlp(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """784-128-62, 108,478 parameters."""
    return torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, classes))


def cnn(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """Two convolutions and two linear layers, 1,206,590 parameters."""
    nn = torch.nn
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, classes))
