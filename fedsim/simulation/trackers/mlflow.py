"""MLflow: a run in its tracking store, which MLFLOW_TRACKING_URI names; its experiment is MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fedsim.experiment import Experiment
from fedsim.simulation.sidebyside import flat
from fedsim.simulation.trackers import Last, remembered

EXPERIMENT = "fedsim"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST = 500
"""Characters of a parameter, which old stores accept."""


class MLflow:
    """A store as ``fedsim.simulation.trackers`` says. RUN/mlflow.id holds the name of the run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = MlflowClient()

    def begin(self, experiment: Experiment) -> Last:
        """Make a run with the experiment's keys as parameters, or go on with it, from each measure's last step."""
        self.run = remembered(self.folder / "mlflow.id", lambda: self._create(experiment))
        self.client.update_run(self.run, status="RUNNING")
        known = self.client.get_run(self.run).data.metrics
        last = {name: max(one.step for one in self.client.get_metric_history(self.run, name)) for name in known}
        return lambda name: last.get(name, -1)

    def _create(self, experiment: Experiment) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if found is None else found.experiment_id
        made = self.client.create_run(number, run_name=self.folder.name, tags={"fedsim.folder": str(self.folder)})
        params = [Param(key, str(value)[:LONGEST]) for key, value in flat(experiment.table())]
        self.client.log_batch(made.info.run_id, params=params)
        return str(made.info.run_id)

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """A metric a measure; its step is the round."""
        now = int(1000 * time.time())  # milliseconds, as MLflow counts
        self.client.log_batch(self.run, metrics=[Metric(name, value, now, round) for name, value in values.items()])

    def end(self, status: str) -> None:
        """Set the run's status."""
        self.client.set_terminated(self.run, STATUS[status])
