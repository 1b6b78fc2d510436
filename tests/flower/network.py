"""The network model beside deployed rounds: two SuperNodes, each behind a slow link of its own, of three kinds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.experiment import Experiment
from fedsim.ledger import read_lines
from fedsim.network import Mobile, Things, Trace
from fedsim.simulation.network import round_seconds
from tests.flower.deployed import Deployment, deployment
from tests.flower.exchanges import exchanges, messages
from tests.flower.slow_link import Fault, Link, slow_link

SLOWER = 0.8
"""The second client's bandwidths, as a multiple of the first's."""
MODEL: dict[str, Any] = {
    "data": {"source": "digits"},
    "partition": {"scheme": "iid", "clients": 2},
    "participation": {"scheme": "full"},
    "server": {"step": 0.1},
    "run": {"executor": "sequential", "evaluate_every": 1000},
    "rounds": 4,
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "sgd, 300 kB": MODEL | {"algorithm": "sgd", "task": {"kind": "mlp", "hidden": [1_000]}},
    "artemis, 1 MB compressed": MODEL | {"algorithm": "artemis", "task": {"kind": "mlp", "hidden": [3_333]}},
}
PROFILES: dict[str, tuple[float, float, float]] = {
    "4g": (Mobile().up_mbps, Mobile().down_mbps, Mobile().latency_s),
    "1 Mbit/s": (1.0, 1.0, 0.05),
    "iot": (Things().up_mbps, Things().down_mbps, Things().latency_s),
}
"""Megabits a second up and down, seconds one way."""


@dataclass(frozen=True)
class Compared:
    """Seconds of one round: measured on the wire, and those of the model."""

    profile: str
    experiment: str
    round: int
    measured: float
    model: float

    @property
    def ratio(self) -> float:
        """Of the model's seconds to the measured ones."""
        return self.model / self.measured


def compared(machines: Deployment, links: Sequence[Link], place: Path) -> Iterator[Compared]:
    """Every round of every experiment over every kind of link."""
    for profile, (up, down, latency) in PROFILES.items():
        lines = [(up * factor, down * factor) for factor in (1.0, SLOWER)]
        trace = place / f"{profile.replace('/', ' a ')}.csv"
        rows = [f"{i},{up},{down},{latency}\n" for i, (up, down) in enumerate(lines)]
        trace.write_text("client,up_mbps,down_mbps,latency_s\n" + "".join(rows))
        for name, tables in EXPERIMENTS.items():
            folder = place / f"{trace.stem}-{tables['algorithm']}"
            for link, (up, down) in zip(links, lines, strict=True):
                link.fault = Fault(rate=down * 1e6, delay=latency, up=up * 1e6)
            since = [(len(link.up.packets), len(link.down.packets)) for link in links]
            machines.run(Experiment.of(**tables), folder, 600)
            time.sleep(1.0)  # until the last answer is across
            for link in links:
                link.fault = Fault()
            took = [crossed(link, start) for link, start in zip(links, since, strict=True)]
            model = round_seconds(read_lines(folder / "ledger.csv"), Trace(file=str(trace)), len(links), 0)
            for t, seconds in enumerate(model.tolist()):
                yield Compared(profile, name, t, max(one[t] for one in took), seconds)


def crossed(link: Link, since: tuple[int, int]) -> list[float]:
    """Seconds on the wire of each round of one SuperNode. Before the first the ServerApp asks what the node has."""
    down, up = messages(exchanges(link, since))
    return [a.seconds + b.seconds for a, b in zip(down[1:], up[1:], strict=True)]


def rounds(place: Path) -> Iterator[Compared]:
    """All of them, with links and machines of their own."""
    with ExitStack() as stack:
        links = [stack.enter_context(slow_link(i)) for i in range(2)]
        machines = stack.enter_context(deployment(place / "network", machines=2, links=links))
        yield from compared(machines, links, place)


def network(place: Path) -> None:
    """Print the table."""
    print("| link | experiment | round | measured, s | model, s | model / measured |\n|---|---|---:|---:|---:|---:|")
    ratios: list[float] = []
    for one in rounds(place):
        ratios.append(one.ratio)
        cells = f"{one.round} | {one.measured:.2f} | {one.model:.2f} | {one.ratio:.3f}"
        print(f"| {one.profile} | {one.experiment} | {cells} |", flush=True)
    print(f"\nmodel / measured: {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}")
