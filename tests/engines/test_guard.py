"""Poison does not spread: what a faulty or hostile client sends leaves the model as if that client had been absent.

Nine attacks by floor((n - 1) / 2) of the clients of each round, on replies that are really encoded: the model stays
bitwise that of the run in which the same replies are lost, and each is rejected with client, round and reason. No frame
has a place for a weight, so a lie about it is bytes too many.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.compression import Levels, Values, ValuesLayout
from fedsim.ends.client import ClientEnd
from fedsim.ends.server import ServerEnd, Verdict
from fedsim.errors import DivergedError
from fedsim.experiment import Experiment
from fedsim.simulation.setup import prepare
from fedsim.wire import Kind, coding, decode_frame, encode_frame

LINEAR = {"data": {"source": "synthetic-linear", "clients": 9, "per_client": 15, "features": 5}, "rounds": 12}
RUNS: dict[str, dict[str, Any]] = {
    "artemis": {"algorithm": "artemis"},
    "artemis, half": {"algorithm": "artemis", "participation": {"scheme": "bernoulli", "p": 0.6}},
    "artemis, pp1, float64": {"server": {"memory": "pp1"}, "run": {"precision": "float64"}},
    "uncompressed": {"algorithm": "sgd"},
    "from the first gradient": {"uplink": {"initial": "gradient"}},
}
LIMIT = 2**20
Attack = Callable[[list[bytes], Any], Sequence[bytes]]


def forge(data: bytes, **changes: Any) -> bytes:
    """The frame with other fields, and a checksum that is right."""
    return encode_frame(replace(decode_frame(data, LIMIT), **changes))


def numbers(fill: float) -> Attack:
    """Every number that the client may choose is ``fill``."""

    def attack(frames: list[bytes], setup: Any) -> list[bytes]:
        frame = decode_frame(frames[-1], LIMIT)
        layout = setup.method.up.layout(setup.task.dim)
        payload = coding.decode([frame.body], layout)
        if isinstance(payload, Values):
            body = torch.full_like(payload.values, fill).numpy().tobytes()
        elif np.isfinite(fill):
            poison = Levels(layout, payload.levels, torch.full_like(payload.norms, fill))
            if not bool(payload.levels.any()):
                poison = Levels(layout, torch.ones_like(payload.levels), poison.norms)
            (body,) = coding.encode(poison)
        else:
            body = struct.pack("<f", fill) * layout.buckets + frame.body[4 * layout.buckets :]
        return [*frames[:-1], forge(frames[-1], body=body)]

    return attack


def shape(frames: list[bytes], setup: Any) -> list[bytes]:
    wide = torch.ones(1, setup.task.dim + 1, dtype=setup.weights.dtype)
    (body,) = coding.encode(Values(ValuesLayout(setup.task.dim + 1, wide.dtype), wide))
    return [*frames[:-1], forge(frames[-1], body=body)]


def kind(frames: list[bytes], setup: Any) -> list[bytes]:
    other = torch.float64 if setup.weights.dtype == torch.float32 else torch.float32
    (body,) = coding.encode(Values(ValuesLayout(setup.task.dim, other), torch.ones(1, setup.task.dim, dtype=other)))
    return [*frames[:-1], forge(frames[-1], body=body)]


def key(frames: list[bytes], setup: Any) -> list[bytes]:
    client = decode_frame(frames[-1], LIMIT).client
    return [forge(data, client=(client + 1) % 9) for data in frames]


def garbage(frames: list[bytes], setup: Any) -> list[bytes]:
    return [np.random.default_rng(len(data)).bytes(len(data)) for data in frames]


def weight(value: float) -> Attack:
    def attack(frames: list[bytes], setup: Any) -> list[bytes]:
        body = decode_frame(frames[-1], LIMIT).body
        return [*frames[:-1], forge(frames[-1], body=body + struct.pack("<d", value))]

    return attack


BROKEN = r"^frame of \d+ bytes, expected at most|message 0 (has|is not)|dense body|body of|level"
ATTACKS: dict[str, tuple[Attack, str]] = {
    "NaN": (numbers(float("nan")), "not finite|a norm is infinite, NaN"),
    "Inf": (numbers(float("inf")), "not finite|a norm is infinite, NaN"),
    "1e38": (numbers(1e38), r"^norm \S+e\+3[89], expected at most"),
    "shape": (shape, BROKEN),
    "dtype": (kind, BROKEN),
    "key": (key, r"^frame of client \d, sent by client \d$"),
    "garbage": (garbage, "^not a fedsim frame"),
    "a lying weight": (weight(1e30), BROKEN),
    "a negative weight": (weight(-1.9), BROKEN),
}


def play(tables: dict[str, Any], seed: int, attack: Attack | None) -> tuple[ServerEnd, list[Verdict], list[set[int]]]:
    """A run in which fewer than half of each cohort, other ones each round, are attackers, or (None) are silent."""
    experiment = Experiment.of(**{**LINEAR, "seed": seed, **tables})
    setup = prepare(experiment)
    server, clients = ServerEnd(setup), [ClientEnd(setup, i) for i in range(setup.clients)]
    verdicts, bad = [], []
    for t in range(experiment.rounds):
        cohort, replies = setup.cohort(t), []
        count = max(0, (len(cohort.clients) - 1) // 2)
        bad.append(set(np.random.default_rng([seed, t]).permutation(cohort.clients.numpy())[:count].tolist()))
        for i in cohort.clients.tolist():
            clients[i].hear(*server.call(i))
            frames = clients[i].answer()
            if i not in bad[-1]:
                replies.append((i, frames))
            elif attack is not None:
                replies.append((i, list(attack(frames, setup))))
        verdicts.append(server.absorb(replies, cohort))
    return server, verdicts, bad


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attacker_is_absent(run: str, name: str) -> None:
    attack, reason = ATTACKS[name]
    attacked, verdicts, bad = play(RUNS[run], 7, attack)
    absent, silent, _ = play(RUNS[run], 7, None)
    assert {key: tensor.tolist() for key, tensor in attacked.tensors().items()} == {
        key: tensor.tolist() for key, tensor in absent.tensors().items()
    }
    assert bool(torch.isfinite(attacked.model).all())
    assert attacked.ledger.totals == absent.ledger.totals
    assert sum(map(len, bad)) >= 15
    for t, (verdict, alone) in enumerate(zip(verdicts, silent, strict=True)):
        assert verdict.clients.tolist() == alone.clients.tolist()
        assert {(one.client, one.round) for one in verdict.rejections} == {(i, t) for i in bad[t]}
        assert len(verdict.rejections) == len(bad[t])
        for one in verdict.rejections:
            assert re.search(reason, one.reason), one
            assert "\n" not in one.reason
            assert one.octets >= 40


def begun(**tables: Any) -> tuple[ServerEnd, dict[int, list[bytes]]]:
    """A server in its first round, and the true replies of all its clients."""
    setup = prepare(Experiment.of(**{**LINEAR, "seed": 2, **tables}))
    server, replies = ServerEnd(setup), {}
    for i in range(setup.clients):
        client = ClientEnd(setup, i)
        client.hear(*server.call(i))
        replies[i] = client.answer()
    return server, replies


def reasons(verdict: Verdict) -> list[tuple[int, str]]:
    return [(one.client, one.reason) for one in verdict.rejections]


def test_frames_that_do_not_belong_here() -> None:
    """Each reason once, and then a round that takes the other replies."""
    server, replies = begun()
    (upload,) = replies[4]
    wrong = {
        0: ([forge(replies[0][0], run=b"another.")], f"frame of run {b'another.'.hex()}, expected"),
        1: ([forge(replies[1][0], round=3)], "frame of round 3, expected 0"),
        2: ([forge(replies[2][0], kind=Kind.MEMORY)], "MEMORY frame, expected UPLOAD"),
        3: ([*replies[3], *replies[3]], "2 frames, expected 1"),
        4: ([forge(upload, epoch=1)], "parted: built on epoch 1, the server is at epoch 0"),
        5: ([forge(replies[5][0], digest=b"history!")], "parted: built on epoch 0, the server is at epoch 0"),
        6: ([], "0 frames, expected 1"),
        77: ([upload], "client 77 is not in the cohort of round 0"),
    }
    arrived = [(i, frames) for i, (frames, _) in wrong.items()] + [(7, replies[7]), (8, replies[8]), (7, replies[7])]
    verdict = server.absorb(arrived, server.setup.cohort(0))
    assert verdict.clients.tolist() == [7, 8]
    found = reasons(verdict)
    expected = {client: reason for client, (_, reason) in wrong.items()} | {7: "duplicate"}
    assert [client for client, _ in found] == sorted(expected)
    for client, reason in found:
        assert reason.startswith(expected[client])
    verdict = server.absorb([(7, [forge(replies[7][0], round=1)])], server.setup.cohort(1))
    assert reasons(verdict) == [(7, "stale: built on epoch 0, the server is at epoch 1")]


def test_the_order_of_replies_changes_nothing() -> None:
    models = set()
    for seed in range(6):
        server, replies = begun()
        order = np.random.default_rng(seed).permutation(9).tolist()
        server.absorb([(i, replies[i]) for i in order], server.setup.cohort(0))
        models.add(server.model.numpy().tobytes())
    assert len(models) == 1


def test_an_absolute_bound_holds_when_most_collude() -> None:
    """Six of nine send 1e38: the median is theirs, and only the absolute bound is left."""
    attack, options = numbers(1e38), {"server": {"step": 1e6}, "downlink": {"levels": 16}}
    server, replies = begun(**options)
    arrived = [(i, attack(frames, server.setup) if i < 6 else frames) for i, frames in replies.items()]
    with pytest.raises(DivergedError, match=r"^round 0: the model is not finite with server.step = 1e\+06"):
        server.absorb(arrived, server.setup.cohort(0))
    assert server.round == 0
    server, _ = begun(**options, deploy={"longest": 1e4})
    assert server.absorb(arrived, server.setup.cohort(0)).clients.tolist() == [6, 7, 8]


def test_directions_of_no_length_are_no_measure() -> None:
    """All clients but one are at their optimum: the one that learns is taken."""
    server, replies = begun(algorithm="sgd")
    zero = {i: numbers(0.0)(frames, server.setup) for i, frames in replies.items() if i != 3}
    verdict = server.absorb([*zero.items(), (3, replies[3])], server.setup.cohort(0))
    assert len(verdict.clients) == 9
    assert verdict.rejections == ()


def test_frames_of_the_first_round_are_taken_together() -> None:
    """A memory whose upload is refused is not absorbed either."""
    server, replies = begun(uplink={"initial": "gradient"})
    memory, upload = replies[0]
    arrived = {**replies, 0: [memory, forge(upload, body=b"")], 1: [replies[1][1], replies[1][0]]}
    verdict = server.absorb(arrived.items(), server.setup.cohort(0))
    assert verdict.clients.tolist() == list(range(2, 9))
    assert [client for client, _ in reasons(verdict)] == [0, 1]
    assert server.state.store.end(0).epoch == 0
    assert server.state.store.memory is not None
    assert not bool(server.state.store.memory.take(torch.tensor([0])).any())
