"""The server's end of every link: it calls clients, judges what they reply, and goes on. See ``fedsim.ends``.

It keeps the memory row of every client that took part (under pp2 too, where the simulator's server needs their mean
alone), as it can compute them from what it decodes: d numbers a client, in memory or with run.rows = 'disk' on disk.
Without them a client whose folder was wiped could not be told its h_i, and h = sum v_i h_i would be wrong for ever.

The ledger counts every frame sent and every reply taken as the simulator does; what was rejected has its own record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Cohort
from fedsim.compression import Values
from fedsim.ends.guard import Accepted, Desk, Rejection, Reply, limit
from fedsim.ends.part import check, server_state, whole
from fedsim.ends.traffic import Traffic
from fedsim.errors import DivergedError, WireError
from fedsim.ledger import Direction, Entry, Ledger
from fedsim.randomness import Purpose
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import NEVER, State, from_tensors, to_tensors
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame, pack_messages


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round came to. clients: int64[n], whose replies were taken, ascending."""

    clients: Tensor
    rejections: tuple[Rejection, ...]


@dataclass
class ServerEnd:
    """The server. backlog: the newest updates, no more than ever go instead of a model; asked: clients to refresh."""

    setup: Setup
    ledger: Ledger = field(default_factory=lambda: Ledger(has_file=False))
    state: State = field(init=False)
    backlog: deque[bytes] = field(init=False, default_factory=deque)
    asked: set[int] = field(init=False, default_factory=set)
    traffic: Traffic = field(init=False, default_factory=Traffic)

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be deployed."""
        check(self.setup.experiment)
        self.state = server_state(self.setup)

    @property
    def round(self) -> int:
        """Rounds that are complete, which is the number of the next."""
        return self.state.server.round

    @property
    def model(self) -> Tensor:
        """float[d]."""
        return self.state.server.model

    def call(self, client: int) -> list[bytes]:
        """The frames that bring a client up to date: the whole model or its missed updates, whichever is shorter.

        To a client that asked for a refresh: its memory, after the model if this round has not brought it yet.
        """
        if client not in self.asked:
            return [self._model(client) if (missed := self._missed(client)) is None else self._updates(client, missed)]
        self.asked.discard(client)
        has = self.traffic.brought(client, Entry.MODEL)
        frames = [] if has else [self._model(client)]
        memory = self._held(torch.tensor([client]))
        return frames if memory is None else [*frames, self._send(Kind.MEMORY, client, self._exact(memory))]

    def wants(self, client: int, frames: Sequence[bytes]) -> bool:
        """Whether a reply asks for a refresh; then the next ``call`` of that client brings it, this round or later."""
        try:
            (frame,) = (decode_frame(data, limit(self.setup)) for data in frames)
        except (WireError, ValueError):  # not one frame
            return False
        if (frame.kind, frame.run, frame.round, frame.client) != (Kind.REFRESH, self.setup.run, self.round, client):
            return False
        if client not in self.asked:
            self.asked.add(client)
            self.traffic.count(Direction.UP, frame, 0.0, messages=0)
        return True

    def absorb(self, replies: Iterable[Reply], cohort: Cohort) -> Verdict:
        """End the round with what arrived, in any order. cohort: who was called.

        A client of which nothing is taken was absent: its upload is lost, and its next call will tell it so. To
        call, hear and answer twice in a round heals at once; then only the second answer belongs here. Raises
        DivergedError when the model stops being finite.
        """
        t, setup, server = self.round, self.setup, self.state.server
        asking: list[Reply] = []
        given: list[Reply] = []
        for client, frames in replies:
            (asking if self.wants(client, frames) else given).append((client, frames))
        members = frozenset(cohort.clients.tolist())
        desk = Desk(setup, t, members, self.state.store.end, self._held)
        accepted, rejections = desk.judge(given)
        rejections += [Rejection(i, t, "asks for a refresh, and had none", sum(map(len, f))) for i, f in asking]
        clients = torch.empty(0, dtype=torch.int64) if accepted is None else accepted.clients
        present = cohort.only(torch.isin(cohort.clients, clients.to(server.model.device)))
        if accepted is not None and accepted.memories is not None:
            server = artemis.remember(server, present, accepted.memories)
        step, noise = setup.step_of(t), setup.stream(Purpose.DOWNLINK, t)
        uploads = None if accepted is None else accepted.uploads
        try:
            server, update = artemis.absorb(setup.method, server, uploads, present, step, noise)
            if not bool(torch.isfinite(server.model).all()):
                raise DivergedError(f"the model is not finite with server.step = {step:.4g}; use a smaller step")
        except DivergedError as error:
            raise DivergedError(f"round {t}: {error}") from None
        if accepted is not None:
            self._commit(accepted)
        self.state.server = server
        assert update is not None, "check() refuses messages to each client"
        (message,) = coding.encode(update)
        self.state.updates.add(len(message))
        self._keep(message)
        self.traffic.enter(self.ledger, t)
        return Verdict(clients, tuple(rejections))

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds, for a checkpoint; the ledger is not in it."""
        messages = torch.from_numpy(np.frombuffer(b"".join(self.backlog), dtype=np.uint8).copy())
        return to_tensors(self.state) | {"backlog": messages, "asked": torch.tensor(sorted(self.asked)).long()}

    def restore(self, round: int, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``tensors`` after ``round`` rounds. Raises ValueError when they do not fit the experiment."""
        self.state = from_tensors(self.setup, round, tensors, server_state(self.setup))
        self.asked, self.traffic = set(tensors["asked"].tolist()), Traffic()
        self.backlog, rest = deque(), tensors["backlog"].numpy().tobytes()
        for length in reversed(self.state.updates.tensor()[0].diff().tolist()):
            if not rest:
                break
            self.backlog.appendleft(rest[len(rest) - length :])
            rest = rest[: len(rest) - length]

    def _commit(self, accepted: Accepted) -> None:
        """What the taken replies change at their links."""
        store, ids = self.state.store, accepted.clients
        if store.memory is not None:
            before = store.memory.take(ids) if accepted.memories is None else accepted.memories
            store.memory.put(ids, before + self.setup.method.alpha * accepted.rows)
        # Only what a client replied to is known to have arrived.
        store.seen[ids.numpy()] = self.round
        up, shared = self.setup.method.uplink.compressor.formula_bits(self.setup.task.dim)
        formula = {Kind.UPLOAD: up + shared / len(ids), Kind.MEMORY: 32.0 * self.setup.task.dim}
        for one in accepted.taken:
            store.set_end(one.client, one.end)
            for frame in one.frames:
                self.traffic.count(Direction.UP, frame, formula[frame.kind])

    def _missed(self, client: int) -> list[bytes] | None:
        """The updates that a client lacks; None where the whole model is shorter, or it has none yet."""
        seen = int(self.state.store.seen[client])
        missed = self.round - seen
        if seen == NEVER or missed > len(self.backlog):
            return None
        return list(self.backlog)[len(self.backlog) - missed :]

    def _keep(self, message: bytes) -> None:
        """Forget the updates that would now take more bytes than the model."""
        self.backlog.append(message)
        framed, totals = coding.longest(whole(self.setup)), self.state.updates.totals[1]
        while self.backlog and totals[self.round] - totals[self.round - len(self.backlog)] > framed:
            self.backlog.popleft()

    def _model(self, client: int) -> bytes:
        return self._send(Kind.MODEL, client, self._exact(self.model[None]))

    def _exact(self, row: Tensor) -> bytes:
        (message,) = coding.encode(Values(whole(self.setup), row))
        return message

    def _updates(self, client: int, messages: list[bytes]) -> bytes:
        return self._send(Kind.UPDATES, client, pack_messages(messages), messages)

    def _send(self, kind: Kind, client: int, body: bytes, messages: Sequence[bytes] | None = None) -> bytes:
        end = self.state.store.end(client)
        frame = Frame(kind, self.setup.run, self.round, client, end.epoch, end.digest, body)
        if messages is None:
            self.traffic.count(Direction.DOWN, frame, 32.0 * self.setup.task.dim)
        else:
            each, shared = self.setup.method.downlink.compressor.formula_bits(self.setup.task.dim)
            formula = len(messages) * (each + shared / self.setup.clients)
            self.traffic.count(Direction.DOWN, frame, formula, len(messages), sum(map(len, messages)))
        return encode_frame(frame)

    def _held(self, clients: Tensor) -> Tensor | None:
        """The clients' memory rows, float[n, d]."""
        memories, rows = self.state.server.memories, self.state.store.memory
        if memories is not None:
            return memories[clients.to(memories.device)]
        return None if rows is None else rows.take(clients)
