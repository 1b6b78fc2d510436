"""pfl, in one process or in several: its own trainer, sampler, weighting and all-reduce."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from given import Clock, Given, finish
from networks import network, row, tensors
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

RANK = "PFL_WORKER_RANK"


class Learner(nn.Module):
    """What PyTorchModel asks for: a loss and metrics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, features: Tensor, labels: Tensor, scale: float) -> Tensor:
        return cross_entropy(self.model(features), labels, reduction="sum") * scale

    def metrics(self, features: Tensor, labels: Tensor, **rest: Any) -> dict[str, Any]:
        return {}


class Rounds(TrainingProcessCallback):
    """Ticks after every round."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.clock.start()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        self.clock.tick()
        return False, Metrics()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks(processes: int) -> int:
    """Start this script once for each rank, because pfl looks at the environment when it is imported."""
    addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(processes))
    started = []
    for rank in range(processes):
        environment = os.environ | {"PFL_WORKER_ADDRESSES": addresses, RANK: str(rank)}
        started.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    return started[0].wait()


def play(given: Given, processes: int, balanced: bool) -> tuple[Clock, np.ndarray]:
    """All rounds, in this one of the processes."""
    torch.set_num_threads(1)
    if pytorch_ops.distributed.world_size != processes:
        sys.exit(f"pfl sees {pytorch_ops.distributed.world_size} processes, not {processes}")
    features, labels = tensors(given)
    users = {}
    for client in range(len(given.offsets) - 1):
        some = given.shard(client)
        kwargs = {"scale": given.scale(client)}
        users[client] = PyTorchTensorDataset((features[some], labels[some]), user_id=str(client), train_kwargs=kwargs)
    order = iter([*given.cohorts.ravel().tolist()] + [0] * 100_000)
    sizes = {client: given.size(client) for client in users}
    data = FederatedDataset(users.__getitem__, lambda: next(order), user_id_to_weight=sizes if balanced else None)
    learner, clock = Learner(network(given)), Clock()
    model = PyTorchModel(learner, torch.optim.SGD, torch.optim.SGD(learner.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=given.cohorts.shape[1],
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=given.batch, local_num_epochs=1, local_learning_rate=given.step),
        callbacks=[Rounds(clock)],
        send_metrics_to_platform=False,
    )
    return clock, row(learner)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("problem")
    parser.add_argument("result")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--balanced", action="store_true")
    options = parser.parse_args()
    if options.processes > 1 and RANK not in os.environ:
        sys.exit(ranks(options.processes))
    clock, parameters = play(Given.read(options.problem), options.processes, options.balanced)
    if os.environ.get(RANK, "0") == "0":
        setting = "one process" if options.processes == 1 else f"{options.processes} processes"
        setting += ", balanced" if options.balanced else ""
        finish(options.result, clock, parameters, "pfl", setting)
    os._exit(0)  # the sampler's process does not end by itself


if __name__ == "__main__":
    main()
