"""A client's end: it hears the server's frames and answers with its own. See ``fedsim.ends`` for the round.

What an upload leads to, memory row, error row and solver notes (counters of passes, momenta), becomes valid together,
when the server's next frame says that the upload was absorbed. A client whose upload was lost is therefore exactly one
that was absent: a counter that ran on while its memory row rolled back would name a pass that the server never saw.
So does the model at which the upload was made, and updates are replayed onto the model of the last absorbed upload, as
the server counts them. A later one, of an upload that was lost, may be of rounds that a server that came back to an
older checkpoint has played again in another way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients
from fedsim.algorithms.downlink import apply
from fedsim.compression import Compressor, Identity, Layout
from fedsim.ends.part import check, part_of, whole
from fedsim.ends.store import NEVER, Held, Keep, Standing
from fedsim.errors import CheckpointError, DataError, WireError
from fedsim.randomness import Purpose
from fedsim.simulation.setup import Setup
from fedsim.solvers import solve
from fedsim.solvers.memory import Memory
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame, unpack_messages
from fedsim.wire.link import End, PartedError, Sender


class ClientEnd:
    """One client. parted: its state is not the one that the server speaks of. damage: why its folder was unreadable."""

    def __init__(self, setup: Setup, number: int, store: Keep | None = None) -> None:
        """setup: of the whole experiment; number: of the client; store: of what it must still know when it comes back.

        A damaged store counts as an empty one. Raises ConfigError for what cannot be deployed, DataError where the
        client's data is not here, or not what the store speaks of.
        """
        check(setup.experiment)
        self.number = number
        self.setup = part_of(setup, number)
        self.store, self.data = store, self.setup.federation.digest()
        self.parted, self.round, self.damage = False, NEVER, ""
        self.model, self.seen = setup.weights.new_empty(0), NEVER
        self.sender = Sender(End(), self._afresh(None))
        try:
            standing = None if store is None else store.load(setup.weights.device)
            if standing is not None:
                self._check(standing)
        except CheckpointError as error:
            standing, self.damage = None, str(error)
        if standing is not None:
            if standing.data != self.data:
                raise DataError(f"client {number}'s data is not what it began this run with; put it back, or run anew")
            self.model, self.seen, self.sender = standing.model, standing.seen, standing.sender

    def _check(self, standing: Standing) -> None:
        """Raise CheckpointError for rows that are not of this experiment."""
        sender, blank = standing.sender, self.sender.state.rows
        states = [sender.state, *([] if sender.pending is None else [sender.pending[1]])]
        like = self.setup.weights.new_zeros((1, self.setup.task.dim))
        rows = [
            (standing.model, like[0]),
            *((state.model, like[0]) for state in states if state.seen != NEVER),
            *((state.rows.memory, None if blank.memory is None else like) for state in states),
            *((state.rows.error, None if blank.error is None else like) for state in states),
        ]
        for found, expected in rows:
            if _kind(found) != _kind(expected):
                raise CheckpointError(f"client {self.number}: a row {_kind(found)}, expected {_kind(expected)}")

    def hear(self, data: bytes) -> None:
        """A frame of the server. Raises WireError for bytes that are not one, or not for this client and run."""
        limit = coding.longest(whole(self.setup))
        frame = decode_frame(data, limit)
        if (frame.run, frame.client) != (self.setup.run, self.number):
            raise WireError(
                f"frame for client {frame.client} of run {frame.run.hex()}, but this is client {self.number} of run "
                f"{self.setup.run.hex()}; start all ends from the same experiment"
            )
        self.round, server = frame.round, End(frame.epoch, frame.digest)
        if frame.kind is Kind.MEMORY:
            # The model may have come in a call before this one, to another process.
            self.parted = self.parted or not self._agrees(server)
            if self.parted and self.seen == frame.round:
                self._refresh(server, self._row(frame)[None])
            return
        try:
            # To a server that has absorbed nothing of it, a client is new, whatever it kept of an earlier run.
            new = server == End() != self.sender.end
            self.sender, self.parted = Sender(server, self._afresh(None)) if new else self.sender.settle(server), False
        except PartedError:
            self.parted = True
        if frame.kind is Kind.MODEL:
            self.model, self.seen = self._row(frame), frame.round
            if self.parted and not self.setup.experiment.uplink.memory:
                self._refresh(server, None)  # nothing at the server depends on what was lost
        elif frame.kind is Kind.UPDATES:
            self._replay(frame)
        else:
            raise WireError(f"a client has no use for a {frame.kind.name} frame; run the same fedsim on both sides")

    def answer(self) -> list[bytes]:
        """The frames of this round's reply. On disk when they are returned: the state that they lead to.

        An UPLOAD, in the first round perhaps after the MEMORY that it starts from; a REFRESH when the ends have parted,
        or when no model has come.
        Raises OSError when the disk refuses; then nothing may leave.
        """
        base, t = self.sender, self.seen
        if self.parted or self.seen == NEVER:
            if self.store is not None and self.seen != NEVER:
                self.store.save(Standing(self.model, self.seen, base, self.data))  # the memory follows alone
            return [self._frame(Kind.REFRESH, base.end, b"")]
        setup, ids, noise = self.setup, torch.tensor([self.number]), self.setup.stream(Purpose.UPLINK, t)
        solution = solve(
            setup.task,
            setup.federation,
            self.model[None],
            ids,
            setup.plan,
            setup.stream(Purpose.BATCH, t),
            {self.number: base.state.solver},
        )
        direction, rows, end, frames = solution.direction, base.state.rows, base.end, []
        if t == 0 and setup.experiment.uplink.initial == "gradient":
            exact = Identity("float64" if direction.dtype == torch.float64 else "float32")
            (message,) = coding.encode(exact.compress(direction, noise, ids))
            frames.append(self._frame(Kind.MEMORY, end, message))
            rows, end = Clients(direction, rows.error), end.after(message)
        payload, rows = artemis.upload(setup.method, rows, direction, ids, setup.step_of(t), noise)
        (message,) = coding.encode(payload)
        frames.append(self._frame(Kind.UPLOAD, end, message))
        # Both messages are one step of the link: the server absorbs both or none.
        self.sender = replace(base, pending=(end.after(message), Held(rows, solution.memories[0], self.model, t)))
        if self.store is not None:
            self.store.save(Standing(self.model, self.seen, self.sender, self.data))
        return frames

    def _replay(self, frame: Frame) -> None:
        """Apply the updates since the model of the last absorbed upload."""
        compressor, held = self.setup.method.downlink.compressor, self.sender.state
        layout = compressor.layout(self.setup.task.dim)
        messages = unpack_messages(frame.body, coding.bounds(layout), frame.round)
        if self.parted or held.seen == NEVER or held.seen + len(messages) != frame.round:
            self.parted = True
            return
        model = held.model
        for k, message in enumerate(messages, start=held.seen):
            update = _update(message, compressor, layout, model.dtype).to(model.device)
            model = apply(model, update, self.setup.step_of(k))
        self.model, self.seen = model, frame.round

    def _agrees(self, server: End) -> bool:
        """Whether this state, or the pending one, is the one that the server speaks of."""
        try:
            self.sender.settle(server)
        except PartedError:
            return False
        return True

    def _refresh(self, server: End, memory: Tensor | None) -> None:
        self.sender, self.parted = self.sender.refresh(server, self._afresh(memory)), False

    def _afresh(self, memory: Tensor | None) -> Held:
        """The state of a new client, or of one that was refreshed. memory: float[1, d]."""
        uplink, zeros = self.setup.experiment.uplink, self.setup.weights.new_zeros((1, self.setup.task.dim))
        rows = Clients(
            (zeros if memory is None else memory) if uplink.memory else None, zeros if uplink.feedback else None
        )
        return Held(rows, Memory(), self.setup.weights.new_empty(0))

    def _row(self, frame: Frame) -> Tensor:
        """A whole row, float[d]."""
        layout = whole(self.setup)
        row = Identity("float64" if layout.dtype == torch.float64 else "float32").decompress(
            coding.decode([frame.body], layout), layout.dtype
        )
        return row[0].to(self.setup.weights.device)

    def _frame(self, kind: Kind, base: End, body: bytes) -> bytes:
        return encode_frame(Frame(kind, self.setup.run, self.round, self.number, base.epoch, base.digest, body))


def _kind(row: Tensor | None) -> object:
    return None if row is None else (tuple(row.shape), row.dtype)


@lru_cache(maxsize=4)
def _update(message: bytes, compressor: Compressor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """One update, float[d]. The clients of a machine replay the same ones."""
    return compressor.decompress(coding.decode([message], layout), dtype)[0]
