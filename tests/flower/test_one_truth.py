"""One truth: whatever plays an experiment, its weights, every byte of every link and its ledger are the same.

    pytest -m slow tests/flower/test_one_truth.py -s       the table: ten configurations by six ways to play them

Weights by SHA-256; bytes by the digests of all links, which cover every upload in order; the ledger by its file, and by
the frames themselves, which are counted where they cross.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import fedsim
from fedsim import checkpoint
from fedsim.ends.answer import Answer
from fedsim.ends.post import Parcel
from fedsim.ends.serve import serve
from fedsim.errors import StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import read_totals
from fedsim.wire import HEADER_BYTES, Kind, decode_frame, unpack_messages
from tests.engines.test_served import Machines
from tests.flower.driven import grid_of, play

ORDERS, ROUNDS = 20, 6
HALF = {"participation": {"scheme": "bernoulli", "p": 0.6}}
LINEAR = {"data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 24}}
DIGITS = {"data": {"source": "digits"}, "partition": {"clients": 8}, **HALF}
PASSES = {"local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": 0.01}, "server": {"step": 0.02}}
TABLES: dict[str, dict[str, Any]] = {
    "artemis": {**LINEAR, **HALF},
    "artemis, pp1": {**LINEAR, **HALF, "server": {"memory": "pp1"}},
    "artemis, first gradient": {**LINEAR, "uplink": {"initial": "gradient"}},
    "artemis, epochs, momentum": {**LINEAR, **HALF, **PASSES, "direction": {"kind": "momentum"}},
    "artemis, many levels": {**LINEAR, **HALF, "uplink": {"levels": 20, "norm": "linf"}, "downlink": {"levels": 300}},
    "diana": {**LINEAR, **HALF, "algorithm": "diana"},
    "diana-nastya": {**LINEAR, **HALF, "algorithm": "diana-nastya"},
    "double-squeeze": {**LINEAR, **HALF, "algorithm": "double-squeeze"},
    "dore, float64": {**DIGITS, "algorithm": "dore", "run": {"precision": "float64"}},
    "fedavg": {**DIGITS, "algorithm": "fedavg", "local": {"batch": 10}},
}


def given_of(name: str, **run: Any) -> Experiment:
    tables = {"rounds": ROUNDS, "seed": 5, **TABLES[name]}
    how = {"executor": "sequential", "checkpoint_every": 2, "evaluate_every": 2, **tables.get("run", {}), **run}
    return Experiment.of(**{**tables, "run": how})


@dataclass(frozen=True)
class Outcome:
    """Of a run: SHA-256 of its weights, of the links' ends, of ledger.csv."""

    weights: str
    links: str
    ledger: str


def outcome(folder: Path) -> Outcome:
    found = checkpoint.read(folder / "checkpoint")
    assert found is not None
    links = hashlib.sha256()
    for part in ("epochs", "digests"):
        links.update(found[0].tensors[part].numpy().tobytes())
    assert found[0].round == ROUNDS
    assert bool(found[0].tensors["digests"].any())
    weights = json.loads((folder / "manifest.json").read_bytes())["model_sha256"]
    return Outcome(weights, links.hexdigest(), hashlib.sha256((folder / "ledger.csv").read_bytes()).hexdigest())


@dataclass
class Weighed(Machines):
    """Three machines whose replies come in an order of their own. stops: in this round the server does."""

    seed: int
    stops: int = -1
    frames: int = 0
    payload: int = 0

    def __post_init__(self) -> None:
        super().__init__(3, self._weigh_all)
        self.order = np.random.default_rng(self.seed)

    def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
        for frames in calls.values():
            self._weigh(frames)
        super().send(round, calls)

    def collect(self, seconds: float) -> list[Parcel]:
        """Every reply by itself, in any order."""
        if self.calls == self.stops:
            self.stops = -1
            raise KeyboardInterrupt
        singles = [
            Parcel(one.round, frozenset({client}), Answer(((client, frames),)))
            for one in super().collect(seconds)
            for client, frames in one.answer.replies
        ]
        return [singles[i] for i in self.order.permutation(len(singles))]

    def _weigh_all(self, parcel: Parcel) -> list[Parcel]:
        for _, frames in parcel.answer.replies:
            self._weigh(frames)
        return [parcel]

    def _weigh(self, frames: Sequence[bytes]) -> None:
        for data in frames:
            frame = decode_frame(data, 2**30)
            self.frames += HEADER_BYTES + len(frame.body)
            bodies = [frame.body]
            if frame.kind is Kind.UPDATES:
                bodies = unpack_messages(frame.body, (0, 2**30), 2**30)
            self.payload += sum(map(len, bodies))


class Halfway:
    """An observer that stops a run after so many rounds."""

    def __init__(self, after: int) -> None:
        self.after = after

    def started(self, setup: Any, metrics: Any) -> None:
        pass

    def evaluated(self, metrics: Any) -> None:
        pass

    def played(self, round: int, up: Any, down: Any) -> None:
        if round == self.after:
            raise StoppedError("of the test")


def ways(name: str, place: Path, orders: int) -> dict[str, list[Outcome]]:
    """The outcomes of each way to play an experiment; the ledger of the served ones is that of their frames."""
    found: dict[str, list[Outcome]] = {}
    real, count = given_of(name, wire="real"), 0

    def folder() -> Path:
        nonlocal count
        count += 1
        return place / str(count)

    def note(way: str, where: Path) -> None:
        found.setdefault(way, []).append(outcome(where))

    fedsim.run(real, one := folder())
    note("sequential", one)
    fedsim.run(given_of(name, wire="real", executor="workers", workers=2), two := folder())
    note("two processes", two)
    with pytest.raises(StoppedError):
        fedsim.run(real, half := folder(), Halfway(3))
    fedsim.resume(half)
    note("resumed", half)

    served = given_of(name)
    for seed in range(orders):
        post = Weighed(seed)
        serve(served, where := folder(), post)
        note("served, any order", where)
        totals = read_totals(where / "ledger.csv").values()
        assert sum(cost.frame_bytes for cost in totals) == post.frames
        assert sum(cost.payload_bits for cost in totals) == 8 * post.payload
    stopping = Weighed(0, stops=4)
    with pytest.raises(KeyboardInterrupt):
        serve(served, where := folder(), stopping)
    stopping.arrived.clear()
    serve(served, where, stopping)
    note("served, resumed", where)

    order = np.random.default_rng(1)

    def shuffle(answers: list[Message]) -> list[Message]:
        return [answers[i] for i in order.permutation(len(answers))]

    play(grid_of(served, flower := folder(), 3, shuffle), served, flower)
    note("Flower in process", flower)
    return found


def check(name: str, place: Path, orders: int) -> tuple[Outcome, dict[str, int]]:
    found = ways(name, place, orders)
    truth = found["sequential"][0]
    for way, each in found.items():
        assert set(each) == {truth}, (name, way)
    return truth, {way: len(each) for way, each in found.items()}


def test_one_truth(fast: Path) -> None:
    _, counts = check("artemis", fast, orders=2)
    assert len(counts) == 6


@pytest.mark.slow
def test_one_truth_of_ten_experiments(fast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for name in TABLES:
        truth, counts = check(name, fast / name.replace(", ", "-"), ORDERS)
        runs = sum(counts.values())
        lines.append(f"{name:26} {truth.weights[:12]}  {truth.links[:12]}  {runs:3} of {runs}")
    with capsys.disabled():
        print("\n" + ", ".join(f"{way} {count}" for way, count in counts.items()))
        print(f"{'experiment':26} weights       links         runs that agree, ledger too")
        print("\n".join(lines))
