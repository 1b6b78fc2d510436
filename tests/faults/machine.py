"""One schedule of a federation in which everything but the product goes wrong: the network, both ends, their disks.

The ends are the real ones: ``Service`` (its waiting and healing), ``ServerEnd``, hosts with their clients, the clients'
stores, the server's checkpoints. Between them is a network that this module draws, one event after another: any message
may be lost, doubled, delayed, overtaken, damaged or put into a later envelope; any process may be killed, any client's
folder wiped or replaced by an old copy, the newest checkpoint damaged. A schedule is a function of a ``random.Random``,
so that hypothesis can shrink it and a seed can name it.

Asserted throughout:
    equal ends       wherever a client's end, committed or pending, is the server's (or that of a checkpoint), so is its
                     memory row, bit for bit
    one history      what the server absorbs of a client was built on the row and at the model that the server has; of
                     a replayed answer to a server process that is dead, which no post delivers, only the row is certain
    nothing else     replies that are not taken leave every tensor of the server as if they had not arrived; all frames
                     that were ever absorbed, offered once more, change nothing
    healed           one quiet round later everyone was taken, and both ends of every link are equal
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from fedsim.algorithms.artemis import Cohort
from fedsim.checkpoint import SLOTS
from fedsim.ends.answer import Answer
from fedsim.ends.client import ClientEnd
from fedsim.ends.guard import Reply
from fedsim.ends.host import Host, alone
from fedsim.ends.post import Envelope, Parcel
from fedsim.ends.serve import Service
from fedsim.ends.server import ServerEnd, Verdict
from fedsim.ends.store import Drawer, Keep, Store
from fedsim.errors import DeployError, WireError
from fedsim.experiment import Experiment
from fedsim.ledger import Ledger
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.setup import Setup
from fedsim.wire.link import End

CLIENTS = 2
EVENTS = 24
"""Of a schedule, at most; then its network is honest."""
ROUNDS = 5
"""A schedule ends with so many, and a quiet one."""

BASE: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": CLIENTS, "per_client": 4, "features": 11},
    "rounds": 100,
    "seed": 3,
}
LOCAL = {"local": {"steps": 2, "batch": 2, "step": 0.01}, "server": {"step": 0.02}}
TABLES: dict[str, dict[str, Any]] = {
    "artemis": {},
    "a quorum of one": {"deploy": {"min_replies": 1}},
    "from the first gradient": {"uplink": {"initial": "gradient"}},
    "momentum, feedback": {"uplink": {"feedback": "step"}, "direction": {"kind": "momentum"}, **LOCAL},
    "pp1": {"server": {"memory": "pp1"}},
}
CHANCES = {
    "a call arrives": 12,
    "a call is lost": 2,
    "a call is doubled": 2,
    "a call is damaged": 1,
    "an answer arrives": 12,
    "an answer is lost": 2,
    "an answer is doubled": 2,
    "an answer is damaged": 1,
    "an answer in a later envelope": 1,
    "a dead answer is replayed": 1,
    "time passes": 2,
    "a client is killed": 2,
    "a folder is wiped": 1,
    "a folder is copied": 2,
    "an old copy is put back": 2,
    "the server is killed": 1,
}
"""Weights of the events; one that is impossible gives way to those that are possible."""


DEAD = -1
"""The round of a call from a server process that is dead: it may arrive, but a post knows its answers no more."""


class KilledError(Exception):
    """The server, where it waited for answers."""


@cache
def prepared(name: str) -> tuple[Setup, str]:
    """An experiment for the server's end, and its text for the hosts."""
    experiment = Experiment.of(**{**BASE, **TABLES[name]})
    return alone(experiment), experiment.toml()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def row_of(server: ServerEnd, client: int) -> bytes:
    row = server._held(torch.tensor([client]))
    return b"" if row is None else row.numpy().tobytes()


@dataclass(frozen=True)
class Made:
    """What a client's reply was built on: its memory row, and the model."""

    row: bytes
    model: bytes


@dataclass
class Watched(ServerEnd):
    """A server whose every absorption is checked. made: the true replies, by their frames."""

    made: Mapping[tuple[int, tuple[bytes, ...]], Made] = field(default_factory=dict)
    replayed: set[Reply] = field(default_factory=set)
    absorbed: list[Reply] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def absorb(self, replies: Iterable[Reply], cohort: Cohort) -> Verdict:
        replies = [(client, tuple(frames)) for client, frames in replies]
        before, rows = self.copy(), {i: row_of(self, i) for i in range(CLIENTS)}
        verdict = super().absorb(replies, cohort)
        taken = verdict.clients.tolist()
        for client, frames in replies:
            if client in taken:
                made, model = self.made[client, frames], before.model.numpy().tobytes()
                assert made.row == rows[client]
                assert made.model == model or (client, frames) in self.replayed
                assert (client, frames) not in self.absorbed
                self.absorbed.append((client, frames))
        for client in set(range(CLIENTS)) - set(taken):
            assert self.state.store.end(client) == before.state.store.end(client)
            assert row_of(self, client) == rows[client]
        if len(taken) < len(replies):
            self.counts["frames refused"] += len(replies) - len(taken)
            before.absorb([reply for reply in replies if reply[0] in taken], cohort)
            before.asked = set(self.asked)
            assert same(before.tensors(), self.tensors())
        return verdict

    def copy(self) -> ServerEnd:
        """Another server in the same state."""
        other = ServerEnd(self.setup)
        other.restore(self.round, {name: tensor.clone() for name, tensor in self.tensors().items()})
        other.traffic.sent = list(self.traffic.sent)
        return other


class Disks:
    """Of the server: its last two checkpoints, in memory, or on disk in a run's folder."""

    def __init__(self, setup: Setup, folder: Path | None) -> None:
        self.setup, self.folder = setup, folder
        self.kept: list[tuple[int, dict[str, Tensor], list[Reply]]] = []
        self.place = None if folder is None else RunFolder(folder)
        if self.place is not None:
            self.place.path.mkdir()
            self.place.restore()

    def save(self, server: Watched) -> None:
        tensors = {name: tensor.clone() for name, tensor in server.tensors().items()}
        self.kept = [*self.kept[-1:], (server.round, tensors, list(server.absorbed))]
        if self.place is not None:
            self.place.checkpoint(server.round, tensors, {})

    def load(self, server: Watched, damaged: bool) -> None:
        """What a new process goes on from. damaged: the newest checkpoint is."""
        if damaged and len(self.kept) > 1:
            self.kept.pop()
            if self.place is not None:
                newest = self.place.path / "checkpoint" / SLOTS[(self.place.turn - 1) % 2]
                newest.write_bytes(newest.read_bytes()[:-1])
        round, tensors, absorbed = self.kept[-1]
        server.absorbed = list(absorbed)
        if self.folder is not None:
            self.place = RunFolder(self.folder)
            found = self.place.restore()
            assert found is not None
            assert found.round == round
            assert same(found.tensors, tensors)
            tensors = dict(found.tensors)
        server.restore(round, {name: tensor.clone() for name, tensor in tensors.items()})


@dataclass
class Network:
    """A post, its hosts and their disks. draw: of all that happens; folder: of the clients, None: in memory."""

    setup: Setup
    text: str
    draw: random.Random
    folder: Path | None
    events: int = EVENTS
    calls: list[tuple[int, int, tuple[bytes, ...]]] = field(default_factory=list)
    answers: list[Parcel] = field(default_factory=list)
    dead: list[Parcel] = field(default_factory=list)
    replayed: set[Reply] = field(default_factory=set)
    made: dict[tuple[int, tuple[bytes, ...]], Made] = field(default_factory=dict)
    drawers: dict[int, dict[str, bytes]] = field(default_factory=lambda: {i: {} for i in range(CLIENTS)})
    copies: dict[int, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    now: float = 0.0
    check: Callable[[], None] = field(init=False)
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.hosts = [self.host(i) for i in range(CLIENTS)]

    def host(self, client: int) -> Host:
        def keep(run: bytes, number: int) -> Keep:
            if self.folder is None:
                return Drawer(self.drawers[client], run, number)
            return Store(self.folder / str(client), run, number)

        return Host(keep)

    def end(self, client: int) -> ClientEnd:
        """Of the process that runs, or of one that would be started now."""
        return self.hosts[client].ends.get(client) or ClientEnd(
            self.setup, client, self.hosts[client].keep(self.setup.run, client)
        )

    # What a service asks for.

    def open(self, experiment: Experiment, clients: int) -> None:
        pass

    def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
        self.calls += [(round, client, tuple(frames)) for client, frames in calls.items()]

    def envelopes(self) -> list[Envelope]:
        return []

    def collect(self, seconds: float) -> list[Parcel]:
        """Events, until there is an answer or time is over."""
        while self.events:
            self.events -= 1
            name = self.draw.choices(list(CHANCES), list(CHANCES.values()))[0]
            if not {"call": self.calls, "answer": self.answers, "dead": self.dead}.get(name.split()[1], [None]):
                continue
            self.counts[name] += 1
            arrived = self.happen(name, seconds)
            if arrived is None:
                self.check()
            if arrived is not None:
                return arrived
        return self.honest(seconds)

    def honest(self, seconds: float) -> list[Parcel]:
        if not self.calls and not self.answers:
            self.now += seconds
        while self.calls:
            self.play(*self.calls.pop(0))
        arrived, self.answers = self.answers, []
        return arrived

    def happen(self, name: str, seconds: float) -> list[Parcel] | None:
        """One event; what arrives at the service (nothing: time is over), or None."""
        client = self.draw.randrange(CLIENTS)
        if name == "a dead answer is replayed":
            parcel = self.pick(self.dead, keep=True)
            self.replayed.update(parcel.answer.replies)
            return [replace(parcel, round=self.service.end.round)]
        if " call " in name:
            call = self.pick(self.calls, keep=name == "a call is doubled")
            if name == "a call is damaged":
                self.play(*call[:2], self.damaged(call[2]))
            elif name != "a call is lost":
                self.play(*call)
        elif " answer " in name:
            parcel = self.pick(self.answers, keep=name == "an answer is doubled")
            if name == "an answer is lost":
                return None
            if name == "an answer is damaged":
                replies = tuple((i, self.damaged(frames)) for i, frames in parcel.answer.replies)
                parcel = replace(parcel, answer=Answer(replies))
            elif name == "an answer in a later envelope":
                parcel = replace(parcel, round=self.service.end.round)
            return [parcel]
        elif name == "time passes":
            self.now += min(seconds, self.setup.experiment.deploy.deadline_s)
            return []
        elif name == "the server is killed":
            raise KilledError
        elif name == "a folder is copied":
            self.copies[client] = self.copied(client)
        else:
            self.hosts[client] = self.host(client)
            if name == "a folder is wiped":
                self.put(client, None)
            elif name == "an old copy is put back":
                self.put(client, self.copies.get(client))
        return None

    def play(self, round: int, client: int, frames: tuple[bytes, ...]) -> None:
        """A call reaches its machine, which answers."""
        try:
            answer = self.hosts[client].play(self.text, frames)
        except WireError:  # damaged on its way
            return
        for number, reply in answer.replies:
            end = self.hosts[client].ends[number]
            pending = end.sender.pending
            if pending is not None:  # an upload
                row = end.sender.state.rows.memory
                held = b"" if row is None else row.numpy().tobytes()
                self.made[number, reply] = Made(held, end.model.numpy().tobytes())
        (self.dead if round == DEAD else self.answers).append(Parcel(round, frozenset({client}), answer))

    # What happens to messages and folders.

    def pick(self, messages: list[Any], keep: bool) -> Any:
        at = self.draw.randrange(len(messages))
        return messages[at] if keep else messages.pop(at)

    def damaged(self, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if not frames:
            return frames
        frame = bytearray(frames[-1])
        frame[self.draw.randrange(len(frame))] ^= 1 << self.draw.randrange(8)
        return (*frames[:-1], bytes(frame))

    def copied(self, client: int) -> Any:
        if self.folder is None:
            return dict(self.drawers[client])
        source = self.folder / str(client)
        return {path.relative_to(source): path.read_bytes() for path in source.rglob("*.safetensors")}

    def put(self, client: int, copy: Any) -> None:
        """Replace the folder of a client that is not running. None: by nothing."""
        if self.folder is None:
            self.drawers[client].clear()
            self.drawers[client].update(copy or {})
            return
        place = self.folder / str(client)
        shutil.rmtree(place, ignore_errors=True)
        for path, content in (copy or {}).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)


def schedule(draw: random.Random, name: str, folder: Path | None = None) -> Counter[str]:
    """Play one, and count what happened. folder: an empty one for both ends' disks; None: they are in memory."""
    setup, text = prepared(name)
    network = Network(setup, text, draw, None if folder is None else folder / "clients")
    disks = Disks(setup, None if folder is None else folder / "server")
    counts = network.counts

    def server() -> Watched:
        return Watched(setup, Ledger(has_file=False), made=network.made, replayed=network.replayed, counts=counts)

    def serving(end: Watched) -> Service:
        service = Service(end, network)
        service.clock, service.pause = lambda: network.now, lambda seconds: None
        network.service = service
        return service

    def check() -> None:
        known = {i: (service.end.state.store.end(i), row_of(service.end, i)) for i in range(CLIENTS)}
        for i in range(CLIENTS):
            sender = network.end(i).sender
            for end, held in [(sender.end, sender.state), *([] if sender.pending is None else [sender.pending])]:
                if held.rows.memory is not None and end == known[i][0] != End():
                    counts["ends compared"] += 1
                    assert held.rows.memory.numpy().tobytes() == known[i][1]

    service, network.check = serving(server()), check
    disks.save(service.end)
    while service.end.round < ROUNDS and network.events:
        try:
            service.play()
        except (KilledError, DeployError) as error:
            counts["nobody replied"] += isinstance(error, DeployError)
            network.dead += network.answers
            network.answers = []
            network.calls = [(DEAD, *call[1:]) for call in network.calls]
            end = server()
            damaged = draw.random() < 0.25
            counts["the newest checkpoint is damaged"] += damaged
            disks.load(end, damaged)
            service = serving(end)
        else:
            counts["rounds"] += 1
            disks.save(service.end)
        check()
    network.events = 0
    network.calls, network.answers = [], []
    quiet(service, network)
    again(service.end)
    counts["schedules"] += 1
    return counts


def quiet(service: Service, network: Network) -> None:
    """One round in which nothing happens heals whatever did."""
    all = msgspec.structs.replace(service.setup.experiment.deploy, min_replies=0)
    service.setup = replace(service.setup, experiment=msgspec.structs.replace(service.setup.experiment, deploy=all))
    service.play()
    server = service.end
    assert server.state.store.seen.tolist() == [server.round - 1] * CLIENTS
    for i in range(CLIENTS):
        pending = network.end(i).sender.pending
        assert pending is not None
        end, held = pending
        assert end == server.state.store.end(i)
        assert (b"" if held.rows.memory is None else held.rows.memory.numpy().tobytes()) == row_of(server, i)


def again(server: Watched) -> None:
    """Every frame that was ever absorbed is offered once more."""
    one, other, cohort = server.copy(), server.copy(), server.setup.cohort(server.round)
    one.absorb([], cohort)
    verdict = other.absorb(server.absorbed, cohort)
    server.counts["frames offered again"] += len(server.absorbed)
    assert verdict.clients.tolist() == []
    assert same(one.tensors(), other.tensors())
