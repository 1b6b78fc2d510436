"""What a SuperNode and the SuperLink say to each other over a slow link, from its packets: HTTP, question by question.

    exchanges(link, since)      every question and its answer
    messages(found)             those that bring a message, and those that take its reply back, in turn

Only time on the wire counts: from the instant at which the namespace hands over a question's first byte to that at
which its answer's last byte is there, without what the SuperLink thinks in between; and what passes between two
questions, polls that bring nothing, and Flower's bundle of the app are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from tests.flower.slow_link import Link, Packet

FLEET = "/v1/fleet/"


@dataclass
class Exchange:
    """A question on the connection of ``port`` and its answer. Instants of time.time(): start, end; thought: seconds of
    the SuperLink; up, down: bytes of TCP's streams.
    """

    name: str
    port: int
    start: float
    end: float
    asked: float
    thought: float = 0.0
    up: int = 0
    down: int = 0

    @property
    def seconds(self) -> float:
        """On the wire."""
        return self.end - self.start - self.thought


@dataclass
class Message:
    """One way: the exchanges that go before or after its objects, and those that carry them, side by side."""

    serial: list[Exchange] = field(default_factory=list)
    objects: list[Exchange] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """On the wire: of connections side by side the one that takes longest."""
        ports = {one.port for one in self.objects}
        side = [sum(one.seconds for one in self.objects if one.port == port) for port in ports]
        return sum(one.seconds for one in self.serial) + max(side, default=0.0)

    @property
    def each(self) -> list[Exchange]:
        """All of them."""
        return self.serial + self.objects


def exchanges(link: Link, since: tuple[int, int] = (0, 0)) -> list[Exchange]:
    """In the order of their questions. since: packets up and down that are left out."""
    ups, downs = link.up.packets[since[0] :], link.down.packets[since[1] :]
    events: list[tuple[float, bool, Packet]] = [(one.came, True, one) for one in ups if one.data and one.arrived]
    events += [(one.came, False, one) for one in downs if one.data and one.arrived]
    found: list[Exchange] = []
    open: dict[int, Exchange] = {}
    for instant, up, packet in sorted(events, key=itemgetter(0, 1)):
        if up and packet.said.startswith((b"POST ", b"GET ")):
            name = packet.said.split()[1].decode().removeprefix(FLEET)
            open[packet.port] = Exchange(name, packet.port, instant, instant, instant)
            found.append(open[packet.port])
        if (one := open.get(packet.port)) is None:
            continue
        if up:
            one.up, one.asked = one.up + packet.fresh, packet.due
        else:
            if not one.down:
                one.thought = max(0.0, instant - one.asked)
            one.down, one.end = one.down + packet.fresh, packet.due
    return found


def messages(found: Sequence[Exchange]) -> tuple[list[Message], list[Message]]:
    """The messages down, and those up, of one SuperNode. A poll that brings one is followed by questions for it."""
    down: list[Message] = []
    up: list[Message] = []
    poll: Exchange | None = None
    for one in found:
        if one.name == "pull-messages":
            poll = one
        elif poll is not None and one.name in ("get-run", "pull-object"):
            down.append(Message([poll]))
            poll = None
        match one.name:
            case "confirm-message-received":
                down[-1].serial.append(one)
            case "pull-object":
                down[-1].objects.append(one)
            case "push-messages":
                up.append(Message([one]))
            case "push-object":
                up[-1].objects.append(one)
    return down, up
