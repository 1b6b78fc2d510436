"""A federation of the project's images and compose file: how far it is, what it has written, what it should have."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.experiment import Experiment
from fedsim.simulation.folder import model_digest
from tests import absences
from tests.docker.engine import Engine, EngineError, Project

TAG = os.environ.get("FEDSIM_IMAGES", "fedsim-test")


def small(rounds: int, seed: int, clients: int = 12) -> Experiment:
    """Of clients that take part in every second round, on synthetic data."""
    half = {"scheme": "bernoulli", "p": 0.5}
    return Experiment.of(
        rounds=rounds, seed=seed, partition={"clients": clients}, participation=half, run={"executor": "sequential"}
    )


def federation(here: Engine, folder: Path, name: str, experiment: Experiment, *overrides: Path) -> Project:
    """Not yet up. overrides: more compose files."""
    (folder / "experiment.toml").write_text(experiment.toml())
    given = {"TAG": TAG, "EXPERIMENT": str(folder / "experiment.toml"), "PUBLISH": "127.0.0.1:0"}
    return Project(here, name, given, overrides=overrides)


@dataclass
class Course:
    """How a federation gets on, told line by line."""

    project: Project
    experiment: Experiment
    began: float = field(default_factory=time.monotonic)
    done: int = 0

    def onwards(self, more: int, said: str) -> None:
        """Wait until so many more rounds are over. Raises AssertionError where all were: nothing can befall them."""
        self.done = max(self.done, rounds(self.project))  # of a server that is dead, what it had said
        assert self.done < self.experiment.rounds, f"the run was over before: {said}"
        goal = min(self.done + more, self.experiment.rounds)
        until(lambda: rounds(self.project) >= goal, 1800.0, self.project)
        self.done = rounds(self.project)
        self.say(f"{self.done} rounds, {said}")

    def ended(self) -> None:
        """Wait for the end. Raises AssertionError unless the model is the simulator's with the same absences."""
        self.project.wait("run", 1800.0)
        absent = missed(self.project)
        found, expected = digest(self.project), simulated(self.experiment, absent)
        self.say(f"{self.experiment.rounds} rounds, absent {len(absent)} times; {found[:16]} = {expected[:16]}")
        assert found == expected

    def say(self, what: str) -> None:
        """A line with the time since the beginning."""
        print(f"{time.monotonic() - self.began:.0f} s: {what}")


def until(holds: Callable[[], bool], seconds: float, project: Project) -> None:
    """Wait. Raises EngineError with the logs when the time is over."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            raise EngineError(project.compose("logs", "--no-color", "--tail", "12", check=False)[-6000:])
        time.sleep(0.5)


def rows(text: str) -> list[dict[str, str]]:
    """Of a CSV file with a heading."""
    return list(csv.DictReader(io.StringIO(text)))


def rounds(project: Project) -> int:
    """How many are over; 0 while the server cannot say."""
    try:
        return max((int(line["round"]) + 1 for line in rows(project.read("*/ledger.csv"))), default=0)
    except (EngineError, subprocess.TimeoutExpired):
        return 0


def incidents(project: Project) -> list[dict[str, str]]:
    """What the server has noted."""
    return rows(project.read("*/incidents.csv"))


def missed(project: Project) -> set[tuple[int, int]]:
    """(round, client)."""
    return {(int(one["round"]), int(one["client"])) for one in incidents(project) if one["what"] == "absent"}


def digest(project: Project) -> str:
    """Of the model that the server has written."""
    return str(json.loads(project.read("*/manifest.json"))["model_sha256"])


def simulated(experiment: Experiment, absent: set[tuple[int, int]]) -> str:
    """The digest of the simulator's model when these clients miss these rounds, counted as incidents.csv does."""
    return model_digest(absences.simulated(experiment, lambda round, client: (round, client) in absent).server.model)
