"""The folder a run leaves, and how it stays whole when the run is killed at any instant.

    experiment.toml      complete, with defaults
    manifest.json        versions, hardware, status, digest of the final model
    metrics.jsonl        one line an evaluation
    ledger.csv           one line a frame
    checkpoint/          two slots; each knows how long the two files above were when it was written
    model.safetensors    the final model, once the run is finished

metrics.jsonl and ledger.csv only grow. Resuming cuts them back to the lengths that the checkpoint knows, so what was
written after it is written again, the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedsim.checkpoint import Checkpoint, advice, read, write, write_whole
from fedsim.errors import CheckpointError
from fedsim.experiment import Experiment, from_table, read_toml
from fedsim.ledger import COLUMNS

LOGS = ("metrics.jsonl", "ledger.csv")
HEADERS = {"metrics.jsonl": "", "ledger.csv": ",".join(COLUMNS) + "\n"}


@dataclass
class RunFolder:
    """A run's folder; ``turn`` counts its checkpoints."""

    path: Path
    turn: int = 0

    @staticmethod
    def create(path: Path, experiment: Experiment) -> RunFolder:
        """Make a new folder. Raises CheckpointError when it exists already or cannot be written."""
        if (path / "experiment.toml").exists():
            raise CheckpointError(
                f"{path} holds a run already; `fedsim resume {path}` continues it, --folder names another"
            )
        write_whole(path / "manifest.json", _manifest(experiment))
        write_whole(path / "experiment.toml", experiment.toml().encode())
        return RunFolder(path)

    def experiment(self) -> Experiment:
        """The experiment of this folder. Raises CheckpointError when there is none."""
        if not (self.path / "experiment.toml").exists():
            raise CheckpointError(f"{self.path} is not a run folder (no experiment.toml); `fedsim run` makes one")
        return from_table(read_toml(self.path / "experiment.toml"))

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint, with the logs cut back to it; None (and fresh logs) when the run has none yet."""
        found = read(self.path / "checkpoint")
        try:
            for log in LOGS:
                length = found[0].notes["lengths"][log] if found else 0
                with (self.path / log).open("ab") as file:
                    if file.tell() < length:
                        raise CheckpointError(
                            f"{self.path / log} is shorter than its checkpoint says; restore it or start anew"
                        )
                    file.truncate(length)
                    if not length:
                        file.write(HEADERS[log].encode())
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}; {advice(error)}") from None
        self.turn = found[1] + 1 if found else 0
        return found[0] if found else None

    def append(self, log: str, text: str) -> None:
        """Add text to a log. Raises CheckpointError when the disk refuses."""
        try:
            with (self.path / log).open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path / log}: {error.strerror}; {advice(error)}") from None

    def checkpoint(self, round: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Force the logs to disk, then write a checkpoint that knows their lengths."""
        lengths = {}
        try:
            for log in LOGS:
                with (self.path / log).open("ab") as file:
                    os.fsync(file.fileno())
                    lengths[log] = file.tell()
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}; {advice(error)}") from None
        write(self.path / "checkpoint", Checkpoint(round, tensors, {**notes, "lengths": lengths}), self.turn)
        self.turn += 1

    def finish(self, experiment: Experiment, tensors: Mapping[str, Tensor], outcome: Mapping[str, Any]) -> None:
        """Write the final model and mark the manifest finished."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(self.path / "model.safetensors", save(content))
        write_whole(self.path / "manifest.json", _manifest(experiment, status="finished", **outcome))


def model_digest(model: Tensor) -> str:
    """SHA-256 of a model row's bytes, little-endian."""
    return hashlib.sha256(model.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _manifest(experiment: Experiment, **facts: Any) -> bytes:
    packages = {name: version(name) for name in ("fedsim", "torch", "numpy", "scikit-learn", "safetensors")}
    manifest = {
        "status": "running",
        "run": experiment.identifier().hex(),
        "seed": experiment.seed,
        "executor": "sequential" if experiment.run.chunk == 1 else f"stacked, {experiment.run.chunk} clients at once",
        "threads": experiment.run.threads,
        "device": experiment.run.device,
        "python": platform.python_version(),
        "packages": packages,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **facts,
    }
    return json.dumps(manifest, indent=2).encode()
