"""Trackers by name: what metrics.jsonl says, evaluation by evaluation, in the store of a tool that draws it.

    name          package       where
    tensorboard   tensorboard   RUN/tensorboard
    mlflow        mlflow        wherever MLflow's own variables say (MLFLOW_TRACKING_URI)
    wandb         wandb         RUN/wandb, and the service unless WANDB_MODE=offline

metrics.jsonl is the truth and is always written. A tracker follows it: when a run begins or is resumed, it is given all
evaluations that it lacks, and no evaluation twice. That is the same as if the run had not been stopped, because a
resumed run repeats its evaluations to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.checkpoint import read_whole, write_whole
from fedsim.errors import CheckpointError, ConfigError, FedsimError, StoppedError, one_line
from fedsim.experiment import Experiment
from fedsim.ledger import Cost
from fedsim.simulation.folder import read_metrics

if TYPE_CHECKING:
    from fedsim.simulation.run import Observer
    from fedsim.simulation.setup import Setup

_NAME = re.compile("[A-Za-z0-9-]{1,64}")

Last = Callable[[str], int]
"""The last round of which a store has a measure; -1 for none."""


class Store(Protocol):
    """One run in the store of a tool."""

    def begin(self, experiment: Experiment) -> Last:
        """Open it, new or to be gone on with; what it has already."""
        ...

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Add an evaluation, and let it reach the disk."""
        ...

    def end(self, status: str) -> None:
        """Close it: "finished", "stopped" or "failed"."""
        ...


class Tracker:
    """Follows a run, as ``fedsim.simulation.run.Observer``. folder: of the run."""

    def __init__(self, name: str, store: Store, folder: Path) -> None:
        self.name, self.store, self.folder = name, store, folder
        self.last: Last | None = None

    def started(self, setup: Setup, metrics: Mapping[str, Any]) -> None:
        """Give the store what it lacks of the evaluations so far."""
        with self._blamed():
            self.last = self.store.begin(setup.experiment)
        for line in read_metrics(self.folder / "metrics.jsonl"):
            self.evaluated(line)

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """Nothing: costs are in the evaluations."""

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Log what the store has not. The evaluation before the first round is logged once the run has started."""
        if self.last is None:
            return
        round = metrics["round"]
        values = {name: value for name, value in metrics.items() if name != "round" and round > self.last(name)}
        with self._blamed():
            self.store.log(round, values)

    def ended(self, status: str) -> None:
        """Close the store, where it was opened."""
        if self.last is not None:
            with self._blamed():
                self.store.end(status)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except FedsimError:
            raise
        except Exception as error:
            raise ConfigError(
                f"run.trackers: {self.name} failed ({one_line(f'{type(error).__name__}: {error}')}); mend it, or leave "
                f"it out of {self.folder / 'experiment.toml'}, then `fedsim resume {self.folder}` goes on"
            ) from error


class Several:
    """Observers told one after another."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def started(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """To all."""
        for observer in self.observers:
            observer.started(setup, metrics)

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """To all."""
        for observer in self.observers:
            observer.played(round, up, down)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """To all."""
        for observer in self.observers:
            observer.evaluated(metrics)


@contextmanager
def tracked(trackers: Sequence[Tracker], observer: Observer | None) -> Iterator[Observer | None]:
    """``observer``, and before it the trackers, which are closed at the end, however that comes."""
    status = "failed"
    try:
        yield Several([*trackers, *([] if observer is None else [observer])]) if trackers else observer
        status = "finished"
    except StoppedError:
        status = "stopped"
        raise
    finally:
        for tracker in trackers:
            tracker.ended(status)


def of(experiment: Experiment, folder: Path | None) -> list[Tracker]:
    """The trackers that an experiment names.

    Raises ConfigError for one whose package is not installed, and where there is no run folder to follow.
    """
    names = list(dict.fromkeys(experiment.run.trackers))
    if names and folder is None:
        raise ConfigError(f"run.trackers = {names}, but they follow a run folder; name one, or leave them out")
    return [Tracker(name, _store(name, folder), folder) for name in names if folder is not None]


def _store(name: str, folder: Path) -> Store:
    try:
        match name:
            case "tensorboard":
                from fedsim.simulation.trackers.tensorboard import TensorBoard

                return TensorBoard(folder)
            case "mlflow":
                from fedsim.simulation.trackers.mlflow import MLflow

                return MLflow(folder)
            case _:
                from fedsim.simulation.trackers.wandb import WandB

                return WandB(folder)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers: {name} is not installed here ({error}); pip install 'fedsim[{name}]', or leave it out"
        ) from None
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ConfigError(f"run.trackers: {name} cannot be used ({reason}); mend it, or leave it out") from error


def remembered(path: Path, make: Callable[[], str]) -> str:
    """The name under which a store knows this run: the text of a file of the run folder, which is made where it lacks.

    Raises CheckpointError for a text that is no such name, as it may become part of a path or an address.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     [remembered(Path(place) / "id", name) for name in (lambda: "first", lambda: "second")]
    ['first', 'first']
    """
    if not path.exists():
        write_whole(path, make().encode())
    name = read_whole(path).decode("utf-8", "replace")
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{path}: not the name of a run in a tracker; delete it to begin a new one there")
    return name
