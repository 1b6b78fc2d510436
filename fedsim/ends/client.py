"""A client's end: it hears the server's frames and answers with its own. See ``fedsim.ends`` for the round.

What an upload leads to, memory row, error row and solver notes (counters of passes, momenta), becomes valid together,
when the server's next frame says that the upload was absorbed. A client whose upload was lost is therefore exactly one
that was absent: a counter that ran on while its memory row rolled back would name a pass that the server never saw.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients
from fedsim.compression import Compressor, Identity, Layout
from fedsim.ends.part import check, part_of, whole
from fedsim.ends.store import NEVER, Held, Keep, Standing
from fedsim.errors import CheckpointError, WireError
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

        A damaged store counts as an empty one. Raises ConfigError for what cannot be deployed.
        """
        check(setup.experiment)
        self.number = number
        self.setup = part_of(setup, number)
        self.store = store
        self.parted, self.round, self.damage = False, NEVER, ""
        self.model, self.seen = setup.weights.new_empty(0), NEVER
        self.sender = Sender(End(), self._afresh(None))
        try:
            standing = None if store is None else store.load(setup.weights.device)
        except CheckpointError as error:
            standing, self.damage = None, str(error)
        if standing is not None and not self._fits(standing):
            standing, self.damage = None, f"the kept state of client {number} is not one of this model"
        if standing is not None:
            self.model, self.seen, self.sender = standing.model, standing.seen, standing.sender

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
                self.store.save(Standing(self.model, self.seen, base))  # the memory follows alone
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
        self.sender = replace(base, pending=(end.after(message), Held(rows, solution.memories[0])))
        if self.store is not None:
            self.store.save(Standing(self.model, self.seen, self.sender))
        return frames

    def _replay(self, frame: Frame) -> None:
        """Apply the updates since the model that is held; the server may send more, as it trusts only what it got."""
        compressor, missed = self.setup.method.downlink.compressor, frame.round - self.seen
        layout = compressor.layout(self.setup.task.dim)
        messages = unpack_messages(frame.body, coding.bounds(layout), frame.round)
        if self.parted or self.seen == NEVER or not 0 <= missed <= len(messages):
            self.parted = True
            return
        for k, message in enumerate(messages[len(messages) - missed :], start=self.seen):
            update = _update(message, compressor, layout, self.model.dtype).to(self.model.device)
            self.model = artemis.apply(self.model, update, self.setup.step_of(k))
        self.seen = frame.round

    def _fits(self, standing: Standing) -> bool:
        """Whether its rows are as long as this model, and of its type."""
        new, rows = self.setup.weights.new_empty(self.setup.task.dim), self.sender.state.rows
        pairs: list[tuple[Tensor | None, Tensor | None]] = [(standing.model, new)]
        for held in (standing.sender.state, *(state for _, state in filter(None, [standing.sender.pending]))):
            pairs += [(held.rows.memory, rows.memory), (held.rows.error, rows.error)]
        return all(_form(one) == _form(other) for one, other in pairs)

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
        return Held(rows, Memory())

    def _row(self, frame: Frame) -> Tensor:
        """A whole row, float[d]."""
        layout = whole(self.setup)
        row = Identity("float64" if layout.dtype == torch.float64 else "float32").decompress(
            coding.decode([frame.body], layout), layout.dtype
        )
        return row[0].to(self.setup.weights.device)

    def _frame(self, kind: Kind, base: End, body: bytes) -> bytes:
        return encode_frame(Frame(kind, self.setup.run, self.round, self.number, base.epoch, base.digest, body))


def _form(row: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    return None if row is None else (row.shape, row.dtype)


@lru_cache(maxsize=4)
def _update(message: bytes, compressor: Compressor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """One update, float[d]. The clients of a machine replay the same ones."""
    return compressor.decompress(coding.decode([message], layout), dtype)[0]
