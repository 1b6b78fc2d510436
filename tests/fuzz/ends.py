"""Targets behind the wire: what a client hears, what a server is replied, what a client kept, what Flower brings."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import cache, partial
from typing import Any

import msgspec
import torch
from flwr.app import ConfigRecord, RecordDict
from google.protobuf.message import DecodeError

from client import records
from fedsim.ends.answer import Answer
from fedsim.ends.client import ClientEnd
from fedsim.ends.guard import Desk
from fedsim.ends.host import Host, prepared, read
from fedsim.ends.server import ServerEnd
from fedsim.ends.store import Drawer
from fedsim.errors import CheckpointError, ConfigError, DataError, DivergedError, FedsimError, WireError
from fedsim.experiment import Experiment
from fedsim.wire.link import Sender
from fedsim.worker import worker_pb2
from fedsim.worker.protocol import LIMIT, pack, unpack
from tests.fuzz.drive import Case, Target
from tests.fuzz.wire import sealed

CLIENTS = 5
TEXT = Experiment.of(
    data={"source": "synthetic-linear", "clients": CLIENTS, "per_client": 4, "features": 12},
    uplink={"feedback": "step"},
    rounds=8,
).toml()
_SEPARATOR = b"\xf5\xf6"
_FULL = 2**20


def joined(frames: Sequence[bytes]) -> bytes:
    """Frames as one input."""
    return _SEPARATOR.join(frames)


def split(data: bytes) -> list[bytes]:
    """An input as frames, each with the length and checksum that it should have."""
    return [sealed(frame) for frame in data.split(_SEPARATOR)] if data else []


class World:
    """A federation after some rounds: the server, what it calls each client with, and what they reply."""

    def __init__(self, rounds: int) -> None:
        self.setup = prepared(TEXT)
        self.server, self.clients = ServerEnd(self.setup), [ClientEnd(self.setup, i) for i in range(CLIENTS)]
        for t in range(rounds):
            replies = {i: self._reply(i) for i in range(CLIENTS) if t != 1 or i}  # client 0 misses one
            self.server.absorb(replies.items(), self.setup.cohort(t))
        self.server.asked = {CLIENTS - 1}
        self.calls = {i: self.server.call(i) for i in range(CLIENTS)}
        self.before = [copy(client) for client in self.clients]
        self.replies = {}
        for i, frames in self.calls.items():
            for frame in frames:
                self.clients[i].hear(frame)
            self.replies[i] = self.clients[i].answer()

    def _reply(self, i: int) -> list[bytes]:
        for frame in self.server.call(i):
            self.clients[i].hear(frame)
        return self.clients[i].answer()


@cache
def world(rounds: int) -> World:
    """As it is after so many rounds; nobody may change it."""
    return World(rounds)


def _hear(rounds: int, number: int, data: bytes) -> None:
    """A client hears frames, whatever they are, and answers."""
    client = copy(world(rounds).before[number])
    for frame in split(data):
        client.hear(frame)
    for frame in client.answer():
        assert len(frame) <= _FULL


def _client_case(rounds: int, number: int) -> Case:
    there = world(rounds)
    seeds = [joined(frames) for frames in there.calls.values()] + [joined([b for f in there.calls.values() for b in f])]
    seeds += [joined([_to(frame, number) for frame in frames]) for frames in there.calls.values()]
    return Case(seeds, partial(_hear, rounds, number), (FedsimError,), [_SEPARATOR], 600)


def _to(frame: bytes, client: int) -> bytes:
    return sealed(frame[:16] + struct.pack("<I", client) + frame[20:])


def _judge(rounds: int, data: bytes) -> None:
    """Client 0 replies whatever it likes: the others are taken as if it had not."""
    there = world(rounds)
    frames, setup, state = split(data), there.setup, there.server.state
    held: Callable[[torch.Tensor], Any] = there.server._held
    desk = Desk(setup, there.server.round, frozenset(range(CLIENTS)), state.store.end, held)
    honest = [(i, there.replies[i]) for i in range(1, CLIENTS)]
    accepted, rejections = desk.judge([(0, frames), *honest])
    alone, _ = desk.judge(honest)
    assert accepted is not None
    assert alone is not None
    taken = accepted.clients.tolist()
    assert taken[-len(alone.taken) :] == alone.clients.tolist()
    assert torch.equal(accepted.rows[-len(alone.taken) :], alone.rows)
    assert bool(accepted.rows.isfinite().all())
    there.server.wants(0, frames)
    there.server.asked.discard(0)
    there.server.traffic.sent.clear()
    if 0 not in taken:
        (why,) = [one.reason for one in rejections if one.client == 0]
        raise WireError(why)


def _server_case(rounds: int) -> Case:
    there = world(rounds)
    seeds = [joined(there.replies[0]), joined([*there.replies[0], *there.replies[1]])]
    seeds += [joined([_to(frame, 0) for frame in frames]) for frames in there.replies.values()]
    return Case(seeds, partial(_judge, rounds), (WireError,), [_SEPARATOR], 600)


@cache
def _machine(rounds: int) -> tuple[Host, dict[str, bytes]]:
    kept: dict[str, bytes] = {}
    host = Host(lambda run, client: Drawer(kept, run, client))
    if rounds:
        host.play(TEXT, [frame for frames in world(0).calls.values() for frame in frames])
    return host, dict(kept)


def _play(rounds: int, text: str, frames: list[bytes]) -> None:
    """A machine answers; its clients' troubles are of the kinds that are documented."""
    host, kept = _machine(rounds)
    host.ends.clear()
    host.keep = lambda run, client: Drawer(dict(kept), run, client)
    answer = host.play(text, frames)
    for _, why in answer.troubles:
        assert not why.endswith("; see the log there"), why
    message = worker_pb2.Answer.FromString(pack(answer, LIMIT).SerializeToString())
    assert unpack(message) == answer


def _errand(data: bytes) -> None:
    errand = worker_pb2.Errand.FromString(data)
    if errand.experiment == TEXT:
        _play(1, TEXT, [sealed(frame) for frame in errand.frames])
    else:
        read(errand.experiment)


def _errand_case() -> Case:
    frames = [[f for fs in world(rounds).calls.values() for f in fs] for rounds in (0, 1)]
    errands = [worker_pb2.Errand(experiment=TEXT, frames=some) for some in (*frames, [])]
    seeds = [errand.SerializeToString() for errand in errands]
    refusals = (DecodeError, ConfigError, WireError)
    return Case([*seeds, worker_pb2.Errand(frames=frames[0]).SerializeToString()], _errand, refusals, [b"\x12", b"\n"])


def _answer(data: bytes) -> None:
    answer = unpack(worker_pb2.Answer.FromString(data))
    assert unpack(pack(answer, LIMIT)) == answer


def _answer_case() -> Case:
    replies = tuple((i, tuple(frames)) for i, frames in world(1).replies.items())
    answers = [(replies, ()), ((), ((1, "its disk is full"), (2**32 - 1, ""))), ((), ())]
    seeds = [pack(Answer(*one), LIMIT).SerializeToString() for one in answers]
    return Case(seeds, _answer, (DecodeError,), [b"\x12", b"\n"], 1000)


def _drawer(data: bytes) -> None:
    """A client begins from what was kept, hears the model and answers."""
    there = world(1)
    store = Drawer({f"{there.setup.run.hex()}.0": data}, there.setup.run, 0)
    standing = store.load(torch.device("cpu"))
    assert standing is not None
    assert isinstance(standing.sender, Sender)
    client = ClientEnd(there.setup, 0, store)
    for frame in there.calls[0]:
        client.hear(frame)
    with suppress(DivergedError):  # numbers that do not fit together
        client.answer()


def _drawer_case() -> Case:
    deep = msgspec.msgpack.encode({"held": 1}) + b"\x91" * 2000 + b"\xc0"
    seeds = [*_machine(1)[1].values(), b"\x93\x01" + deep, b"\x93\x01\x81\xa4held" + b"\x91" * 2000]
    words = [
        b"model",
        b"held",
        b"pending",
        b"held.memory",
        b"<f4",
        b"|O",
        b"<f8",
        b"\xc0",
        b"\x80",
        b"\xdf\xff\xff\xff\xff",
    ]
    return Case(seeds, _drawer, (CheckpointError, DataError), words)


class UndeliveredError(Exception):
    """No records that Flower itself would deliver."""


def _content(data: bytes) -> RecordDict:
    """Whatever records Flower itself would deliver."""
    try:
        found = msgspec.msgpack.decode(data, type=dict[str, dict[str, Any]])
        return RecordDict({name: ConfigRecord(values) for name, values in found.items()})
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError) as error:
        raise UndeliveredError(" ".join(str(error).split())) from None


def _records(data: bytes) -> None:
    content = _content(data)
    if "answer" in content:
        replies, troubles = records.answer_of(content)
        assert records.answer_of(records.of_answer(replies, troubles)) == (replies, troubles)
    elif "hello" in content:
        hello = records.hello_of(content)
        assert records.hello_of(records.of_hello(hello)) == hello
    else:
        frames = records.call_of(content)
        assert records.call_of(records.of_call(frames)) == frames


def _records_case() -> Case:
    answers = records.of_answer([(3, (b"ab", b"")), (4, ())], [(1, "why not"), (2, "")])
    hello = records.of_hello(records.Hello(0, 3, "0.1.0", ""))
    contents = [answers, hello, records.of_call([b"frame", b"x"]), records.of_call([]), records.of_answer([], [])]
    seeds = [msgspec.msgpack.encode({name: dict(part) for name, part in one.items()}) for one in contents]
    words = [
        msgspec.msgpack.encode(word) for word in ("answer", "hello", "call", "clients", "counts", "frames", "troubles")
    ]
    words += [msgspec.msgpack.encode(word) for word in (*records.KEYS, -1, True, None, 1.5, "7: x", ": ", "١: x")]
    return Case(seeds, _records, (WireError, UndeliveredError), words, 500)


ERRAND = Target("worker's errand", _errand_case, 0.1)
ANSWER = Target("worker's answer", _answer_case, 1)
DRAWER = Target("client's drawer", _drawer_case, 0.2)
TARGETS = [
    Target("client, new", partial(_client_case, 0, 0), 0.1),
    Target("client, known", partial(_client_case, 3, 0), 0.1),
    Target("client, refreshed", partial(_client_case, 3, CLIENTS - 1), 0.1),
    Target("guard", partial(_server_case, 3), 0.1),
    Target("Flower's records", _records_case, 0.5),
    *(ERRAND, ANSWER, DRAWER),
]
