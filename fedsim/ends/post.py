"""What carries frames between a server and the machines of its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsim.ends.answer import Answer
from fedsim.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one machine answered to a call of ``round``. clients: those it was called for."""

    round: int
    clients: frozenset[int]
    answer: Answer


ENVELOPES = ("round", "direction", "node", "clients", "frames", "frame_bytes", "message_bytes")
"""Columns of messages.csv."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of the transport and what it came to, for messages.csv.

    up: from the clients; node: the machine; frames, frame_bytes: in it; message_bytes: all that the transport made.
    """

    round: int
    up: bool
    node: int
    clients: int
    frames: int
    frame_bytes: int
    message_bytes: int

    def line(self) -> str:
        """Of messages.csv."""
        way = "up" if self.up else "down"
        figures = (self.node, self.clients, self.frames, self.frame_bytes, self.message_bytes)
        return f"{self.round},{way},{','.join(map(str, figures))}\n"


class Post(Protocol):
    """Of one run."""

    def open(self, experiment: Experiment, clients: int) -> None:
        """Wait until every client can be called, deploy.start_s at most. experiment: which all machines need.

        Raises DeployError naming the clients without a machine, and what the machines have to say.
        """
        ...

    def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
        """Bring each client its frames. May be called again in a round; never waits for an answer."""
        ...

    def collect(self, seconds: float) -> list[Parcel]:
        """What has arrived since the last time, of whatever round; waits at most so long for the first."""
        ...

    def envelopes(self) -> list[Envelope]:
        """The messages since the last time."""
        ...
