"""A client's durable folder: what it must still know after it was killed, by run and client.

    ROOT / run (16 hexadecimal digits) / client-7 / even.safetensors, odd.safetensors

One write a round, before the upload leaves: the model, the state that the server last acknowledged, and the one that is
pending on it; so whichever of the two the server's next frame speaks of is there. Two slots, forced to disk, renamed,
with a digest (``fedsim.checkpoint``): a kill at any instant leaves the last write or the one before it, and in the
second case no upload had left. At most seven rows of d numbers, and the notes of the local solver twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from fedsim import checkpoint
from fedsim.algorithms.artemis import Clients
from fedsim.checkpoint import Checkpoint
from fedsim.errors import CheckpointError, one_line
from fedsim.solvers.memory import Memory
from fedsim.wire.frame import DIGEST_BYTES
from fedsim.wire.link import End, Sender

NEVER = -1

_MISFITS = (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""What bytes that are in order, but not a client's state, lead to."""

_Name = Annotated[str, msgspec.Meta(pattern=r"^[<|][fiub][1248]\Z")]
_Shape = Annotated[tuple[int, ...], msgspec.Meta(max_length=8)]
_Row = tuple[_Name, _Shape, bytes]
"""numpy's name of a type, a shape, the numbers. Not any name: others are objects, or parsed as Python."""


@dataclass(frozen=True, slots=True)
class Held:
    """What becomes valid when an upload is acknowledged.

    rows: float[1, d] each; solver: as in ``solve``; model: float[d], of round ``seen``, at which the upload was made
    (NEVER: none yet, or a refresh brought the rows). The server sends the updates since that model.
    """

    rows: Clients
    solver: Memory
    model: Tensor
    seen: int = NEVER


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a client stands.

    model: float[d], of round ``seen`` (NEVER: none yet). sender: its end of the link. data: a digest of its samples.
    """

    model: Tensor
    seen: int
    sender: Sender[Held]
    data: str


class Keep(Protocol):
    """Where one client of one run keeps its standing."""

    def save(self, standing: Standing) -> None:
        """Keep it. Raises OSError when that is refused."""
        ...

    def load(self, device: torch.device) -> Standing | None:
        """What was kept last; None before the first time. Raises CheckpointError when it is damaged."""
        ...


class Store:
    """A folder, which outlives the process and the machine's power."""

    def __init__(self, root: Path, run: bytes, client: int) -> None:
        self.folder = root / run.hex() / f"client-{client}"
        self.turn = 0

    def save(self, standing: Standing) -> None:
        """Force to disk. Raises OSError when the disk refuses; the last write is then still there."""
        checkpoint.write(self.folder, _pack(standing), self.turn)
        self.turn += 1

    def load(self, device: torch.device) -> Standing | None:
        """What the last write left; None where there is none. Raises CheckpointError when it is damaged."""
        found = checkpoint.read(self.folder)
        if found is None:
            return None
        kept, turn = found
        self.turn = turn + 1
        try:
            return _unpack(kept, device)
        except _MISFITS as error:
            what = one_line(repr(error))
            raise CheckpointError(f"{self.folder}: not a client's state as this fedsim keeps it ({what})") from None


class Drawer:
    """An entry of a dictionary of bytes, for whoever carries that from call to call; kept in MessagePack."""

    def __init__(self, drawers: MutableMapping[str, bytes], run: bytes, client: int) -> None:
        self.drawers, self.name = drawers, f"{run.hex()}.{client}"

    def save(self, standing: Standing) -> None:
        """Replace the entry."""
        kept = _pack(standing)
        arrays = {name: tensor.numpy() for name, tensor in kept.tensors.items()}
        rows = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
        self.drawers[self.name] = msgspec.msgpack.encode((kept.round, kept.notes, rows))

    def load(self, device: torch.device) -> Standing | None:
        """What was saved last; None before the first time. Raises CheckpointError when it is damaged."""
        if (entry := self.drawers.get(self.name)) is None:
            return None
        try:
            round, notes, rows = msgspec.msgpack.decode(entry, type=tuple[int, dict[str, Any], dict[str, _Row]])
            tensors = {
                name: torch.from_numpy(np.frombuffer(octets, dtype).reshape(shape).copy())
                for name, (dtype, shape, octets) in rows.items()
            }
            return _unpack(Checkpoint(round, tensors, notes), device)
        except (msgspec.MsgspecError, *_MISFITS) as error:
            what = one_line(repr(error))
            raise CheckpointError(f"the kept state of client {self.name} is damaged ({what})") from None


def _pack(standing: Standing) -> Checkpoint:
    sender = standing.sender
    tensors, notes = {"model": standing.model}, dict[str, Any]()
    sides = {"held": (sender.end, sender.state)} | ({} if sender.pending is None else {"pending": sender.pending})
    for side, (end, held) in sides.items():
        notes[side] = {"epoch": end.epoch, "digest": end.digest.hex(), "seen": held.seen, "steps": held.solver.steps}
        tensors |= {f"{side}.{name}": tensor for name, tensor in _named(held) if tensor is not standing.model}
    notes["data"] = standing.data
    # Copies: one tensor may be in both states, and the file format knows no aliases.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    return Checkpoint(standing.seen, copies, notes)


def _unpack(kept: Checkpoint, device: torch.device) -> Standing:
    noted = {side: notes for side, notes in kept.notes.items() if side != "data"}
    rows = ("model", *(f"{side}.{row}" for side in noted for row in ("model", "memory", "error")))
    tensors = {name: tensor.to(device) if name in rows else tensor for name, tensor in kept.tensors.items()}
    sides = {side: _side(side, tensors, notes) for side, notes in noted.items()}
    sender = Sender(*sides["held"], sides.get("pending"))
    if not isinstance(data := kept.notes["data"], str):
        raise ValueError(f"a digest of samples that is {type(data).__name__}")
    return Standing(tensors["model"], kept.round, sender, data)


def _named(held: Held) -> Iterator[tuple[str, Tensor]]:
    rows = {"memory": held.rows.memory, "error": held.rows.error, "model": held.model}
    yield from ((name, row) for name, row in rows.items() if row is not None)
    for part, notes in (("rate", held.solver.rate), ("direction", held.solver.direction)):
        yield from ((f"{part}.{name}", note) for name, note in notes.items())


def _side(side: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> tuple[End, Held]:
    def notes_of(part: str) -> dict[str, Tensor]:
        start = f"{side}.{part}."
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    rows = Clients(tensors.get(f"{side}.memory"), tensors.get(f"{side}.error"))
    solver = Memory(notes["steps"], notes_of("rate"), notes_of("direction"))
    model = tensors.get(f"{side}.model", tensors["model"])
    epoch, digest, seen = notes["epoch"], bytes.fromhex(notes["digest"]), notes["seen"]
    if any(type(number) is not int for number in (epoch, seen, solver.steps)) or len(digest) != DIGEST_BYTES:
        raise ValueError(f"epoch {epoch!r}, seen {seen!r}, steps {solver.steps!r}, a digest of {len(digest)} bytes")
    return End(epoch, digest), Held(rows, solver, model, seen)
