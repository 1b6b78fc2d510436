"""A client's durable folder: what it must still know after it was killed, by run and client.

    ROOT / run (16 hexadecimal digits) / client-7 / even.safetensors, odd.safetensors

One write a round, before the upload leaves: the model, the state that the server last acknowledged, and the one that is
pending on it; so whichever of the two the server's next frame speaks of is there. Two slots, forced to disk, renamed,
with a digest (``fedsim.checkpoint``): a kill at any instant leaves the last write or the one before it, and in the
second case no upload had left. At most five rows of d numbers, and the notes of the local solver twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim import checkpoint
from fedsim.algorithms.artemis import Clients
from fedsim.checkpoint import Checkpoint
from fedsim.solvers.memory import Memory
from fedsim.wire.link import End, Sender

NEVER = -1


@dataclass(frozen=True, slots=True)
class Held:
    """What becomes valid when an upload is acknowledged. rows: float[1, d] each; solver: as in ``solve``."""

    rows: Clients
    solver: Memory


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a client stands. model: float[d], of round ``seen`` (NEVER: none yet). sender: its end of the link."""

    model: Tensor
    seen: int
    sender: Sender[Held]


class Store:
    """The folder of one client of one run."""

    def __init__(self, root: Path, run: bytes, client: int) -> None:
        self.folder = root / run.hex() / f"client-{client}"
        self.turn = 0

    def save(self, standing: Standing) -> None:
        """Force to disk. Raises OSError when the disk refuses; the last write is then still there."""
        sender = standing.sender
        tensors, notes = {"model": standing.model}, {}
        sides = {"held": (sender.end, sender.state)} | ({} if sender.pending is None else {"pending": sender.pending})
        for side, (end, held) in sides.items():
            notes[side] = {"epoch": end.epoch, "digest": end.digest.hex(), "steps": held.solver.steps}
            tensors |= {f"{side}.{name}": tensor for name, tensor in _named(held)}
        # Copies: one tensor may be in both states, and the file format knows no aliases.
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        checkpoint.write(self.folder, Checkpoint(standing.seen, copies, notes), self.turn)
        self.turn += 1

    def load(self) -> Standing | None:
        """What the last write left; None where there is none. Raises CheckpointError when it is damaged."""
        found = checkpoint.read(self.folder)
        if found is None:
            return None
        kept, turn = found
        self.turn = turn + 1
        sides = {side: _side(side, kept.tensors, notes) for side, notes in kept.notes.items()}
        return Standing(kept.tensors["model"], kept.round, Sender(*sides["held"], sides.get("pending")))


def _named(held: Held) -> Iterator[tuple[str, Tensor]]:
    rows = {"memory": held.rows.memory, "error": held.rows.error}
    yield from ((name, row) for name, row in rows.items() if row is not None)
    for part, notes in (("rate", held.solver.rate), ("direction", held.solver.direction)):
        yield from ((f"{part}.{name}", note) for name, note in notes.items())


def _side(side: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> tuple[End, Held]:
    def notes_of(part: str) -> dict[str, Tensor]:
        start = f"{side}.{part}."
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    rows = Clients(tensors.get(f"{side}.memory"), tensors.get(f"{side}.error"))
    solver = Memory(notes["steps"], notes_of("rate"), notes_of("direction"))
    return End(notes["epoch"], bytes.fromhex(notes["digest"])), Held(rows, solver)
