"""The folder a run leaves, and how it stays whole when the run is killed at any instant.

    experiment.toml      complete, with defaults
    manifest.json        versions, hardware, status, digest of the final model
    metrics.jsonl        one line an evaluation
    ledger.csv           one line a frame
    timing.csv           one line a round, where [network] simulates time
    checkpoint/          two slots; each knows how long the two files above were when it was written
    model.safetensors    the final model, once the run is finished

metrics.jsonl and ledger.csv only grow. Resuming cuts them back to the lengths that the checkpoint knows, so what was
written after it is written again, the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedsim.checkpoint import (
    Checkpoint,
    alone,
    open_log,
    parse_json,
    read,
    read_whole,
    refuse_link,
    sync_folder,
    write,
    write_whole,
)
from fedsim.errors import CheckpointError
from fedsim.experiment import Experiment, from_table, parse_toml
from fedsim.ledger import COLUMNS
from fedsim.network import Untimed
from fedsim.simulation.executors import Choice

LOGS = {"metrics.jsonl": "", "ledger.csv": ",".join(COLUMNS) + "\n"}
"""Files that only grow, and their first lines."""

TIMING = {"timing.csv": "round,seconds,slowest,late\n"}
"""Simulated seconds of a round, the client that took longest (-1: nobody took part), uploads that came too late."""


@dataclass
class RunFolder:
    """A run's folder. logs: its files that only grow; engine: for the manifest; ``turn`` counts its checkpoints."""

    path: Path
    logs: Mapping[str, str] = field(default_factory=lambda: LOGS)
    engine: str = "simulator"
    turn: int = 0

    @staticmethod
    def create(
        path: Path,
        experiment: Experiment,
        choice: Choice,
        logs: Mapping[str, str] = LOGS,
        engine: str = "simulator",
    ) -> RunFolder:
        """Make a new folder. Raises CheckpointError when it holds a run already or cannot be written."""
        folder = RunFolder(path, logs_of(experiment, logs), engine)
        with _writing(path, begun=False):
            if (path / "experiment.toml").exists():
                raise CheckpointError(
                    f"{path} holds a run already; `fedsim resume {path}` continues it, --folder names another"
                )
            existed = path.exists()
            try:
                # The experiment comes last: where there is one, everything that resuming needs is there.
                write_whole(path / "manifest.json", _manifest(experiment, choice, engine))
                write_whole(path / "experiment.toml", experiment.toml().encode())
            except OSError:
                with suppress(OSError):
                    (path / "experiment.toml").unlink(missing_ok=True)
                    (path / "manifest.json").unlink(missing_ok=True)
                    if not existed:
                        path.rmdir()
                raise
        return folder

    def experiment(self) -> Experiment:
        """The experiment of this folder, which decides whether there is a ``timing.csv``.

        Raises CheckpointError when there is none, or when it is not the one that the run began with.
        """
        place = self.path / "experiment.toml"
        if not place.exists():
            raise CheckpointError(f"{self.path} is not a run folder (no experiment.toml); `fedsim run` makes one")
        try:
            content = read_whole(place)
        except OSError as error:
            raise CheckpointError(f"{place}: unreadable ({error.strerror}); put it back") from None
        experiment = from_table(parse_toml(content, f"{place}: not valid TOML"))
        if self.facts().get("run") != experiment.identifier().hex():
            raise CheckpointError(
                f"{self.path / 'experiment.toml'} is not what this run began with: edited, or written by another "
                "fedsim; put it back, or run it as a new experiment with --folder ANOTHER"
            )
        self.logs = logs_of(experiment, self.logs)
        return experiment

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from running this folder while inside. The system lets go when the process dies."""
        with alone(self.path, f"{self.path} is being run by another process; wait for it or stop it"):
            yield

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint, with the logs cut back to it; None (and fresh logs) when the run has none yet."""
        found = read(self.path / "checkpoint")
        lengths = self._lengths(found[0]) if found else dict.fromkeys(self.logs, 0)
        for log in self.logs:
            size = (self.path / log).stat().st_size if (self.path / log).exists() else 0
            if size < lengths[log]:
                raise CheckpointError(
                    f"{self.path / log} has {size} bytes, but its checkpoint was written at {lengths[log]}; put the "
                    f"file back, or delete {self.path / 'checkpoint'} to start this run from its first round"
                )
        with _writing(self.path):
            for log in self.logs:
                with open_log(self.path / log) as file:
                    file.truncate(lengths[log])
                    if not lengths[log]:
                        file.write(self.logs[log].encode())
            sync_folder(self.path)
        self.turn = found[1] + 1 if found else 0
        return found[0] if found else None

    def metrics(self, has_loss: bool = True) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Raises CheckpointError naming a damaged one.

        has_loss: whether each must have the training loss.
        """
        return read_metrics(self.path / "metrics.jsonl", has_loss)

    def append(self, log: str, text: str) -> None:
        """Add text to a log. Raises CheckpointError when the disk refuses."""
        with _writing(self.path), open_log(self.path / log) as file:
            file.write(text.encode())

    def checkpoint(self, round: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Force the logs to disk, then write a checkpoint that knows their lengths."""
        lengths = {}
        with _writing(self.path):
            for log in self.logs:
                with open_log(self.path / log) as file:
                    os.fsync(file.fileno())
                    lengths[log] = file.tell()
            refuse_link(self.path / "checkpoint")
            write(self.path / "checkpoint", Checkpoint(round, tensors, {**notes, "lengths": lengths}), self.turn)
        self.turn += 1

    def finish(
        self, experiment: Experiment, choice: Choice, tensors: Mapping[str, Tensor], outcome: Mapping[str, Any]
    ) -> None:
        """Write the final model and mark the manifest finished, once."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with _writing(self.path):
            write_whole(self.path / "model.safetensors", save(content))
            facts = self.facts()
            if facts.get("status") != "finished" or facts.get("model_sha256") != outcome["model_sha256"]:
                write_whole(
                    self.path / "manifest.json",
                    _manifest(experiment, choice, engine=self.engine, status="finished", **outcome),
                )

    def diverged(self, reason: str) -> None:
        """Say in the manifest that the run comes to no end, and why: it would every time."""
        with _writing(self.path):
            facts = self.facts() | {"status": "diverged", "reason": reason}
            write_whole(self.path / "manifest.json", json.dumps(facts, indent=2).encode())

    def _lengths(self, found: Checkpoint) -> dict[str, int]:
        lengths = found.notes.get("lengths")
        if not isinstance(lengths, dict) or any(type(n) is not int or n < 0 for n in map(lengths.get, self.logs)):
            raise CheckpointError(
                f"{self.path / 'checkpoint'} does not say how long {', '.join(self.logs)} were; restore it, or delete "
                "it to start this run from its first round"
            )
        return lengths

    def facts(self) -> dict[str, Any]:
        """The manifest. Raises CheckpointError when it is damaged."""
        path = self.path / "manifest.json"
        try:
            return dict(parse_json(read_whole(path)))
        except (OSError, ValueError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"{path}: unreadable manifest ({reason}); put it back") from None


def logs_of(experiment: Experiment, logs: Mapping[str, str]) -> Mapping[str, str]:
    """The files that grow with an experiment. logs: those of any."""
    return logs if isinstance(experiment.network, Untimed) else {**logs, **TIMING}


def read_metrics(path: Path, has_loss: bool = False, unfinished: bool = False) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Raises CheckpointError naming a damaged one.

    has_loss: whether each must have the training loss; unfinished: leave out a last line that has no end (yet).
    """
    lines, content = [], read_whole(path)
    for number, line in enumerate(content[: content.rfind(b"\n") + 1 if unfinished else None].splitlines(), 1):
        try:
            found = parse_json(line)
            losses = {"loss": float(found["loss"])} if has_loss else {}
            lines.append({**found, "round": int(found["round"]), **losses})
        except (ValueError, TypeError, KeyError, OverflowError):
            raise CheckpointError(
                f"{path}:{number}: damaged line; put the file back, or delete {path.parent / 'checkpoint'} to start "
                "this run from its first round"
            ) from None
    return lines


@contextmanager
def _writing(folder: Path, begun: bool = True) -> Iterator[None]:
    """What the disk refuses inside becomes a CheckpointError with the way out. begun: there is a run to resume."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if begun:
            remedy = f"make {'room' if full else 'it writable'}, then `fedsim resume {folder}` continues the run"
        else:
            remedy = "make room or give another --folder" if full else "give another --folder"
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot write {error.filename or folder}: {reason}; {remedy}") from None


def model_digest(model: Tensor) -> str:
    """SHA-256 of a model row's bytes, little-endian."""
    return hashlib.sha256(model.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _manifest(experiment: Experiment, choice: Choice, engine: str, **facts: Any) -> bytes:
    packages = {name: version(name) for name in ("fedsim", "torch", "numpy", "scikit-learn", "safetensors")}
    manifest = {
        "status": "running",
        "run": experiment.identifier().hex(),
        "seed": experiment.seed,
        "engine": engine,
        "executor": asdict(choice),
        "threads": experiment.run.threads,
        "device": experiment.run.device,
        "compute": experiment.run.compute,
        "python": platform.python_version(),
        "packages": packages,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **facts,
    }
    return json.dumps(manifest, indent=2).encode()
