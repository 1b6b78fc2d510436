"""Runs on Flower: submitted, watched through their run folder where that is on this machine, and summed up alike.

flower-in-process     Flower's two apps in one process of their own, without its engines
flower-simulation     Flower's simulation on Ray, by a SuperLink that lives as long as the run
flower                the SuperLink and SuperNodes of --superlink
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Protocol

import msgspec
from rich.console import Console

from fedsim import checkpoint
from fedsim.checkpoint import read_whole, write_whole
from fedsim.cli import play, text
from fedsim.cli.flower import Flower, app_folder, check, environment, last_line, local_superlink
from fedsim.cli.view import lines_every
from fedsim.ends import part
from fedsim.errors import CheckpointError, ConfigError, DeployError, StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry
from fedsim.simulation.folder import RunFolder


class Engine(StrEnum):
    """What plays the rounds."""

    SIMULATOR = "simulator"
    IN_PROCESS = "flower-in-process"
    SIMULATION = "flower-simulation"
    FLOWER = "flower"


FILE = "submission.json"
LOOK = 0.3
ASK = 3.0
"""Seconds between two looks at the folder, and between the first two questions to the SuperLink."""
SELDOM = 15.0
"""Seconds between two questions later on: each is a process that takes a second or two by itself."""


class Submission(msgspec.Struct, frozen=True):
    """All that starts a run, kept in its folder for ``fedsim resume``.

    folder: its absolute path; experiment: TOML text; directory: where relative paths begin; superlink: the connection;
    nodes: that share the clients, 0 for the engine's default; gpus: for each client process.
    """

    engine: Engine
    folder: str
    experiment: str
    directory: str
    superlink: str = ""
    nodes: int = 0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError for options that the engine has no use for."""
        local = self.engine in (Engine.IN_PROCESS, Engine.SIMULATION)
        if self.superlink and self.engine is not Engine.FLOWER:
            raise ConfigError(f"--superlink is for --engine flower only; leave it out for {self.engine.value}")
        if not self.superlink and self.engine is Engine.FLOWER:
            raise ConfigError("--engine flower needs --superlink NAME, a connection in Flower's config.toml")
        if self.nodes and not local:
            raise ConfigError(f"--nodes is not for --engine {self.engine.value}, whose nodes are those that connect")
        if self.gpus and self.engine is not Engine.SIMULATION:
            raise ConfigError(f"--gpus-per-client is for --engine flower-simulation only, not {self.engine.value}")


class Job(Protocol):
    """A run that others play."""

    def failure(self) -> str | None:
        """None while it runs; then empty, or why it failed. Raises DeployError when it cannot be asked."""
        ...

    def stop(self) -> None:
        """End it now; its folder stays as of the last round."""
        ...


def submit(given: Submission, experiment: Experiment, fresh: bool) -> None:
    """Start a run, or go on with it, watch it and print the outcome. Raises FedsimError."""
    console, folder = Console(), _near(Path(given.folder))
    part.check(experiment)
    check(ray=given.engine is Engine.SIMULATION, command=given.engine is not Engine.IN_PROCESS)
    if fresh and any((folder / name).exists() for name in ("experiment.toml", FILE)):
        raise CheckpointError(
            f"{folder} holds a run already; `fedsim resume {folder}` continues it, --folder names another"
        )
    play.print_line(console, f"  {experiment.algorithm} · {experiment.rounds} rounds · {given.engine.value}")
    # Flower's part of the run would go on without its command: to be told to end is as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _job(given) as job:
        if fresh:
            _record(given, folder)
        _watch(console, job, folder, experiment, fresh)
    if (folder / "manifest.json").exists():
        finished(console, folder)
    else:
        play.print_line(console, f"  finished; the run folder is {folder} on the SuperLink's machine")


def _near(folder: Path) -> Path:
    """As a user in the current directory would write it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def submission_of(folder: Path) -> Submission | None:
    """How a folder's run was started; None for a simulated one. Raises CheckpointError."""
    if (folder / FILE).exists():
        try:
            given = msgspec.json.decode(read_whole(folder / FILE), type=Submission)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise CheckpointError(f"{folder / FILE}: unreadable ({error}); put it back") from None
        if Path(given.folder).resolve() != folder.resolve():
            raise CheckpointError(
                f"{folder / FILE} is of a run in {given.folder}; put that folder back to where it was"
            )
        return given
    try:
        engine = dict(json.loads((folder / "manifest.json").read_bytes())).get("engine", "simulator")
    except (OSError, ValueError, TypeError):
        return None  # not a run folder: the simulator says so
    if engine == "simulator":
        return None
    raise ConfigError(
        f"{folder} was run by `flwr run`, not by fedsim; the same `flwr run` with -c 'folder=\"...\"' goes on with it"
    )


def _record(given: Submission, folder: Path) -> None:
    try:
        write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(given)))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; give another --folder") from None


@contextmanager
def _job(given: Submission) -> Iterator[Job]:
    if given.engine is Engine.IN_PROCESS:
        with tempfile.TemporaryFile() as said:
            process = Process(given, said)
            try:
                yield process
            finally:
                process.stop()
        return
    config = {"experiment": given.experiment, "folder": given.folder, "engine": given.engine.value}
    if given.engine is Engine.FLOWER:
        flower = Flower(given.superlink, environment())
        yield Run(flower, flower.submit(config))
        return
    resources = (
        f"num-supernodes={given.nodes or os.cpu_count() or 1} client-resources-num-cpus=1 "
        f"client-resources-num-gpus={float(given.gpus)}"
    )
    with local_superlink() as flower:
        number = flower.submit(config | {"directory": given.directory}, ["--federation-config", resources])
        yield Run(flower, number)


class Run:
    """A run of Flower."""

    def __init__(self, flower: Flower, number: str) -> None:
        self.flower, self.number, self.asked, self.wait = flower, number, 0.0, ASK

    def failure(self) -> str | None:
        """Asks at most every few seconds, as a question takes one by itself."""
        if time.monotonic() - self.asked < self.wait:
            return None
        status, details = self.flower.status(self.number)
        self.asked, self.wait = time.monotonic(), min(1.5 * self.wait, SELDOM)
        if not status.startswith("finished"):
            return None
        if status == "finished:completed":
            return ""
        reason = last_line(details).partition("failed with exception: ")
        # The app's own words have the way out; of a run that Flower ended, all complete rounds are on disk.
        ended = f"Flower's run {self.number} is {status.replace(':', ', ')}"
        return reason[2] or f"{ended} ({reason[0]}); `fedsim resume` goes on from the last complete round"

    def stop(self) -> None:
        """By Flower's own command."""
        self.flower.stop(self.number)


class Process:
    """The apps in one process."""

    def __init__(self, given: Submission, said: IO[bytes]) -> None:
        """said: a file for what it says; a pipe would have to be emptied."""
        self.said, folder = said, Path(given.folder)
        write_whole(folder / "submitted.toml", given.experiment.encode())
        env = environment()
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(app_folder()), env.get("PYTHONPATH", "")]))
        # -P: whatever lies in the current directory is not taken for the app.
        command = [sys.executable, "-P", "-m", "server.inprocess", str(folder / "submitted.toml"), str(folder)]
        self.process = subprocess.Popen(  # nosec B603 # this Python, a list, no shell
            [*command, "--nodes", str(given.nodes or 1)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.said,
            cwd=given.directory,
            start_new_session=True,
        )

    def failure(self) -> str | None:
        """As the process ended."""
        if (status := self.process.poll()) is None:
            return None
        self.said.seek(0)
        said = self.said.read().decode(errors="replace")
        return "" if status == 0 else last_line(said).removeprefix("error: ")

    def stop(self) -> None:
        """Every round is on disk."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def _watch(console: Console, job: Job, folder: Path, experiment: Experiment, fresh: bool) -> None:
    """Print what the folder says until the run is over. Raises DeployError when it failed, StoppedError on Ctrl-C."""
    every = lines_every(experiment.rounds, experiment.run.evaluate_every)
    printed = -1 if fresh else (_metrics(folder)[-1:] or [{"round": -1}])[0]["round"]
    try:
        while True:
            try:
                failure = job.failure()
            except DeployError as error:
                raise DeployError(f"{error}; then `fedsim resume {folder}` goes on with this run") from None
            for line in _metrics(folder):
                done = line["round"]
                if done > printed and (done % every == 0 or done == experiment.rounds):
                    up, down = text.size(line["up_bytes"]), text.size(line["down_bytes"])
                    measures = text.measures(line)
                    play.print_line(console, f"  round {done}/{experiment.rounds}  {measures}  up {up}  down {down}")
                    printed = done
            if failure:
                raise DeployError(failure)
            if failure is not None or (printed == experiment.rounds and _manifest(folder).get("status") == "finished"):
                return
            time.sleep(LOOK)
    except KeyboardInterrupt:
        job.stop()
        raise StoppedError(f"`fedsim resume {folder}` goes on from the last complete round") from None


def finished(console: Console, folder: Path) -> None:
    """Print the outcome of a finished run from its folder."""
    found, metrics = checkpoint.read(folder / "checkpoint"), _metrics(folder)
    if found is None or not metrics:
        raise DeployError(f"{folder} has no finished run; `fedsim resume {folder}` goes on with it")
    totals = {(Direction(w), Entry(k)): Cost(*costs) for w, k, costs in found[0].notes["totals"]}
    play.outcome(console, metrics[-1], totals, str(_manifest(folder).get("model_sha256", "")), folder)
    if missing := _absences(folder):
        play.print_line(console, f"  {missing} replies are missing: {folder / 'incidents.csv'} says whose and why")


def _absences(folder: Path) -> int:
    """Replies that did not count."""
    try:
        with (folder / "incidents.csv").open(encoding="utf-8", newline="") as file:
            return sum(line["what"] == "absent" for line in csv.DictReader(file))
    except (OSError, KeyError):
        return 0


def _metrics(folder: Path) -> list[dict[str, float]]:
    """The complete lines of metrics.jsonl; none where the folder is on another machine."""
    try:
        *lines, _ = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def _manifest(folder: Path) -> dict[str, object]:
    try:
        return dict(json.loads((folder / "manifest.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def resume(folder: Path, given: Submission) -> None:
    """Go on with a run."""
    if (folder / "experiment.toml").exists():
        experiment = RunFolder(folder).experiment()
        if _manifest(folder).get("status") == "finished":
            console = Console()
            play.print_line(console, "  this run was finished already")
            finished(console, folder)
            return
    else:
        from fedsim.ends.host import read

        experiment = read(given.experiment)
    submit(given, experiment, fresh=False)
