"""BlazeFL, one client after another or in threads: its core protocols, with the shortest local loop that torch allows.

Its recipes in blazefl.contrib add a DataLoader to every client, which costs more than the training does on small data;
the protocols leave that to the user, and here rows are sliced from tensors in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from given import Clock, Given, finish
from networks import network, row, tensors, train
from torch import Tensor


def allow_older_python() -> None:
    """BlazeFL 3 declares Python 3.14; all that stops an older one in its core is the notation def name[T](...).

    Its one module with that notation is loaded without the brackets, which mean nothing when it runs.
    """
    if sys.version_info >= (3, 12):
        return
    found = importlib.util.find_spec("blazefl")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "core" / "utils.py"
    text = re.sub(r"^(def \w+)\[[\w, ]+\]\(", r"\1(", path.read_text(), flags=re.MULTILINE)
    module = types.ModuleType("blazefl.core.utils")
    sys.modules[module.__name__] = module
    exec(compile("from __future__ import annotations\n" + text, str(path), "exec"), module.__dict__)


allow_older_python()
from blazefl.core import (  # noqa: E402
    BaseClientTrainer,
    BaseServerHandler,
    ThreadPoolClientTrainer,
    deserialize_model,
    serialize_model,
)


@dataclass
class Up:
    parameters: Tensor
    samples: int


@dataclass
class Down:
    parameters: Tensor


class Server(BaseServerHandler[Up, Down]):
    """FedAvg with weights n_k and the cohorts that are given."""

    def __init__(self, given: Given) -> None:
        self.given, self.round = given, 0
        self.model = network(given)
        self.parameters = serialize_model(self.model)

    def sample_clients(self) -> list[int]:
        found: list[int] = self.given.cohorts[self.round].tolist()
        return found

    def is_stopped(self) -> bool:
        return self.round >= self.given.rounds

    def load(self, payload: Up) -> bool:
        # of the peer's interface, for handlers that buffer; this one's whole round comes to global_update
        raise NotImplementedError("a round is updated at once")

    def global_update(self, buffer: list[Up]) -> None:
        shares = torch.tensor([float(up.samples) for up in buffer])
        self.parameters = (shares / shares.sum()) @ torch.stack([up.parameters for up in buffer])
        self.round += 1

    def downlink_package(self) -> Down:
        return Down(self.parameters)


class Clients:
    """The training of one client, shared by both trainers."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.features, self.labels = tensors(given)

    def trained(self, model: torch.nn.Module, parameters: Tensor, client: int) -> Up:
        with torch.no_grad():
            deserialize_model(model, parameters)
        some, given = self.given.shard(client), self.given
        train(model, self.features[some], self.labels[some], given.step, given.batch, given.scale(client))
        return Up(serialize_model(model), given.size(client))


class Serial(BaseClientTrainer[Up, Down]):
    """One model that all clients use in turn."""

    def __init__(self, given: Given) -> None:
        self.clients, self.model = Clients(given), network(given)
        self.cache: list[Up] = []

    def uplink_package(self) -> list[Up]:
        found, self.cache = self.cache, []
        return found

    def local_process(self, payload: Down, cid_list: list[int]) -> None:
        for client in cid_list:
            self.cache.append(self.clients.trained(self.model, payload.parameters, client))


class Threads(ThreadPoolClientTrainer[Up, Down]):
    """As many models as threads."""

    def __init__(self, given: Given, threads: int) -> None:
        self.clients = Clients(given)
        self.models = [network(given) for _ in range(threads)]
        self.num_parallels, self.device, self.device_count = threads, "cpu", 0
        self.stop_event = threading.Event()
        self.cache: list[Up] = []

    def progress_fn(self, it: Any) -> Any:
        return it

    def worker(self, cid: int, device: str, payload: Down, *rest: Any) -> Up:
        model = self.models.pop()
        try:
            return self.clients.trained(model, payload.parameters, cid)
        finally:
            self.models.append(model)

    def uplink_package(self) -> list[Up]:
        found, self.cache = self.cache, []
        return found


def play(given: Given, threads: int) -> tuple[Clock, np.ndarray]:
    """All rounds."""
    torch.set_num_threads(1)
    server, clock = Server(given), Clock()
    trainer: Any = Serial(given) if threads == 1 else Threads(given, threads)
    clock.start()
    while not server.is_stopped():
        trainer.local_process(server.downlink_package(), server.sample_clients())
        server.global_update(trainer.uplink_package())
        clock.tick()
    deserialize_model(server.model, server.parameters)
    return clock, row(server.model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("problem")
    parser.add_argument("result")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    clock, parameters = play(Given.read(options.problem), options.threads)
    setting = "one thread" if options.threads == 1 else f"{options.threads} threads"
    finish(options.result, clock, parameters, "blazefl", setting)


if __name__ == "__main__":
    main()
