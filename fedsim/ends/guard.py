"""What the server accepts: a reply is taken whole or not at all, and one bad reply never stops a round.

    sender    in the cohort, once; the frame names the same client, this run and this round
    frames    decode, of the expected kinds, each built on the server's end of the link (neither stale nor parted)
    numbers   decode in the expected shape and type, are finite, and no longer than the bounds

Lengths are those of h_i + D_i, what the client's direction comes to, because D_i alone shrinks as memories learn while
a newcomer's does not. The bounds are deploy.longest and deploy.median; the relative one holds against fewer than half
of a cohort, and where the median is zero (nobody learns) only the absolute one is left. Weights are the server's own:
no frame has a place for one. What passes may still be hostile: against that, see ``fedsim.algorithms.robust``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter

import torch
from torch import Tensor

from fedsim.compression import Payload, Values
from fedsim.ends.part import whole
from fedsim.errors import WireError
from fedsim.simulation.setup import Setup
from fedsim.wire import Frame, Kind, coding, decode_frame
from fedsim.wire.link import End, Reception, receive

Reply = tuple[int, Sequence[bytes]]
"""The client that the transport received it from, and its frames."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A reply that was not taken. octets: its bytes, which the ledger does not count."""

    client: int
    round: int
    reason: str
    octets: int


@dataclass(frozen=True, slots=True)
class Taken:
    """One client's frames, and the server's end of its link once they are absorbed."""

    client: int
    frames: tuple[Frame, ...]
    end: End


@dataclass(frozen=True, slots=True)
class Accepted:
    """Replies in client order. uploads: their payload; rows: it decoded, float[n, d]; memories: float[n, d] or None."""

    taken: tuple[Taken, ...]
    uploads: Payload
    rows: Tensor
    memories: Tensor | None

    @property
    def clients(self) -> Tensor:
        """Client numbers, int64[n], ascending."""
        return torch.tensor([one.client for one in self.taken], dtype=torch.int64)


class _Refused(Exception):  # noqa: N818
    """The reason why a reply is not taken."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where replies of one round arrive. ends: the server's, of a client; held: their memories, float[n, d] or None."""

    setup: Setup
    round: int
    cohort: frozenset[int]
    ends: Callable[[int], End]
    held: Callable[[Tensor], Tensor | None]

    def judge(self, replies: Iterable[Reply]) -> tuple[Accepted | None, list[Rejection]]:
        """What is taken of the replies (None: nothing), and what is not, with the reasons, in client order."""
        taken: dict[int, tuple[Taken, int]] = {}
        rejections: list[Rejection] = []

        def reject(client: int, octets: int, reason: str) -> None:
            rejections.append(Rejection(client, self.round, reason, octets))

        for client, frames in replies:
            octets = sum(map(len, frames))
            try:
                if client in taken:
                    raise _Refused("duplicate: a reply of this client was taken already")
                taken[client] = self._take(client, frames), octets
            except (_Refused, WireError) as error:
                reject(client, octets, str(error))
        while taken:
            try:
                accepted = self._decoded(tuple(one for _, (one, _) in sorted(taken.items())))
            except WireError:  # one body spoils them all: find whose
                for client, reason in self._unreadable(taken[client][0] for client in sorted(taken)):
                    reject(client, taken.pop(client)[1], reason)
                continue
            wrong = self._numbers(accepted)
            if not wrong:
                break
            for client, reason in wrong.items():
                reject(client, taken.pop(client)[1], reason)
        else:
            accepted = None
        return accepted, sorted(rejections, key=attrgetter("client"))

    def _take(self, client: int, replied: Sequence[bytes]) -> Taken:
        """The frames of a reply, if they are what this client should send."""
        if client not in self.cohort:
            raise _Refused(f"client {client} is not in the cohort of round {self.round}")
        first = self.round == 0 and self.setup.experiment.uplink.initial == "gradient"
        kinds = (Kind.MEMORY, Kind.UPLOAD) if first else (Kind.UPLOAD,)
        if len(replied) != len(kinds):
            raise _Refused(f"{len(replied)} frames, expected {len(kinds)}")
        frames, end = [], self.ends(client)
        for data, kind in zip(replied, kinds, strict=True):
            frame = decode_frame(data, limit(self.setup))
            if frame.run != self.setup.run:
                raise _Refused(f"frame of run {frame.run.hex()}, expected {self.setup.run.hex()}")
            if frame.round != self.round:
                raise _Refused(f"frame of round {frame.round}, expected {self.round}")
            if frame.client != client:
                raise _Refused(f"frame of client {frame.client}, sent by client {client}")
            if frame.kind is not kind:
                raise _Refused(f"{frame.kind.name} frame, expected {kind.name}")
            reception = receive(end, End(frame.epoch, frame.digest))
            if reception is not Reception.ACCEPT:
                raise _Refused(f"{reception.value}: built on epoch {frame.epoch}, the server is at epoch {end.epoch}")
            frames.append(frame)
            end = end.after(frame.body)
        return Taken(client, tuple(frames), end)

    def _unreadable(self, taken: Iterable[Taken]) -> list[tuple[int, str]]:
        """Clients whose bodies do not decode, and why."""
        found = []
        for one in taken:
            try:
                self._decoded((one,))
            except WireError as error:
                found.append((one.client, str(error)))
        return found

    def _decoded(self, taken: tuple[Taken, ...]) -> Accepted:
        """Bodies decoded together. Raises WireError when one does not decode."""
        model = self.setup.weights
        uploads = _decode([one.frames[-1] for one in taken], self.setup)
        rows = self.setup.method.up.decompress(uploads, model.dtype).to(model.device)
        memories = None
        if len(taken[0].frames) > 1:
            exact = _decode([one.frames[0] for one in taken], self.setup)
            assert isinstance(exact, Values)
            memories = exact.values.to(model.device)
        return Accepted(taken, uploads, rows, memories)

    def _numbers(self, accepted: Accepted) -> dict[int, str]:
        """Clients whose numbers are refused, and why; bounds are looked at only once all of them are finite."""
        clients, memories = accepted.clients.tolist(), accepted.memories
        held = self.held(accepted.clients) if memories is None else memories
        directions = accepted.rows if held is None else accepted.rows + held
        norms = directions.to(torch.float64).norm(dim=1)
        wrong = {
            client: "not finite" for client, norm in zip(clients, norms.isfinite().tolist(), strict=True) if not norm
        }
        if wrong:
            return wrong
        middle = float(norms.median())
        guard = self.setup.experiment.deploy
        bound = min(guard.longest or inf, guard.median * middle if middle else inf)
        return {
            client: f"norm {norm:.4g}, expected at most {bound:.4g} ({guard.median:g} x the median is "
            f"{guard.median * middle:.4g})"
            for client, norm in zip(clients, norms.tolist(), strict=True)
            if norm > bound
        }


def limit(setup: Setup) -> int:
    """Bytes that no body of a client exceeds."""
    return max(coding.longest(whole(setup)), coding.longest(setup.method.up.layout(setup.task.dim)))


def _decode(frames: Sequence[Frame], setup: Setup) -> Payload:
    """Bodies of frames of one kind. Raises WireError."""
    exact = frames[0].kind is Kind.MEMORY
    layout = whole(setup) if exact else setup.method.up.layout(setup.task.dim)
    return coding.decode([frame.body for frame in frames], layout)
