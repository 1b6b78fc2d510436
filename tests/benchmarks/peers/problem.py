"""fedsim's side of the comparison: a workload as a file that every peer can read, and its rounds in fedsim."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import Experiment
from fedsim.data.examples import Dataset, Examples
from fedsim.data.partition import Natural
from fedsim.participation import Full, KofN
from fedsim.simulation.engine import play
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state
from tests.benchmarks.workloads import CLIENTS, STEP, workload

TASKS = {
    "lr": {"kind": "softmax"},
    "mlp": {"kind": "module", "factory": "tests.benchmarks.workloads:mlp"},
    "cnn": {"kind": "module", "factory": "tests.benchmarks.workloads:cnn"},
}


class OfWorkload(msgspec.Struct, frozen=True, tag_field="source", tag="workload", forbid_unknown_fields=True):
    """The data of a workload as a source whose clients are natural."""

    name: str

    def load(self, seed: int) -> Dataset:
        federation = workload(self.name, 1).federation
        owners = torch.repeat_interleave(torch.arange(federation.clients), federation.sizes)
        examples = Examples(federation.features, federation.targets, federation.classes)
        return Dataset(examples, None, self.name, owners)


@dataclass(frozen=True)
class Played:
    """name, setting: of who played; seconds: of each round; parameters: float32[d], after the last."""

    name: str
    setting: str
    seconds: list[float]
    parameters: NDArray[np.float32]


def kind_of(name: str) -> str:
    """lr10 -> lr."""
    return name.rstrip("0123456789")


def experiment(name: str, rounds: int) -> Experiment:
    """FedAvg on a workload, as a user would write it but for where the data comes from."""
    count = int(name.removeprefix(kind_of(name)))
    batch = workload(name, 1).batch
    written = Experiment.of(
        algorithm="fedavg",
        rounds=rounds,
        task=TASKS[kind_of(name)],
        local={"steps": 1, "epochs": 1, "batch": batch, "order": "incremental", "step": STEP, "send": "difference"},
        server={"step": 1.0, "normalise": "present"},
    )
    participation = Full() if count == CLIENTS else KofN(count)
    source: Any = OfWorkload(name)
    return msgspec.structs.replace(written, data=source, partition=Natural(), participation=participation)


def export(name: str, rounds: int, path: Path) -> None:
    """Write what the peers need: see ``inside.given.Given``. The cohorts are those that fedsim draws."""
    with _prepared(name, rounds) as setup:
        federation = setup.federation
        np.savez(
            path,
            kind=kind_of(name),
            classes=federation.classes,
            features=federation.features.numpy(),
            labels=federation.targets.numpy(),
            offsets=federation.offsets.numpy(),
            cohorts=np.stack([setup.cohort(t).clients.numpy() for t in range(rounds)]),
            initial=initial_state(setup).server.model.numpy(),
            step=STEP,
            batch=setup.experiment.local.batch,
        )


def fedsim_rounds(name: str, rounds: int) -> Played:
    """Whole rounds of the engine: cohort, catching up, local steps, counted messages, new model."""
    with _prepared(name, rounds) as setup:
        state, seconds = initial_state(setup), []
        for _ in range(rounds):
            before = time.perf_counter()
            play(setup, state)
            seconds.append(time.perf_counter() - before)
        choice = getattr(setup, "choice", None)
        setting = "sequential" if choice is None else f"{choice.executor}, chunk {choice.chunk}"
        return Played("fedsim", setting, seconds, state.server.model.numpy().copy())


def _prepared(name: str, rounds: int) -> Any:
    setup = prepare(experiment(name, rounds))
    return closing(setup) if hasattr(setup, "close") else nullcontext(setup)
