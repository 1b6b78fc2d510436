"""Weights & Biases: a run in the project that WANDB_PROJECT names; with WANDB_MODE=offline it stays in RUN/wandb."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

import wandb

from fedsim.checkpoint import refuse_link
from fedsim.experiment import Experiment
from fedsim.simulation.trackers import Last, remembered

PROJECT = "fedsim"


class WandB:
    """A store as ``fedsim.simulation.trackers`` says. RUN/wandb.id holds the name of the run in the service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, experiment: Experiment) -> Last:
        """Make a run, or go on with it. Offline it cannot be gone on with: what was not sent is written anew."""
        name = remembered(self.folder / "wandb.id", lambda: token_hex(4))
        refuse_link(self.folder / "wandb")
        for unsent in self.folder.glob("wandb/offline-run-*"):
            shutil.rmtree(unsent)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=self.folder.name,
            dir=self.folder,
            config=experiment.table(),
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        there = self.run.starting_step - 1 if self.run.resumed else -1
        return lambda name: there

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """One step; its number is the round."""
        if values:
            self.run.log(dict(values), step=round)

    def end(self, status: str) -> None:
        """Finish the run; one that stopped may be gone on with."""
        self.run.finish(exit_code=int(status == "failed"))
