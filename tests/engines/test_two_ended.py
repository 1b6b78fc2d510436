"""A federation of separate objects that exchange nothing but bytes gives the simulator's model and its ledger, exactly.

Each client holds its own samples (copies, so that they lie elsewhere in memory), its own model, its own memory row and
its own end of the link; the server holds none of these. Both call the core with rows of one client. Proved bitwise: the
final model, every client's replayed model, and the bytes by direction and kind, with catch-ups by updates and by model.

When uploads are lost, clients roll back by the end that heads the next downlink frame; then the server's h is still the
weighted mean of the clients' h_i, and training still converges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients, Cohort, Server
from fedsim.compression import Identity, Payload, Values, ValuesLayout
from fedsim.data import Federation
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry
from fedsim.randomness import Purpose
from fedsim.simulation.setup import Setup, prepare
from fedsim.solvers import solve
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame, pack_messages, unpack_messages
from fedsim.wire.link import End, Reception, Sender, receive

UNLIMITED = 2**31


def own_samples(federation: Federation, client: int) -> Federation:
    """A federation in which all other clients have nothing, and this one copies of its samples."""
    shard = federation.shard(client)
    offsets = torch.zeros(federation.clients + 1, dtype=torch.int64)
    offsets[client + 1 :] = len(shard)
    return Federation(shard.features.clone(), shard.targets.clone(), offsets, None, shard.classes, "own")


class Client:
    def __init__(self, setup: Setup, number: int) -> None:
        self.number = number
        self.setup = replace(setup, federation=own_samples(setup.federation, number))
        d, model = setup.task.dim, torch.empty(0)
        zeros = torch.zeros(1, d, dtype=setup.weights.dtype)
        uplink = setup.experiment.uplink
        rows = Clients(zeros if uplink.memory else None, zeros if uplink.feedback else None)
        self.sender = Sender(End(), rows)
        self.model, self.seen = model, -1

    def hear(self, data: bytes) -> None:
        """A downlink frame: the whole model, or the updates since the last one; it is headed by the server's end."""
        frame = decode_frame(data, UNLIMITED)
        assert (frame.run, frame.client) == (self.setup.run, self.number)
        self.sender = self.sender.settle(End(frame.epoch, frame.digest))
        if frame.kind is Kind.MODEL:
            whole = coding.decode([frame.body], ValuesLayout(self.setup.task.dim, self.setup.weights.dtype))
            assert isinstance(whole, Values)
            self.model = whole.values[0]
        else:
            compressor = self.setup.method.downlink.compressor
            layout = compressor.layout(self.setup.task.dim)
            messages = unpack_messages(frame.body, coding.longest(layout), frame.round - self.seen)
            assert len(messages) == frame.round - self.seen
            for k, message in enumerate(messages, start=self.seen):
                update = compressor.decompress(coding.decode([message], layout), self.model.dtype)[0]
                self.model = artemis.apply(self.model, update, self.setup.step_of(k))
        self.seen = frame.round

    def answer(self) -> list[bytes]:
        """The frames of a round: an upload, in the first round perhaps after the memory that it starts from."""
        setup, t, ids = self.setup, self.seen, torch.tensor([self.number])
        noise = setup.stream(Purpose.BATCH, t)
        direction = solve(setup.task, setup.federation, self.model[None], ids, setup.plan, noise).direction
        frames = []
        if t == 0 and setup.experiment.uplink.initial == "gradient":
            exact = Identity("float64" if direction.dtype == torch.float64 else "float32")
            payload = exact.compress(direction, setup.stream(Purpose.UPLINK, t), ids)
            frames.append(self.send(Kind.MEMORY, payload, Clients(memory=direction)))
            assert self.sender.pending is not None
            self.sender = self.sender.settle(self.sender.pending[0])  # the upload leaves together with it
        step = setup.step_of(t)
        payload, rows = artemis.upload(
            setup.method, self.sender.state, direction, ids, step, setup.stream(Purpose.UPLINK, t)
        )
        return [*frames, self.send(Kind.UPLOAD, payload, rows)]

    def send(self, kind: Kind, payload: Payload, rows: Clients) -> bytes:
        (message,) = coding.encode(payload)
        base = self.sender.end
        self.sender = self.sender.send(message, rows)
        return encode_frame(Frame(kind, self.setup.run, self.seen, self.number, base.epoch, base.digest, message))


@dataclass
class Central:
    """The server's end of every link. costs: (frames, payload bits, frame bytes) by direction and kind."""

    setup: Setup
    server: Server
    ends: dict[int, End] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    updates: list[bytes] = field(default_factory=list)
    costs: dict[tuple[Direction, Entry], tuple[int, int, int]] = field(default_factory=dict)

    def count(self, way: Direction, kind: Entry, payload: int, frame: bytes) -> None:
        frames, bits, octets = self.costs.get((way, kind), (0, 0, 0))
        self.costs[way, kind] = (frames + 1, bits + 8 * payload, octets + len(frame))

    def call(self, client: int) -> bytes:
        """The frame that brings a client up to date, the shorter of two; the updates when they are equally long."""
        model, t, end = self.server.model, self.server.round, self.ends.setdefault(client, End())
        (whole,) = coding.encode(Values(ValuesLayout(len(model), model.dtype), model[None]))
        missed = self.updates[self.seen[client] :] if client in self.seen else None
        kind, body, payload = Kind.MODEL, whole, len(whole)
        if missed is not None and len(pack_messages(missed)) <= len(whole):
            kind, body, payload = Kind.UPDATES, pack_messages(missed), sum(map(len, missed))
        self.seen[client] = t
        frame = encode_frame(Frame(kind, self.setup.run, t, client, end.epoch, end.digest, body))
        self.count(Direction.DOWN, Entry[kind.name], payload, frame)
        return frame

    def read(self, data: bytes) -> Frame:
        frame = decode_frame(data, UNLIMITED)
        end = self.ends[frame.client]
        assert frame.round == self.server.round
        assert receive(end, End(frame.epoch, frame.digest)) is Reception.ACCEPT
        self.ends[frame.client] = end.after(frame.body)
        self.count(Direction.UP, Entry[frame.kind.name], len(frame.body), data)
        return frame

    def absorb(self, arrived: list[bytes], cohort: Cohort) -> None:
        frames = [self.read(data) for data in arrived]
        memories = [frame.body for frame in frames if frame.kind is Kind.MEMORY]
        uploads = [frame.body for frame in frames if frame.kind is Kind.UPLOAD]
        method, d, t = self.setup.method, self.setup.task.dim, self.server.round
        if memories:
            rows = coding.decode(memories, ValuesLayout(d, self.server.model.dtype))
            assert isinstance(rows, Values)
            self.server = artemis.remember(self.server, cohort, rows.values)
        received = coding.decode(uploads, method.uplink.compressor.layout(d)) if uploads else None
        noise = self.setup.stream(Purpose.DOWNLINK, t)
        self.server, update = artemis.absorb(method, self.server, received, cohort, self.setup.step_of(t), noise)
        self.updates.extend(coding.encode(update))


Loses = Callable[[int, int], bool]


def federate(experiment: Experiment, loses: Loses = lambda round, client: False, arriving: float = 1.0) -> Any:
    """Play it all. loses: whether the upload of a round and client is lost; arriving: the chance that it is not."""
    setup = prepare(experiment)
    central = Central(setup, artemis.begin(setup.method, setup.task.initial(experiment.seed), setup.clients))
    clients = [Client(setup, i) for i in range(setup.clients)]
    for t in range(experiment.rounds):
        cohort, arrived, kept = setup.cohort(t), [], []
        for i in cohort.clients.tolist():
            clients[i].hear(central.call(i))
            assert clients[i].model.numpy().tobytes() == central.server.model.numpy().tobytes()
            frames = clients[i].answer()
            if not loses(t, i):
                arrived += frames
                kept.append(i)
        ids = torch.tensor(kept, dtype=torch.int64)
        central.absorb(arrived, Cohort(ids, setup.weights[ids], cohort.probability * arriving))
    for client in clients:
        if client.number in central.ends:
            client.sender = client.sender.settle(central.ends[client.number])
    return central, clients


DIGITS = {"data": {"source": "digits"}, "partition": {"clients": 12, "alpha": 0.5}}
LINEAR = {"data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 5}}
HALF = {"scheme": "bernoulli", "p": 0.5}
FEDERATIONS: dict[str, dict[str, Any]] = {
    "artemis": {**DIGITS, "participation": HALF, "local": {"batch": 7, "steps": 2}},
    "artemis, updates of more than 127 bytes": {**DIGITS, "participation": HALF, "downlink": {"levels": 100}},
    "artemis, rare clients": {**LINEAR, "rounds": 60, "participation": {"scheme": "bernoulli", "p": 0.08}},
    "diana": {**DIGITS, "algorithm": "diana", "participation": {"scheme": "k-of-n", "k": 3}},
    "bi-qsgd": {
        **DIGITS,
        "algorithm": "bi-qsgd",
        "participation": HALF,
        "server": {"schedule": "inverse-sqrt", "step": "4/L"},
    },
    "artemis from the first gradient": {**LINEAR, "uplink": {"initial": "gradient"}},
    "artemis from the first gradient, float64, pp1": {
        **LINEAR,
        "uplink": {"initial": "gradient"},
        "server": {"memory": "pp1", "average": True},
        "run": {"precision": "float64"},
    },
    "double-squeeze": {**LINEAR, "algorithm": "double-squeeze", "participation": HALF},
    "dore, float64": {**DIGITS, "algorithm": "dore", "participation": HALF, "run": {"precision": "float64"}},
    "fedavg": {**DIGITS, "algorithm": "fedavg", "participation": HALF, "local": {"batch": 5}},
    "sgd-mem": {**LINEAR, "algorithm": "sgd-mem", "participation": {"scheme": "k-of-n", "k": 3}},
    "a network": {
        **DIGITS,
        "participation": HALF,
        "task": {"kind": "mlp", "hidden": [6]},
        "server": {"step": 0.1},
        "local": {"batch": 10},
        "rounds": 6,
    },
}


@pytest.mark.parametrize("name", FEDERATIONS)
@pytest.mark.parametrize("wire", ["counted", "real"])
def test_the_same_model_and_the_same_bytes(name: str, wire: str) -> None:
    tables = {"rounds": 10, "seed": 5, **FEDERATIONS[name]}
    experiment = Experiment.of(**{**tables, "run": {**tables.get("run", {}), "wire": wire}})
    simulated = fedsim.run(experiment)
    central, _ = federate(experiment)
    assert central.server.model.numpy().tobytes() == simulated.model.numpy().tobytes()
    if simulated.average is not None:
        assert central.server.average.numpy().tobytes() == simulated.average.numpy().tobytes()
    assert central.costs == {
        key: (cost.frames, cost.payload_bits, cost.frame_bytes) for key, cost in simulated.ledger.totals.items()
    }


def test_the_federations_catch_up_in_every_way() -> None:
    """A client that comes back gets the model, or several updates; the length before an update has one byte or two."""
    rare, clients = federate(Experiment.of(**{"seed": 5, **FEDERATIONS["artemis, rare clients"]}))
    newcomers = sum(client.seen >= 0 for client in clients)
    assert rare.costs[Direction.DOWN, Entry.MODEL][0] > newcomers
    assert rare.costs[Direction.DOWN, Entry.UPDATES][0] > 0
    assert max(map(len, rare.updates)) < 128
    name = "artemis, updates of more than 127 bytes"
    long, _ = federate(Experiment.of(**{"rounds": 10, "seed": 5, **FEDERATIONS[name]}))
    assert max(map(len, long.updates)) > 127
    assert long.costs[Direction.DOWN, Entry.UPDATES][0] > 0


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_lost_uploads_roll_back(rate: float) -> None:
    """150 rounds at p = 1/2, a share ``rate`` of the uploads lost: h = sum v_i h_i, and F - F* falls by 10^5."""
    experiment = Experiment.of(
        rounds=150, seed=3, **LINEAR, participation=HALF, server={"step": "1/(2L)"}, run={"precision": "float64"}
    )
    lost = np.random.default_rng(1).random((experiment.rounds, 8)) < rate
    losses = []

    def loses(round: int, client: int) -> bool:
        losses.append(bool(lost[round, client]))
        return losses[-1]

    central, clients = federate(experiment, loses, arriving=1 - rate)
    assert (sum(losses) > 100) == (rate > 0)
    setup, mean = central.setup, central.server.memory
    memories = torch.cat([client.sender.state.memory for client in clients])
    assert float((setup.weights @ memories - mean).abs().max()) <= 1e-12 * float(memories.abs().max())
    for client in clients:
        assert client.sender.pending is None
        assert client.sender.end == central.ends[client.number]

    everything = setup.federation.all()
    best = torch.linalg.lstsq(everything.features, everything.targets[:, None]).solution[:, 0]
    start, end, least = (setup.task.loss(w, everything) for w in (0 * best, central.server.model, best))
    assert 0 <= end - least <= 1e-5 * (start - least)
