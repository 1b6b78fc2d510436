"""TensorBoard: event files in RUN/tensorboard; ``tensorboard --logdir runs`` shows all runs below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedsim.checkpoint import refuse_link
from fedsim.experiment import Experiment
from fedsim.simulation.trackers import Last

FOLDER = "tensorboard"


class TensorBoard:
    """A store as ``fedsim.simulation.trackers`` says. Nothing is taken out of an event file: it is written anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def begin(self, experiment: Experiment) -> Last:
        """Delete what an interrupted process wrote, so that all of the run is in one file."""
        refuse_link(self.folder)
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(self.folder))
        self.writer.add_text("experiment", f"```toml\n{experiment.toml()}```")
        return lambda name: -1

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """A scalar a measure."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, round, new_style=True, double_precision=True)
        self.writer.flush()

    def end(self, status: str) -> None:
        """Event files have no status."""
        self.writer.close()
