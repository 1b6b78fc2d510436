"""python -m tests.flower [seconds] [layers] [sockets]: what deployment costs, beside Flower's own FedAvg in one run.

All on loopback: a SuperLink and three SuperNodes, each behind a proxy that counts, each with a worker. About six
minutes.

python -m tests.flower network: simulated seconds beside those of deployed rounds over slow links, three kinds of them
and two experiments. Needs root and /dev/net/tun; about ten minutes.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedsim.experiment import Experiment
from fedsim.simulation.setup import prepare
from server.app import app as server_app
from server.inprocess import SERVER, InProcessGrid
from tests.flower.deployed import Deployment, deployment, rounds_between, watched
from tests.flower.layers import layers, note_sockets
from tests.flower.measure import Round, Socket, idle, play_fedavg, sockets
from tests.flower.network import network

QUICK = {"evaluate_every": 1000, "executor": "sequential"}
TRIVIAL: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": 3, "per_client": 5, "features": 999},
    "run": QUICK,
    "server": {"step": 1e-3},
}
MILLION: dict[str, Any] = {
    "task": {"kind": "mlp", "hidden": [13_333]},
    "partition": {"clients": 3},
    "participation": {"scheme": "full"},
    "server": {"step": 0.01},
    "run": QUICK,
    "rounds": 4,
}
ONE_ARRAY, LAYERS = "999985", "13333x64 13333 10x13333 10"
"""The model of MILLION, as Flower sends it."""


def seconds(machines: Deployment, place: Path) -> None:
    """Interleaved, so that whatever else the machine does befalls both."""
    flower: list[Round] = []
    fedsim: list[Round] = []
    for turn in range(3):
        flower += play_fedavg(machines.federation, "1000", 5)[1:]
        fedsim += played(machines, TRIVIAL | {"rounds": 5}, place / f"trivial-{turn}")
    print("| seconds a round, 3 SuperNodes, 1000 parameters, no work | median | mean | rounds |\n|---|---:|---:|---:|")
    own = alone(machines, place / "alone")
    for name, rounds in (("Flower's FedAvg", flower), ("fedsim artemis", fedsim), ("fedsim without Flower", own)):
        each = [one.seconds for one in rounds]
        print(f"| {name} | {statistics.median(each):.3f} | {statistics.mean(each):.3f} | {len(each)} |")
    for name, of in (("median", statistics.median), ("mean", statistics.mean)):
        print(f"\n{name}: {of([one.seconds for one in fedsim]) / of([one.seconds for one in flower]):.2f} of Flower's")


def alone(machines: Deployment, folder: Path) -> list[Round]:
    """The same apps, relays and workers, with neither Flower's polls nor a process a message: fedsim's own share."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    experiment = Experiment.of(**TRIVIAL, rounds=12)
    config: dict[str, Any] = {"experiment": experiment.toml(), "folder": str(folder)}
    workers: list[Any] = [{"worker": f"unix:{socket}"} for socket in machines.sockets]
    with watched(folder / "ledger.csv") as instants:
        grid = InProcessGrid(client_app, config, len(workers), config=workers)
        server_app(grid, Context(1, SERVER, {}, RecordDict(), config))
    return rounds_between(instants)


def bytes_by_layer(machines: Deployment, place: Path) -> None:
    """Artemis with half of six clients."""
    tables = TRIVIAL | {"data": TRIVIAL["data"] | {"clients": 6}, "participation": {"scheme": "bernoulli", "p": 0.5}}
    folder = place / "layers"
    rounds = played(machines, tables | {"rounds": 6}, folder)
    note_sockets(machines.federation, rounds, folder)
    rest = idle(machines.federation)
    print("| artemis p=.5, rounds 2 to 6 | messages | payload | frames | Flower messages | socket | idle polls |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    lasted = len(machines.federation.proxies) * (rounds[-1].ended - rounds[0].began)
    for name, way, polls in zip(("up", "down"), layers(folder), (rest.up, rest.down), strict=True):
        print(f"| {name}, bytes | {way.message_count} | {way.payload} | {way.frames} | {way.messages} ", end="")
        print(f"| {way.sockets} | {polls * lasted:.0f} |")
        each = [n / way.message_count for n in (way.payload, way.frames, way.messages, way.sockets, polls * lasted)]
        print(f"| {name}, a message | 1 | {' | '.join(f'{n:.0f}' for n in each)} |")


def bytes_of_a_million(machines: Deployment, place: Path) -> None:
    """A network of a million parameters on real sockets, rounds after the first (which brings everybody the model)."""
    found: list[tuple[str, Socket]] = []
    for name, shapes in (("Flower FedAvg, one array", ONE_ARRAY), ("Flower FedAvg, four arrays", LAYERS)):
        found.append((name, sockets(machines.federation, play_fedavg(machines.federation, shapes, 4)[1:])))
    for levels in (1, 16, 1000):
        tables = MILLION | {"uplink": {"levels": levels}, "downlink": {"levels": levels}}
        rounds = played(machines, tables, place / f"million-{levels}")
        found.append((f"fedsim artemis, {levels} levels", sockets(machines.federation, rounds)))
    prepared = prepare(Experiment.of(**MILLION))
    print(f"| {prepared.task.dim} parameters: socket bytes a client and round | up | down | times fewer than FedAvg |")
    print("|---|---:|---:|---:|")
    for name, bytes in found:
        print(f"| {name} | {bytes.up:,.0f} | {bytes.down:,.0f} | {found[0][1].both / bytes.both:.1f} |")


def played(machines: Deployment, tables: dict[str, Any], folder: Path) -> list[Round]:
    """The rounds of a deployed experiment, without its first."""
    with watched(folder / "ledger.csv") as instants:
        machines.run(Experiment.of(**tables), folder)
    return rounds_between(instants)


TABLES: dict[str, Callable[[Deployment, Path], None]] = {
    "seconds": seconds,
    "layers": bytes_by_layer,
    "sockets": bytes_of_a_million,
}


def main(chosen: Sequence[str]) -> None:
    """Print the tables that are named, or all."""
    if not set(chosen) <= {*TABLES, "network"}:
        sys.exit(f"{__doc__}; found {' '.join(chosen)}")
    if "network" in chosen:
        with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
            network(Path(folder))
    if chosen and not set(chosen) & TABLES.keys():
        return
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder, deployment(Path(folder) / "f", proxied=True) as made:
        for name in [one for one in chosen if one in TABLES] or TABLES:
            TABLES[name](made, Path(folder))
            print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
