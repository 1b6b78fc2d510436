"""The two ends of a deployment, which exchange nothing but bytes, give the simulator's model and its ledger, exactly.

Each client holds its own samples (copies, so that they lie elsewhere in memory), its own model, its own memory row and
its own end of the link. Proved bitwise: the final model, every client's replayed model, every client's memory row at
the server, and the lines of the ledger, with catch-ups by updates and by model.

When uploads are lost, clients roll back by the end that heads the next downlink frame; then the run is bitwise the
simulator's run in which those clients were absent, local solvers included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.artemis import Cohort
from fedsim.ends.client import ClientEnd
from fedsim.ends.server import ServerEnd
from fedsim.ends.store import Drawer
from fedsim.errors import ConfigError, WireError
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry, Ledger
from fedsim.simulation.setup import prepare
from fedsim.wire import Kind, decode_frame
from tests.absences import simulated

Loses = Callable[[int, int], bool]


def nothing(round: int, client: int) -> bool:
    return False


def federate(
    experiment: Experiment, loses: Loses = nothing, arriving: float = 1.0, deaf: Loses = nothing
) -> tuple[ServerEnd, list[ClientEnd]]:
    """Play it all. loses, deaf: whether a client's upload, or call, of a round is lost; arriving: 1 - their chance."""
    setup = prepare(experiment)
    server = ServerEnd(setup, ledger=Ledger())
    clients = [ClientEnd(setup, i) for i in range(setup.clients)]
    for t in range(experiment.rounds):
        cohort, replies = setup.cohort(t), []
        for i in reversed(cohort.clients.tolist()):
            (call,) = server.call(i)
            if deaf(t, i):
                continue
            clients[i].hear(call)
            assert clients[i].model.numpy().tobytes() == server.model.numpy().tobytes()
            frames = clients[i].answer()
            if not loses(t, i):
                replies.append((i, frames))
        verdict = server.absorb(replies, Cohort(cohort.clients, cohort.weights, cohort.probability * arriving))
        assert verdict.clients.tolist() == [i for i, _ in reversed(replies)]
        assert verdict.rejections == ()
    for client in clients:
        client.sender = client.sender.settle(server.state.store.end(client.number))
    return server, clients


DIGITS = {"data": {"source": "digits"}, "partition": {"clients": 12, "alpha": 0.5}}
LINEAR = {"data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 5}}
HALF = {"scheme": "bernoulli", "p": 0.5}
WIDE = {"compressor": "identity", "values": "float64"}
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
    "geometric median": {
        **DIGITS,
        "participation": HALF,
        "server": {"memory": "pp1", "weights": "uniform", "aggregate": "geometric-median"},
    },
    "clipped, trimmed mean without memories": {
        **DIGITS,
        "algorithm": "fedavg",
        "participation": {"scheme": "k-of-n", "k": 7},
        "server": {"weights": "uniform", "aggregate": "trimmed-mean", "trim": 0.2, "clip": 2.0},
    },
    "each tensor of a network": {
        **DIGITS,
        "participation": HALF,
        "task": {"kind": "mlp", "hidden": [6]},
        "server": {"step": 0.1},
        "uplink": {"compressor": "per-tensor", "of": {"compressor": "quantize", "levels": 4}},
        "downlink": {"compressor": "per-tensor", "of": {"compressor": "quantize", "levels": 16}},
        "rounds": 6,
    },
    "a network": {
        **DIGITS,
        "participation": HALF,
        "task": {"kind": "mlp", "hidden": [6]},
        "server": {"step": 0.1},
        "local": {"batch": 10},
        "rounds": 6,
    },
    "levels at random places up, a mask down": {
        **DIGITS,
        "participation": HALF,
        "uplink": {"compressor": "rand-k", "fraction": 0.2, "values": {"compressor": "quantize", "levels": 4}},
        "downlink": {"compressor": "bernoulli", "probability": 0.5},
    },
    "blocks of an order up, some places down, float64": {
        **DIGITS,
        "participation": {"scheme": "full"},
        "uplink": {"compressor": "perm-k", "parts": 12},
        "downlink": {
            "compressor": "rand-k",
            "fraction": 0.5,
            "values": {"compressor": "identity", "values": "float64"},
        },
        "run": {"precision": "float64"},
    },
    "the largest up, their signs down, with feedback": {
        **DIGITS,
        "algorithm": "double-squeeze",
        "participation": HALF,
        "uplink": {"compressor": "top-k", "fraction": 0.1},
        "downlink": {"compressor": "stc", "fraction": 0.1},
    },
    "low rank both ways, with feedback": {
        **DIGITS,
        "algorithm": "double-squeeze",
        "participation": {"scheme": "full"},
        "uplink": {"compressor": "low-rank"},
        "downlink": {"compressor": "low-rank", "rank": 3},
    },
}


@pytest.mark.parametrize("name", FEDERATIONS)
@pytest.mark.parametrize("wire", ["counted", "real"])
def test_the_same_model_and_the_same_bytes(name: str, wire: str, tmp_path: Path) -> None:
    """Bit for bit in the sequential executor, as clients that are by themselves compute."""
    tables = FEDERATIONS[name]
    run = {"executor": "sequential", **tables.get("run", {}), "wire": wire}
    experiment = Experiment.of(**{"rounds": 10, "seed": 5, **tables, "run": run})
    simulated = fedsim.run(experiment, tmp_path / "run")
    server, clients = federate(experiment)
    assert server.model.numpy().tobytes() == simulated.model.numpy().tobytes()
    if simulated.average is not None:
        assert server.state.server.average is not None
        assert server.state.server.average.numpy().tobytes() == simulated.average.numpy().tobytes()
    assert server.ledger.totals == simulated.ledger.totals
    _, lines = (tmp_path / "run" / "ledger.csv").read_text().split("\n", 1)
    assert server.ledger.drain() == lines
    check_memories(server, clients)


def check_memories(server: ServerEnd, clients: list[ClientEnd]) -> None:
    """The rows that the server would send in a refresh are those that the clients hold."""
    if server.setup.experiment.uplink.memory:
        for client in clients:
            theirs, ours = client.sender.state.rows.memory, server._held(torch.tensor([client.number]))
            assert theirs is not None
            assert ours is not None
            assert theirs.numpy().tobytes() == ours.numpy().tobytes()


def test_the_federations_catch_up_in_every_way() -> None:
    """A client that comes back gets the model, or several updates; the length before an update has one byte or two."""
    rare, clients = federate(Experiment.of(**{"seed": 5, **FEDERATIONS["artemis, rare clients"]}))
    newcomers = sum(client.seen >= 0 for client in clients)
    assert rare.ledger.totals[Direction.DOWN, Entry.MODEL].frames > newcomers
    assert rare.ledger.totals[Direction.DOWN, Entry.UPDATES].frames > 0
    assert 0 < max(map(len, rare.backlog)) < 128
    name = "artemis, updates of more than 127 bytes"
    long, _ = federate(Experiment.of(**{"rounds": 10, "seed": 5, **FEDERATIONS[name]}))
    assert max(map(len, long.backlog)) > 127
    assert long.ledger.totals[Direction.DOWN, Entry.UPDATES].frames > 0


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

    server, clients = federate(experiment, loses, arriving=1 - rate)
    assert (sum(losses) > 100) == (rate > 0)
    setup, mean = server.setup, server.state.server.memory
    assert mean is not None
    rows = [client.sender.state.rows.memory for client in clients]
    memories = torch.cat([row for row in rows if row is not None])
    assert float((setup.weights @ memories - mean).abs().max()) <= 1e-12 * float(memories.abs().max())
    check_memories(server, clients)
    for client in clients:
        assert client.sender.pending is None
        assert client.sender.end == server.state.store.end(client.number)

    everything = setup.federation.all()
    best = torch.linalg.lstsq(everything.features, everything.targets[:, None]).solution[:, 0]
    start, end, least = (setup.task.loss(w, everything) for w in (0 * best, server.model, best))
    assert 0 <= end - least <= 1e-5 * (start - least)


PASSES = {"local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": 0.01}, "server": {"step": 0.02}}
LOSSY = {
    "reshuffling": {**LINEAR, "participation": HALF, **PASSES},
    "momentum": {**LINEAR, **PASSES, "direction": {"kind": "momentum"}},
    "double-squeeze": {**LINEAR, "algorithm": "double-squeeze", "participation": HALF},
    "pp1 from the first gradient": {
        **LINEAR,
        "uplink": {"initial": "gradient"},
        "server": {"memory": "pp1", "normalise": "present"},
    },
    "pp2 from the first gradient": {**LINEAR, "uplink": {"initial": "gradient"}},
}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_lost_message_is_an_absence(name: str, way: str) -> None:
    """Bitwise the simulator's run in which those clients do not take part: model, memories, counters and notes."""
    experiment = Experiment.of(**{"rounds": 25, "seed": 4, **LOSSY[name], "run": {"executor": "sequential"}})
    lost = np.random.default_rng(2).random((experiment.rounds, 8)) < 0.4

    def loses(round: int, client: int) -> bool:
        return bool(lost[round, client])

    state = simulated(experiment, loses)
    server, clients = federate(experiment, **{"loses" if way == "up" else "deaf": loses})
    assert server.model.numpy().tobytes() == state.server.model.numpy().tobytes()
    for client in clients:
        held, number = client.sender.state, torch.tensor([client.number])
        theirs = state.store.take(number)
        for ours, expected in ((held.rows.memory, theirs.memory), (held.rows.error, theirs.error)):
            assert (ours is None) == (expected is None)
            if ours is not None and expected is not None:
                assert ours.numpy().tobytes() == expected.numpy().tobytes()
        solver = state.store.solvers[client.number]
        assert held.solver.steps == solver.steps
        assert {k: v.tolist() for k, v in held.solver.direction.items()} == {
            k: v.tolist() for k, v in solver.direction.items()
        }
    assert int(lost.sum()) > 50


@pytest.mark.parametrize("name", ["artemis, rare clients", "double-squeeze", "sgd-mem"])
def test_a_server_that_is_stopped_goes_on(name: str) -> None:
    """A server made anew from the tensors of a checkpoint ends with the same state."""
    experiment = Experiment.of(**{"rounds": 20, "seed": 5, **FEDERATIONS[name], "run": {"executor": "sequential"}})
    whole, _ = federate(experiment)
    setup = prepare(experiment)
    server = ServerEnd(setup, ledger=Ledger())
    clients = [ClientEnd(setup, i) for i in range(setup.clients)]
    for t in range(experiment.rounds):
        cohort, replies = setup.cohort(t), []
        for i in cohort.clients.tolist():
            (call,) = server.call(i)
            clients[i].hear(call)
            replies.append((i, clients[i].answer()))
        server.absorb(replies, cohort)
        tensors = {key: tensor.clone() for key, tensor in server.tensors().items()}
        server = ServerEnd(setup, ledger=server.ledger)
        server.restore(t + 1, tensors)
    expected = whole.tensors()
    assert {key: tensor.tolist() for key, tensor in server.tensors().items()} == {
        key: tensor.tolist() for key, tensor in expected.items()
    }
    assert server.ledger.totals == whole.ledger.totals
    with pytest.raises(ValueError, match="does not fit"):
        ServerEnd(prepare(replace_data(experiment))).restore(20, expected)


def test_a_server_that_plays_rounds_again_in_another_way() -> None:
    """It came back to an older checkpoint; a client has heard of those rounds as they were, in uploads that were lost.

    Its end is the server's. Its model is too, as it replays onto that of its last absorbed upload.
    """
    wide = {**LINEAR["data"], "features": 40}  # so that updates are shorter than a model
    setup = prepare(Experiment.of(data=wide, seed=5))
    server, clients = ServerEnd(setup), [ClientEnd(setup, i) for i in range(setup.clients)]
    victim = clients[2]

    def round(present: range) -> None:
        replies = []
        for i in present:
            clients[i].hear(*server.call(i))
            replies.append((i, clients[i].answer()))
        server.absorb(replies, setup.cohort(server.round))

    def miss() -> None:
        (call,) = server.call(2)
        assert decode_frame(call, 2**20).kind is Kind.UPDATES
        victim.hear(call)
        assert not victim.parted
        assert victim.model.numpy().tobytes() == server.model.numpy().tobytes()
        victim.answer()

    round(range(8))
    kept = {key: tensor.clone() for key, tensor in server.tensors().items()}
    round(range(3, 8))
    miss()
    before = server.model.clone()
    server.restore(1, kept)
    round(range(5, 8))
    assert server.model.numpy().tobytes() != before.numpy().tobytes()
    assert victim.seen == server.round
    miss()
    assert victim.sender.end == server.state.store.end(2)


def test_a_client_that_is_made_anew_for_every_call_is_refreshed() -> None:
    """All that it knows is in a drawer, which was emptied; the model comes in one call, the memory in the next."""
    often = {"scheme": "bernoulli", "p": 0.3}
    given = Experiment.of(**LINEAR, rounds=60, seed=5, participation=often, run={"executor": "sequential"})
    expected = fedsim.run(given)
    setup, kinds = prepare(given), []
    server, drawers = ServerEnd(setup, ledger=Ledger()), dict[str, bytes]()

    def call(client: int) -> list[bytes]:
        end, frames = ClientEnd(setup, client, Drawer(drawers, setup.run, client)), server.call(client)
        kinds.append([decode_frame(frame, 2**20).kind for frame in frames])
        for frame in frames:
            end.hear(frame)
        return end.answer()

    for t in range(given.rounds):
        cohort, replies = setup.cohort(t), []
        if t in (20, 40):
            drawers.clear()
        for i in cohort.clients.tolist():
            frames = call(i)
            replies.append((i, call(i) if server.wants(i, frames) else frames))
        assert server.absorb(replies, cohort).clients.tolist() == cohort.clients.tolist()
    assert [Kind.MEMORY] in kinds
    assert [Kind.MODEL, Kind.MEMORY] in kinds
    assert server.model.numpy().tobytes() == expected.model.numpy().tobytes()


def replace_data(experiment: Experiment) -> Experiment:
    return Experiment.of(algorithm="artemis", data={"source": "synthetic-linear", "clients": 8, "features": 7})


def test_what_only_the_simulator_can_do_is_refused() -> None:
    shared = Experiment.of(**LINEAR, whitening={"mode": "shared"}, server={"step": 1.0})
    with pytest.raises(ConfigError, match=r"whitening.mode = 'shared' runs in the simulator only; use .*'off'"):
        ServerEnd(prepare(shared))
    salr = Experiment.of(**LINEAR, rate={"rule": "salr", "level": "server"})
    with pytest.raises(ConfigError, match=r"rate.level = 'server' runs in the simulator only; use .*'client'"):
        ClientEnd(prepare(salr), 0)


def test_frames_that_are_not_for_a_client() -> None:
    setup = prepare(Experiment.of(**LINEAR))
    server, client = ServerEnd(setup), ClientEnd(setup, 2)
    (call,) = server.call(3)
    with pytest.raises(WireError, match=r"frame for client 3 .* but this is client 2"):
        client.hear(call)
    client.hear(*server.call(2))
    (upload,) = client.answer()
    with pytest.raises(WireError, match="no use for a UPLOAD frame"):
        client.hear(upload)
    assert not client.parted
    assert client.answer() == [upload]
