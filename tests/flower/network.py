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
from fedsim.simulation.network import ANSWER, QUESTION, round_seconds
from tests.flower.deployed import Deployment, deployment
from tests.flower.driven import rows
from tests.flower.exchanges import Exchange, exchanges, messages
from tests.flower.federation import FlowerError
from tests.flower.slow_link import Fault, Link, slow_link

SHORT = 2_000
"""Bytes of a frame, at least."""
SLOWER = 0.8
"""The second client's bandwidths, as a multiple of the first's."""
MODEL: dict[str, Any] = {
    "data": {"source": "digits"},
    "partition": {"scheme": "iid", "clients": 2},
    "participation": {"scheme": "full"},
    "server": {"step": 0.1},
    "run": {"executor": "sequential", "evaluate_every": 1000},
    "rounds": 3,
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "sgd, 300 kB": MODEL | {"algorithm": "sgd", "task": {"kind": "mlp", "hidden": [1_000]}},
    "artemis of 1 MB, 200 levels": MODEL
    | {
        "task": {"kind": "mlp", "hidden": [3_333]},
        "uplink": {"levels": 200},
        "downlink": {"levels": 200},
    },
}
PROFILES: dict[str, tuple[float, float, float]] = {
    "1 Mbit/s": (1.0, 1.0, 0.05),
    "iot": (Things().up_mbps, Things().down_mbps, Things().latency_s),
    "4g": (Mobile().up_mbps, Mobile().down_mbps, Mobile().latency_s),
}
"""Megabits a second up and down, seconds one way."""


@dataclass(frozen=True)
class Compared:
    """One round. measured, model: seconds on the wire; behind: by which the links were late, at most, in its run.

    question, answer: bytes of TCP in the exchanges of its run that carry no frame, on average.
    """

    profile: str
    experiment: str
    round: int
    measured: float
    model: float
    behind: float
    question: float
    answer: float

    @property
    def ratio(self) -> float:
        """Of the model's seconds to the measured ones."""
        return self.model / self.measured


def compared(machines: Deployment, links: Sequence[Link], place: Path) -> Iterator[Compared]:
    """Every round of every experiment over every kind of link."""
    for profile, (up, down, latency) in PROFILES.items():
        lines = [(up * factor, down * factor) for factor in (1.0, SLOWER)]
        trace = place / f"{profile.replace('/', ' a ')}.csv"
        table = [f"{i},{up},{down},{latency}\n" for i, (up, down) in enumerate(lines)]
        trace.write_text("client,up_mbps,down_mbps,latency_s\n" + "".join(table))
        for name, tables in EXPERIMENTS.items():
            folder = place / f"{trace.stem}-{tables['task']['hidden'][0]}"
            for link, (up, down) in zip(links, lines, strict=True):
                link.behind = 0.0
                link.fault = Fault(rate=down * 1e6, delay=latency, up=up * 1e6)
            since = [(len(link.up.packets), len(link.down.packets)) for link in links]
            machines.run(Experiment.of(**tables), folder, 600)
            time.sleep(1.0)  # until the last answer is across
            for link in links:
                link.fault = Fault()
            talks = [messages(exchanges(link, start)) for link, start in zip(links, since, strict=True)]
            if absent := [one for one in rows(folder / "incidents.csv") if one["what"] == "absent"]:
                raise FlowerError(f"{profile}, {name}: no reply of client {absent[0]['client']} in a round")
            # Before the first round the ServerApp asks what nodes have.
            took = [[a.seconds + b.seconds for a, b in zip(down[1:], up[1:], strict=True)] for down, up in talks]
            short = [one for talk in talks for way in talk for message in way for one in message.each if brief(one)]
            model = round_seconds(read_lines(folder / "ledger.csv"), Trace(file=str(trace)), len(links), 0)
            for t, seconds in enumerate(model.tolist()):
                yield Compared(
                    profile,
                    name,
                    t,
                    measured=max(one[t] for one in took),
                    model=seconds,
                    behind=max(one.behind for one in links),
                    question=statistics.mean(one.up for one in short),
                    answer=statistics.mean(one.down for one in short),
                )


def brief(one: Exchange) -> bool:
    """Whether it carries no frame."""
    return max(one.up, one.down) < SHORT


def rounds(place: Path) -> Iterator[Compared]:
    """All of them, with links and machines of their own."""
    with ExitStack() as stack:
        links = [stack.enter_context(slow_link(i)) for i in range(2)]
        machines = stack.enter_context(deployment(place / "network", machines=2, links=links))
        yield from compared(machines, links, place)


def network(place: Path) -> None:
    """Print the table."""
    print("| link | experiment | round | measured, s | model, s | model / measured | links late by, s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    found: list[Compared] = []
    for one in rounds(place):
        found.append(one)
        cells = f"{one.round} | {one.measured:.2f} | {one.model:.2f} | {one.ratio:.3f} | {one.behind:.3f}"
        print(f"| {one.profile} | {one.experiment} | {cells} |", flush=True)
    print("\n| link | experiment | model / measured: median | least | most |\n|---|---|---:|---:|---:|")
    for profile, name in dict.fromkeys((one.profile, one.experiment) for one in found):
        ratios = [one.ratio for one in found if (one.profile, one.experiment) == (profile, name)]
        print(f"| {profile} | {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |")
    question, answer = (statistics.mean(getattr(one, what) for one in found) for what in ("question", "answer"))
    print(f"\na question without a frame: {question:.0f} bytes of TCP, its answer {answer:.0f}; ", end="")
    print(f"the model has {QUESTION} and {ANSWER} of packets")
