"""Seconds and socket bytes of rounds, and Flower's own FedAvg as the measure.

A round lasts from the instant at which the ServerApp begins it to that at which it has aggregated. Bytes are those of
each node's TCP streams within it. SuperNodes poll every 3 s; what that costs is measured apart and named beside.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.flower.federation import Federation

FEDAVG = Path(__file__).with_name("apps") / "fedavg"
ONE_ARRAY = "1000000"
LAYERS = "1000x784 1000 200x1000 200 74x200"
"""Networks of 1 000 000 parameters: as one array, and as the weights and biases of three layers."""


@dataclass(frozen=True, slots=True)
class Round:
    """Instants of time.time()."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Socket:
    """Bytes of one client in one round, each way."""

    up: float
    down: float

    @property
    def both(self) -> float:
        """The sum of both ways."""
        return self.up + self.down


def read_rounds(path: Path) -> list[Round]:
    """The rounds that a ServerApp noted, one JSON object a line."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [Round(one["began"], one["ended"]) for one in found]


def play_fedavg(federation: Federation, shapes: str, rounds: int) -> list[Round]:
    """Flower's strategy loop on this federation."""
    path = federation.folder / f"fedavg-{time.monotonic_ns()}.jsonl"
    config = {"rounds": rounds, "nodes": len(federation.nodes), "shapes": shapes, "result": str(path)}
    federation.run(FEDAVG, config).completed()
    return read_rounds(path)


def sockets(federation: Federation, rounds: Sequence[Round]) -> Socket:
    """Of a client in a round: the mean over clients and rounds, from each round's beginning to the next one's.

    The last round is left out: what follows it is not a round.
    """
    spans = [(a.began, b.began) for a, b in pairwise(rounds)]
    seen = [proxy.traffic(*span) for span in spans for proxy in federation.proxies]
    return Socket(statistics.mean(one.up for one in seen), statistics.mean(one.down for one in seen))


def idle(federation: Federation, seconds: float = 9.0) -> Socket:
    """Bytes a second of one client to which nothing happens."""
    began = time.time()
    time.sleep(seconds)
    seen = [proxy.traffic(began) for proxy in federation.proxies]
    up, down = statistics.mean(one.up for one in seen), statistics.mean(one.down for one in seen)
    return Socket(up / seconds, down / seconds)
