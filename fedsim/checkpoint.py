"""Checkpoints: one safetensors file with the tensors and, in its metadata, JSON; written whole or not at all.

Two files take turns. A checkpoint is written beside its final name, forced to disk and renamed over the older one, so
that a crash at any instant leaves at least the previous checkpoint. A digest over the content finds damage; then the
other file serves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedsim.errors import CheckpointError

VERSION = 1
SLOTS = ("even.safetensors", "odd.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """round: rounds completed. tensors: the state. notes: whatever JSON can hold."""

    round: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def write(folder: Path, checkpoint: Checkpoint, turn: int) -> None:
    """Write a checkpoint into slot ``turn % 2`` of ``folder``. Raises CheckpointError when the disk refuses."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    notes = json.dumps(checkpoint.notes, sort_keys=True)
    metadata = {
        "fedsim": str(VERSION),
        "round": str(checkpoint.round),
        "turn": str(turn),
        "notes": notes,
        "digest": _digest(checkpoint.round, turn, notes, tensors),
    }
    write_whole(folder / SLOTS[turn % 2], save(tensors, metadata))


def read(folder: Path) -> tuple[Checkpoint, int] | None:
    """The newest undamaged checkpoint and its turn; None when there is none yet.

    Raises CheckpointError when checkpoints exist but none can be read, naming each and why.
    """
    found: list[tuple[Checkpoint, int]] = []
    refused: list[str] = []
    for slot in SLOTS:
        if (folder / slot).exists():
            try:
                found.append(_read_slot(folder / slot))
            except CheckpointError as error:
                refused.append(str(error))
    if refused and not found:
        raise CheckpointError("; ".join(refused) + f"; delete {folder} to start this run from its first round")
    return max(found, key=lambda item: item[1]) if found else None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file: all of ``content`` or, when anything fails, the old file as it was."""
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; {advice(error)}") from None


def advice(error: OSError) -> str:
    """The way out of a failed write."""
    return f"the run is kept up to its last checkpoint: make room or give another --folder, then `fedsim resume` ({error.errno})"


def _digest(round: int, turn: int, notes: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(f"{VERSION} {round} {turn} {notes}".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _read_slot(path: Path) -> tuple[Checkpoint, int]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fedsim") != str(VERSION):
                raise CheckpointError(
                    f"{path}: checkpoint of version {metadata.get('fedsim', 'unknown')}, this fedsim reads version {VERSION}; "
                    "resume with the fedsim that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        round, turn, notes = int(metadata["round"]), int(metadata["turn"]), metadata["notes"]
        if metadata["digest"] != _digest(round, turn, notes, tensors):
            raise CheckpointError(f"{path}: damaged checkpoint (its digest does not match)")
        return Checkpoint(round, tensors, json.loads(notes)), turn
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable checkpoint ({' '.join(str(error).split())})") from None
