"""Checkpoints: one safetensors file with the tensors and, in its metadata, JSON; written whole or not at all.

Two files take turns. A checkpoint is written beside its final name, forced to disk and renamed over the older one, so
that a crash at any instant leaves at least the previous checkpoint. A digest over the content finds damage; then the
other file serves.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
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
    """Write a checkpoint into slot ``turn % 2`` of ``folder``. Raises OSError as ``write_whole``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    notes = json.dumps(checkpoint.notes, sort_keys=True)
    metadata = {
        "fedsim": str(VERSION),
        "round": str(checkpoint.round),
        "turn": str(turn),
        "notes": notes,
        "digest": _digest(checkpoint.round, turn, notes, tensors),
    }
    # As arrays: safetensors.torch makes a ctypes type for every length that it meets, and those stay for ever.
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    write_whole(folder / SLOTS[turn % 2], save(arrays, metadata))


def read(folder: Path) -> tuple[Checkpoint, int] | None:
    """The newest undamaged checkpoint and its turn; None when there is none yet.

    Raises CheckpointError when checkpoints exist but none can be read, naming each and why.
    """
    found: list[tuple[Checkpoint, int]] = []
    refused: list[str] = []
    for slot in SLOTS:
        try:
            refuse_other(folder / f"{slot}.new")
        except OSError as error:
            raise CheckpointError(f"{error.filename}: {error.strerror}; delete it") from None
        if os.path.lexists(folder / slot):
            try:
                found.append(_read_slot(folder / slot))
            except CheckpointError as error:
                refused.append(str(error))
    if refused and not found:
        raise CheckpointError("; ".join(refused) + f"; delete {folder} to start this run from its first round")
    return max(found, key=lambda item: item[1]) if found else None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, and make its folder where there is none.

    Raises OSError when the disk refuses; then the file is as it was before, or whole.
    """
    temporary = path.with_name(path.name + ".new")
    make_folder(path.parent)
    refuse_other(temporary)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_whole(path: Path) -> bytes:
    """A file of a run folder. Raises OSError as ``refuse_other``, and when it cannot be read."""
    path.lstat()
    refuse_other(path)
    return path.read_bytes()


def open_log(path: Path) -> BinaryIO:
    """A file of a run folder, to be appended to. Raises OSError as ``refuse_other``, and when it cannot be written."""
    refuse_other(path)
    return path.open("ab")


def refuse_other(path: Path) -> None:
    """Raise OSError for what is there and is no plain file.

    A link in a folder that came from elsewhere could aim what is written at any file; a pipe would never end.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file, but a link, a folder or a device", str(path))


def refuse_link(folder: Path) -> None:
    """Raise OSError for a symbolic link."""
    if folder.is_symlink():
        raise OSError(errno.EINVAL, "a symbolic link", str(folder))


def parse_json(content: bytes | str) -> Any:
    """What a JSON text says. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they outlive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out of a folder while inside; the system lets go when the process dies.

    Raises CheckpointError with ``refusal`` when another process is inside.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(refusal) from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)


def _digest(round: int, turn: int, notes: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(f"{VERSION} {round} {turn} {notes}".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_slot(path: Path) -> tuple[Checkpoint, int]:
    try:
        refuse_link(path.parent)
        refuse_other(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fedsim") != str(VERSION):
                raise CheckpointError(
                    f"{path}: checkpoint of version {metadata.get('fedsim', 'unknown')}, "
                    f"this fedsim reads version {VERSION}; resume with the fedsim that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        round, turn, notes = int(metadata["round"]), int(metadata["turn"]), metadata["notes"]
        if metadata["digest"] != _digest(round, turn, notes, tensors):
            raise CheckpointError(f"{path}: damaged checkpoint (its digest does not match)")
        told = parse_json(notes)
        if round < 0 or turn < 0 or not isinstance(told, dict):
            raise ValueError(f"round {round}, turn {turn} and notes that are {type(told).__name__}")
        return Checkpoint(round, tensors, told), turn
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: unreadable checkpoint ({' '.join(str(error).split())})") from None
