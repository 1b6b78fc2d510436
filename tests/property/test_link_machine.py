"""One client, one server and a network that loses, repeats, reorders and delays, with crashes between any two steps.

What crosses are frames (bytes), uplink and downlink. Both ends hold a real memory row and absorb the same quantized
messages by h += alpha D. Each run of this test plays 300 random schedules of up to 40 steps (SCHEDULES, STEPS).

Proved for every schedule:
    equal ends have equal rows, bit for bit; a pending end that equals the server's has the server's row
    a message is absorbed only onto the very row it was built on, and once in the history that the server stands on:
    one that is stale, repeated or from a client that has parted changes nothing
    whatever happened, one downlink frame and at most one refresh make client and server equal again
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from fedsim.compression import Quantize
from fedsim.randomness import Purpose, Stream
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame
from fedsim.wire.link import End, PartedError, Reception, Sender, receive

SCHEDULES = 300
STEPS = 40
D = 6
ALPHA = 0.3
RUN = b"linktest"
QUANTIZE = Quantize(2)
LAYOUT = QUANTIZE.layout(D)
Row = NDArray[np.float64]
GENESIS_END = End()


@dataclass(frozen=True)
class ServerDisk:
    """What the server keeps: its end, its row, and (for the proof only) the numbers of the messages absorbed."""

    end: End = GENESIS_END
    row: Row = field(default_factory=lambda: np.zeros(D))
    absorbed: tuple[int, ...] = ()


def absorbed(row: Row, message: bytes) -> Row:
    payload = coding.decode([message], LAYOUT)
    return row + ALPHA * QUANTIZE.decompress(payload, torch.float64)[0].numpy()


class LinkMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.server = ServerDisk()
        self.checkpoints = [self.server]
        self.client = Sender(End(), np.zeros(D))
        self.uplink: list[tuple[int, bytes, bytes]] = []  # number, frame, the row it was built on
        self.downlink: list[bytes] = []
        self.sent = 0

    # --------------------------------------------------------------------------------------------------- the client

    @rule(scale=st.sampled_from([0.0, 1.0, 1e-6, 1e6]), repeat=st.booleans())
    def client_sends(self, scale: float, repeat: bool) -> None:
        """A direction, its row after it, and the frame; ``repeat``: the same direction as the last, so equal bytes."""
        number = self.sent - repeat
        direction = scale * np.random.default_rng(max(number, 0)).standard_normal(D)
        noise = Stream(0, Purpose.UPLINK, max(number, 0))
        payload = QUANTIZE.compress(torch.from_numpy(direction - self.client.state)[None], noise, torch.tensor([0]))
        (message,) = coding.encode(payload)
        base = self.client.end
        self.client = self.client.send(message, absorbed(self.client.state, message))
        frame = Frame(Kind.UPLOAD, RUN, 0, 0, base.epoch, base.digest, message)
        self.uplink.append((self.sent, encode_frame(frame), self.client.state.tobytes()))
        self.sent += 1

    @rule()
    def client_crashes_and_restarts(self) -> None:
        """Its disk holds the committed end and row; the pending ones are gone."""
        self.client = Sender(self.client.end, self.client.state)

    @rule()
    def client_is_wiped(self) -> None:
        self.client = Sender(End(), np.zeros(D))

    # -------------------------------------------------------------------------------------------------- the network

    @precondition(lambda self: self.uplink)
    @rule(data=st.data(), keep=st.booleans())
    def upload_arrives(self, data: st.DataObject, keep: bool) -> None:
        """Any frame under way, in any order; kept, it may arrive again, however late."""
        at = data.draw(st.integers(0, len(self.uplink) - 1), "frame")
        self.receive(*(self.uplink[at] if keep else self.uplink.pop(at)))

    @precondition(lambda self: self.uplink)
    @rule(data=st.data())
    def upload_is_lost(self, data: st.DataObject) -> None:
        del self.uplink[data.draw(st.integers(0, len(self.uplink) - 1), "frame")]

    @rule()
    def server_broadcasts(self) -> None:
        self.downlink.append(self.broadcast())

    @precondition(lambda self: self.downlink)
    @rule(data=st.data(), keep=st.booleans(), refresh=st.booleans())
    def broadcast_arrives(self, data: st.DataObject, keep: bool, refresh: bool) -> None:
        """Any downlink frame, also an old one. A client that has parted asks for a refresh, which may not come."""
        at = data.draw(st.integers(0, len(self.downlink) - 1), "frame")
        frame = decode_frame(self.downlink[at], 0)
        if not keep:
            del self.downlink[at]
        self.settle(End(frame.epoch, frame.digest), refresh)

    @rule(answered=st.booleans())
    def upload_arrives_at_once(self, answered: bool) -> None:
        self.client_sends(scale=1.0, repeat=False)
        self.receive(*self.uplink.pop())
        if answered:
            self.settle(self.server.end, refresh=True)

    # --------------------------------------------------------------------------------------------------- the server

    @rule()
    def server_writes_a_checkpoint(self) -> None:
        self.checkpoints.append(self.server)

    @rule(data=st.data())
    def server_crashes_and_restarts(self, data: st.DataObject) -> None:
        """From one of its last two checkpoints: the newest may be damaged."""
        self.server = data.draw(st.sampled_from(self.checkpoints[-2:]), "checkpoint")

    # -------------------------------------------------------------------------------------------------- what is proved

    def broadcast(self) -> bytes:
        return encode_frame(Frame(Kind.UPDATES, RUN, 0, 0, self.server.end.epoch, self.server.end.digest, b""))

    def receive(self, number: int, sent: bytes, row: bytes) -> None:
        """A frame, the row it was built on, and a number for the proof."""
        before, frame = self.server, decode_frame(sent, coding.longest(LAYOUT))
        base = End(frame.epoch, frame.digest)
        if base.epoch == before.end.epoch and base != before.end:
            event("a message from a fork")
        if receive(before.end, base) is Reception.ACCEPT:
            assert number not in before.absorbed
            assert row == before.row.tobytes()
            after = absorbed(before.row, frame.body)
            self.server = ServerDisk(before.end.after(frame.body), after, (*before.absorbed, number))

    def settle(self, server: End, refresh: bool) -> None:
        candidates = [(self.client.end, self.client.state)]
        candidates += [] if self.client.pending is None else [self.client.pending]
        if any(end.epoch == server.epoch and end != server for end, _ in candidates):
            event("a client on a fork")
        try:
            self.client = self.client.settle(server)
        except PartedError:
            assert all(end != server for end, _ in candidates)
            if refresh:
                self.client = self.client.refresh(self.server.end, self.server.row.copy())
        else:
            assert self.client.pending is None
            assert self.client.end == server

    @rule()
    def quiet(self) -> None:
        """A downlink frame arrives at once, and the refresh that it may call for."""
        self.settle(self.server.end, refresh=True)
        assert self.client.end == self.server.end
        assert self.client.state.tobytes() == self.server.row.tobytes()

    @invariant()
    def equal_ends_have_equal_rows(self) -> None:
        candidates = [(self.client.end, self.client.state)]
        candidates += [] if self.client.pending is None else [self.client.pending]
        for end, row in candidates:
            for disk in (self.server, *self.checkpoints[-2:]):
                if end == disk.end:
                    assert row.tobytes() == disk.row.tobytes()

    @invariant()
    def the_server_stands_on_one_history(self) -> None:
        assert self.server.end.epoch == len(self.server.absorbed) == len(set(self.server.absorbed))


TestLink = LinkMachine.TestCase
TestLink.settings = settings(max_examples=SCHEDULES, stateful_step_count=STEPS, deadline=None)


# ------------------------------------------------------------------------------------------------------------- by hand


def test_accept_stale_parted() -> None:
    start = End()
    first, second = start.after(b"a"), start.after(b"a").after(b"b")
    assert receive(start, start) is Reception.ACCEPT
    assert receive(second, second) is Reception.ACCEPT
    assert receive(second, start) is Reception.STALE
    assert receive(second, first) is Reception.STALE
    assert receive(first, second) is Reception.PARTED
    assert receive(first, start.after(b"b")) is Reception.PARTED
    assert (first.epoch, second.epoch) == (1, 2)
    assert first == End(1, first.digest) != start.after(b"b")
    assert second != start.after(b"b").after(b"b")  # the whole history counts


def test_settle_keeps_or_rolls_back() -> None:
    sender = Sender(End(), "old").send(b"m", "new")
    assert (sender.end, sender.state) == (End(), "old")
    assert sender.settle(End().after(b"m")) == Sender(End().after(b"m"), "new")
    assert sender.settle(End()) == Sender(End(), "old")
    with pytest.raises(PartedError, match="client is at epoch 0, the server at epoch 1; refresh"):
        sender.settle(End().after(b"other"))
    with pytest.raises(PartedError):
        Sender(End().after(b"m"), "new").settle(End())
    with pytest.raises(PartedError):
        Sender(End().after(b"m"), "new").settle(End().after(b"n"))
    assert sender.refresh(End(7, b"12345678"), "sent") == Sender(End(7, b"12345678"), "sent")


def test_the_second_send_gives_the_first_up() -> None:
    twice = Sender(End(), "old").send(b"m", "first").send(b"n", "second")
    assert twice.settle(End().after(b"n")).state == "second"
    with pytest.raises(PartedError):
        twice.settle(End().after(b"m"))
