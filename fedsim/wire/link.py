"""One uplink, two ends: a lost, repeated or late message never leaves client and server with different memories.

Both ends keep (epoch, digest): how many messages were absorbed, and a running hash over them. Equal ends have absorbed
the same messages in the same order, hence hold the same memory row, without either having to send it or hash it.

    client  send      state stays, the new state is pending on top of it
            settle    the server's end, which heads every downlink frame, says what became of the pending message:
                      equal to the pending end: keep the new state;  equal to the old end: it was lost, roll back;
                      anything else: the ends have parted and the memory must be refreshed
    server  receive   a message built on its own end is absorbed; one built on an earlier end is a repetition or too
                      late and changes nothing; anything else comes from a client that has parted

The idea of a context that both ends can check and refresh is that of header compression (ROHC, RFC 5795).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, TypeVar

from fedsim.wire.frame import GENESIS, chain

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class End:
    """epoch: messages absorbed; digest: 8 bytes over all of them."""

    epoch: int = 0
    digest: bytes = GENESIS

    def after(self, message: bytes) -> End:
        """This end once it has absorbed ``message``."""
        return End(self.epoch + 1, chain(self.digest, message))


class Reception(Enum):
    """What a server does with a message: ACCEPT it, ignore a STALE one, or refresh a PARTED client."""

    ACCEPT = "accept"
    STALE = "stale"
    PARTED = "parted"


def receive(end: End, base: End) -> Reception:
    """Judge a message that was built on ``base``. The server's new end is ``end.after(message)`` if it is accepted."""
    if base == end:
        return Reception.ACCEPT
    return Reception.STALE if base.epoch < end.epoch else Reception.PARTED


class PartedError(Exception):
    """The two ends have absorbed different messages; the caller refreshes the memory."""


@dataclass(frozen=True, slots=True)
class Sender(Generic[State]):
    """The client's end and its state (memory and error rows), with at most one pending successor."""

    end: End
    state: State
    pending: tuple[End, State] | None = None

    def send(self, message: bytes, state: State) -> Sender[State]:
        """``message`` leaves; ``state`` holds once the server has it. An older pending message is given up."""
        return replace(self, pending=(self.end.after(message), state))

    def settle(self, server: End) -> Sender[State]:
        """Keep or roll back the pending message. Raises PartedError when ``server`` is neither end."""
        if self.pending is not None and self.pending[0] == server:
            return Sender(*self.pending)
        if self.end == server:
            return Sender(self.end, self.state)
        raise PartedError(
            f"the client is at epoch {self.end.epoch}, the server at epoch {server.epoch}; refresh the memory"
        )

    def refresh(self, server: End, state: State) -> Sender[State]:
        """Take over the server's end together with the state that it sent in full."""
        return Sender(server, state)
