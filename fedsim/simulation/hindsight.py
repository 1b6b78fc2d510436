"""How long a run that was played takes over a network: from what its folder says, without playing it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data import Own, deal
from fedsim.errors import CheckpointError, ConfigError
from fedsim.ledger import read_lines
from fedsim.network import PROFILES, Known, Reals, Trace, Untimed
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.network import Clock, Timing, samples_of
from fedsim.simulation.run import Metrics


@dataclass(frozen=True, slots=True)
class Played:
    """A run and its rounds over a network. metrics: the lines of metrics.jsonl."""

    path: Path
    network: Known
    timing: Timing
    metrics: list[Metrics]

    def reached(self, loss: float) -> tuple[int, float] | None:
        """Rounds and seconds until the first evaluation at most so high; None: not reached. loss: of training, or of
        the test where the training data is elsewhere.
        """
        ends: Reals = np.concatenate(([0.0], np.cumsum(self.timing.seconds)))
        losses = ((one["round"], one.get("loss", one.get("test_loss"))) for one in self.metrics)
        rounds = (int(round) for round, level in losses if level is not None and level <= loss)
        found = next(rounds, None)
        return None if found is None else (found, float(ends[found]))


def network_named(name: str) -> Known:
    """A profile with its own numbers, or a trace by its path, which ends in .csv. Raises ConfigError for others."""
    if name in PROFILES:
        return PROFILES[name]()
    if name.endswith(".csv"):
        return Trace(file=name)
    raise ConfigError(f"network {name!r}: expected {', '.join(PROFILES)}, or the path of a trace, such as lines.csv")


def replay(path: Path, network: Known | None) -> Played:
    """Time the rounds of a run folder, finished or not. network: None for the run's own.

    Who took part and what was sent are the run's, so only its own network may have a deadline; availability means
    nothing here. Raises CheckpointError for a folder that is none, ConfigError where there is no network, DataError
    where the data is not here, as it says how many samples clients compute with.
    """
    folder = RunFolder(path)
    experiment = folder.experiment()
    if not (path / "ledger.csv").exists():
        raise CheckpointError(f"{path} has no ledger.csv; `fedsim resume {path}` runs it from its first round")
    given = experiment.network if network is None else network
    if isinstance(given, Untimed):
        names = ", ".join(PROFILES)
        raise ConfigError(f"{path} was run without a [network]; say --network with one of {names}, or a trace")
    federation = deal(experiment.data, experiment.partition, experiment.seed)
    sizes = np.array(experiment.data.samples) if isinstance(experiment.data, Own) else federation.sizes.numpy()
    clock = Clock.of(given, samples_of(experiment.local, sizes.astype(np.float64)), experiment.seed)
    metrics = folder.metrics(has_loss=False)
    lines = read_lines(path / "ledger.csv")
    if len(lines) and int(lines["client"].max()) >= federation.clients:
        raise CheckpointError(f"{path / 'ledger.csv'}: it has clients that the experiment has not; put the file back")
    known = int(lines["round"].max()) + 1 if len(lines) else 0
    last = max((one["round"] for one in metrics), default=0)
    return Played(path, given, clock.timing(lines, max(known, last)), metrics)
