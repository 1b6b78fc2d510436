"""Poison does not spread, through the whole of a deployed server: its waiting, its guard, its files.

    pytest -m slow tests/faults/test_poison.py -s       twelve attacks by twenty seeds, and what became of them

Each round 1 to floor((n - 1) / 2) of the clients, other ones each time, send what an attack makes of their replies. The
run is bitwise the one in which they do not reply at all, and incidents.csv has a line for each: round, client, reason.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.ends.answer import Answer
from fedsim.ends.host import alone
from fedsim.ends.post import Parcel
from fedsim.ends.serve import Service
from fedsim.ends.server import ServerEnd
from fedsim.experiment import Experiment
from fedsim.ledger import Ledger
from fedsim.simulation.setup import Setup
from fedsim.wire import HEADER_BYTES, Kind, decode_frame
from tests.engines.test_guard import ATTACKS, LIMIT, Attack, forge
from tests.engines.test_served import Machines

ROUNDS, CLIENTS, SEEDS = 6, 9, 20
LINEAR = {"source": "synthetic-linear", "clients": CLIENTS, "per_client": 15, "features": 5}
TABLES: dict[str, dict[str, Any]] = {
    "artemis": {},
    "pp1": {"server": {"memory": "pp1"}},
    "uncompressed": {"algorithm": "sgd"},
    "from the first gradient": {"uplink": {"initial": "gradient"}},
    "double-squeeze": {"algorithm": "double-squeeze"},
}


def other_kind(frames: list[bytes], setup: Any) -> list[bytes]:
    return [*frames[:-1], forge(frames[-1], kind=Kind.MODEL)]


def oversized(frames: list[bytes], setup: Any) -> list[bytes]:
    return [*frames[:-1], forge(frames[-1], body=bytes(2**20 - 1))]


@dataclass
class Replay:
    """The client's reply to an earlier round once more; in its first, one that says it is of the next."""

    before: dict[int, list[bytes]] = field(default_factory=dict)

    def __call__(self, frames: list[bytes], setup: Any) -> list[bytes]:
        client = decode_frame(frames[-1], LIMIT).client
        old = self.before.get(client)
        self.before[client] = list(frames)
        return old or [forge(frame, round=decode_frame(frame, LIMIT).round + 1) for frame in frames]


MADE: dict[str, tuple[Callable[[], Attack], str]] = {
    **{name: (lambda attack=attack: attack, reason) for name, (attack, reason) in ATTACKS.items()},  # type: ignore[misc]
    "another kind": (lambda: other_kind, "^MODEL frame, expected (UPLOAD|MEMORY)$"),
    "another round": (Replay, r"^frame of round \d, expected \d$|^\d frames, expected \d$"),
    "oversized": (lambda: oversized, rf"^frame of {HEADER_BYTES + 2**20 - 1} bytes, expected at most"),
}


@dataclass(frozen=True)
class Played:
    """A run. models: after each round; tensors: its checkpoint; incidents: of incidents.csv; bad: who attacked when."""

    models: Sequence[bytes]
    tensors: Mapping[str, Any]
    totals: Mapping[Any, Any]
    incidents: Sequence[Mapping[str, str]]
    bad: set[tuple[int, int]]


def attackers(setup: Setup, seed: int, round: int) -> set[int]:
    """1 to floor((n - 1) / 2), each number as often."""
    count = 1 + (seed + round) % ((CLIENTS - 1) // 2)
    return set(np.random.default_rng([seed, round]).permutation(setup.clients)[:count].tolist())


def play(name: str, seed: int, attack: Attack | None) -> Played:
    """attack: what becomes of the replies; None: there are none."""
    setup = alone(Experiment.of(**{"data": LINEAR, "rounds": ROUNDS, "seed": seed, **TABLES[name]}))
    now = [0.0]

    def spoil(parcel: Parcel) -> list[Parcel]:
        bad, replies = attackers(setup, seed, parcel.round), []
        for client, frames in parcel.answer.replies:
            if client not in bad:
                replies.append((client, frames))
            elif attack is not None:
                replies.append((client, tuple(attack(list(frames), setup))))
        return [Parcel(parcel.round, parcel.clients, Answer(tuple(replies)))]

    class Impatient(Machines):
        def collect(self, seconds: float) -> list[Parcel]:
            arrived = super().collect(seconds)
            now[0] += 0.0 if arrived else seconds
            return arrived

    service = Service(ServerEnd(setup, ledger=Ledger()), Impatient(3, spoil))
    service.clock = lambda: now[0]
    models = []
    for _ in range(ROUNDS):
        service.play()
        assert bool(torch.isfinite(service.server.model).all())
        models.append(service.server.model.numpy().tobytes())
    tensors = {key: tensor.tolist() for key, tensor in service.tensors().items()}
    fields = ("round", "client", "what", "bytes", "reason")
    incidents = list(csv.DictReader(io.StringIO(service.drain()["incidents.csv"]), fields))
    bad = {(t, i) for t in range(ROUNDS) for i in attackers(setup, seed, t)}
    return Played(models, tensors, service.end.ledger.totals, incidents, bad)


def of(played: Played, what: str) -> list[tuple[int, int]]:
    return sorted((int(one["round"]), int(one["client"])) for one in played.incidents if one["what"] == what)


def campaign(seeds: range) -> dict[str, int]:
    """Replies refused of each attack, all of them, in runs that are bitwise those without them."""
    refused = dict.fromkeys(MADE, 0)
    for seed in seeds:
        name = list(TABLES)[seed % len(TABLES)]
        silent = play(name, seed, None)
        assert of(silent, "absent") == sorted(silent.bad)
        for attack, (make, reason) in MADE.items():
            attacked = play(name, seed, make())
            assert attacked.models == silent.models
            assert (attacked.tensors, attacked.totals) == (silent.tensors, silent.totals)
            assert of(attacked, "rejected") == of(attacked, "absent") == sorted(attacked.bad)
            for one in attacked.incidents:
                assert one["what"] == "absent" or re.search(reason, one["reason"]), (name, attack, one)
            refused[attack] += len(attacked.bad)
    return refused


def test_attackers_are_absent() -> None:
    assert min(campaign(range(2)).values()) >= 2 * ROUNDS


@pytest.mark.slow
def test_every_attack_by_twenty_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    refused = campaign(range(SEEDS))
    with capsys.disabled():
        print(f"\n1 to {(CLIENTS - 1) // 2} of {CLIENTS} clients attack: refused and logged; bitwise the silent run")
        for name, count in refused.items():
            print(f"{name:20} {count:5} of {count:5} {SEEDS:5} of {SEEDS}")
