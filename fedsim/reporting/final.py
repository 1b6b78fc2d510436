"""What needs the data of a run, found when its report is made: F*, the final model at each client, what theory says.

A run folder may come from elsewhere. Nothing that it names is imported, and where the data is not on this machine the
report does without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fedsim.checkpoint import read_whole
from fedsim.data import Federation, deal, refuse_absent
from fedsim.errors import CheckpointError, ConfigError
from fedsim.experiment import Experiment
from fedsim.plugins import code_named
from fedsim.reporting.runs import Run
from fedsim.simulation.setup import DTYPES
from fedsim.simulation.theory import Prediction, predict
from fedsim.tasks import Task, optimum

MOST_CLIENTS = 2000
"""Clients that are looked at; of more, so many are chosen at equal distances."""


@dataclass(frozen=True, slots=True, eq=False)
class AtClients:
    """A model at the clients. clients, samples: int64[k]; loss: float64[k]; accuracy: float64[k] or None."""

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64] | None


@dataclass
class Examiner:
    """Looks at experiments' data, and keeps the last so that runs of one group load it once.

    allow_code: whether an experiment may name Python code; theory: whether to ask the theorems, which takes longest.
    """

    allow_code: bool = False
    theory: bool = True
    _loaded: tuple[Any, tuple[Federation, Task]] | None = None
    _smallest: dict[tuple[str, str], float] = field(default_factory=dict)

    def smallest(self, experiment: Experiment) -> float:
        """F*, the minimum of the loss over all training samples.

        Raises ConfigError for a task that is not convex or too large, DataError for data that is not here.
        """
        federation, task = self._load(experiment)
        key = federation.digest(), repr(experiment.task)
        if key not in self._smallest:
            self._smallest[key] = optimum(task, federation.all())[1]
        return self._smallest[key]

    def at_clients(self, run: Run) -> AtClients:
        """Loss and accuracy of a run's final model on the rows of each client.

        Raises CheckpointError where there is no final model or it does not fit, ConfigError and DataError as above.
        """
        federation, task = self._load(run.experiment)
        model = _final_model(run, task)
        count = min(federation.clients, MOST_CLIENTS)
        chosen = [i * federation.clients // count for i in range(count)]
        found = [task.metrics(model, federation.shard(client)) for client in chosen]
        return AtClients(
            np.array(chosen),
            federation.sizes.numpy()[chosen],
            np.array([one["loss"] for one in found]),
            np.array([one["accuracy"] for one in found]) if "accuracy" in found[0] else None,
        )

    def predict(self, experiment: Experiment) -> Prediction:
        """What theory says about an experiment. Raises ConfigError and DataError as above."""
        self._trust(experiment)
        here = msgspec.structs.replace(experiment.run, device="cpu", executor="sequential", workers=0)
        return predict(msgspec.structs.replace(experiment, run=here))

    def _trust(self, experiment: Experiment) -> None:
        if (code := next(code_named(experiment), "")) and not self.allow_code:
            raise ConfigError(f"the experiment names code ({code}), which is run with --allow-code only")

    def _load(self, experiment: Experiment) -> tuple[Federation, Task]:
        key = (experiment.data, experiment.partition, experiment.task, experiment.seed, experiment.run.precision)
        if self._loaded is None or self._loaded[0] != key:
            self._trust(experiment)
            dtype = DTYPES[experiment.run.precision]
            federation = deal(experiment.data, experiment.partition, experiment.seed).to("cpu", dtype)
            refuse_absent(federation)
            shape = tuple(federation.features.shape[1:])
            task = experiment.task.build(shape, federation.classes, dtype, torch.device("cpu"))
            self._loaded = key, (federation, task)
        return self._loaded[1]


def _final_model(run: Run, task: Task) -> Tensor:
    path = run.path / "model.safetensors"
    if not run.finished:
        raise CheckpointError("the run is not finished: it has no final model yet")
    try:
        model = load(read_whole(path)).get("model")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); put it back") from None
    if model is None or model.shape != (task.dim,) or not torch.isfinite(model).all():
        raise CheckpointError(f"{path}: holds no model of {task.dim} finite numbers; put it back")
    return model.to(DTYPES[run.experiment.run.precision])
