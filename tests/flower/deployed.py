"""A deployed fedsim: a federation whose SuperNodes have workers, and the instants at which its rounds ended."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedsim.experiment import Experiment
from tests.flower.federation import ROOT, Ended, Federation, FlowerError, Program
from tests.flower.measure import Round
from tests.flower.slow_link import Link


@dataclass
class Deployment:
    """SuperNode i and ``workers[i]`` are one machine: they are killed and started together."""

    federation: Federation
    sockets: list[Path]
    workers: list[Program] = field(default_factory=list)

    def kill(self, machine: int) -> None:
        """SIGKILL to a SuperNode and its worker."""
        self.federation.nodes[machine].kill()
        self.workers[machine].kill()

    def start(self, machine: int) -> None:
        """Start a machine again, with the same folder of clients."""
        self.workers[machine].start()
        self.federation.nodes[machine].start()

    def submit(self, experiment: Experiment, folder: Path) -> int:
        """Hand in an experiment; the number of the run."""
        return self.federation.submit(ROOT, {"experiment": experiment.toml(), "folder": str(folder)})

    def run(self, experiment: Experiment, folder: Path, seconds: float = 300.0) -> Ended:
        """Run an experiment to its end. Raises FlowerError unless it completed."""
        return self.federation.wait(self.submit(experiment, folder), seconds).completed()


@contextmanager
def deployment(
    folder: Path, machines: int = 3, database: bool = False, proxied: bool = False, links: Sequence[Link] = ()
) -> Iterator[Deployment]:
    """Everything started; everything stopped in the end. A worker's socket lies in a folder with a short name.

    links: what lies between the SuperLink and each SuperNode, in turn.
    """
    near = Path(tempfile.mkdtemp(prefix="fs"))
    sockets = [near / f"{i}" for i in range(machines)]

    def config(node: int, nodes: int) -> str:
        return f'partition-id={node} num-partitions={nodes} worker="unix:{sockets[node]}"'

    federation = Federation(folder, machines, database, proxied, config, **elsewhere(machines, links))
    made = Deployment(federation, sockets)
    try:
        for i, socket in enumerate(sockets):
            command = [sys.executable, "-m", "fedsim.cli.main", "worker", "--socket", str(socket)]
            command += ["--folder", str(folder / f"clients-{i}")]
            made.workers.append(Program(f"worker-{i}", command, federation.environment, folder / f"worker-{i}.log"))
            made.workers[-1].start()
        with federation:
            for worker in made.workers:
                worker.wait_for("fedsim worker: process")
            yield made
    finally:
        for worker in made.workers:
            worker.stop()
        shutil.rmtree(near)


def elsewhere(machines: int, links: Sequence[Link]) -> dict[str, Any]:
    """A federation's options for SuperNodes at the other ends of links."""
    if not links:
        return {}
    places = [(link.here, link.inside) for link in links]
    return {"address": "0.0.0.0", "elsewhere": [places[i % len(places)] for i in range(machines)]}


@contextmanager
def watched(ledger: Path) -> Iterator[list[float]]:
    """The instants of time.time() at which a deployed run ended its rounds: each appends to the ledger, once."""
    instants: list[float] = []
    over = threading.Event()

    def watch() -> None:
        length = 0
        while not over.is_set():
            now = ledger.stat().st_size if ledger.exists() else 0
            if now != length:
                if length:  # the first bytes are the heading
                    instants.append(time.time())
                length = now
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield instants
    finally:
        over.set()
        thread.join()


def rounds_between(instants: list[float]) -> list[Round]:
    """Rounds but the first, whose beginning is not known: it waited for the nodes."""
    return [Round(a, b) for a, b in pairwise(instants)]


def instants_of(instants: list[float], count: int, seconds: float) -> None:
    """Wait until so many rounds have ended."""
    limit = time.monotonic() + seconds
    while len(instants) < count:
        if time.monotonic() > limit:
            raise FlowerError(f"{len(instants)} rounds in {seconds} s, expected {count}")
        time.sleep(0.02)
