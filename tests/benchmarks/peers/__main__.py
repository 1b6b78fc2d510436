"""FedAvg rounds of fedsim beside those of its peers, on the same arithmetic, interleaved.

Every engine plays the same rounds from the same parameters: same cohorts, same batches in stored order, one local epoch
of plain SGD, weights n_k, float32, one thread a worker, data in memory.
fedsim's rounds also count the bytes of every message.
After each block of a peer fedsim plays its own, and the best rounds of both are compared, because other load only adds.
The final parameters must agree, which is the proof that the work was the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.peers.problem import Played, export, fedsim_rounds
from tests.benchmarks.peers.table import Pair, table
from tests.benchmarks.peers.venvs import PEERS, MissingError, python_of, run

ROUNDS = {"lr10": 20, "lr100": 8, "mlp10": 8, "mlp100": 4, "cnn10": 3, "cnn100": 2}
LIMIT = 300.0
"""Seconds that a block of a peer may take, its start included."""


def play(case: str, pythons: dict[str, Path], rounds: int, passes: int, place: Path) -> None:
    """Print the table of one workload."""
    problem = place / f"{case}.npz"
    export(case, rounds, problem)
    pairs = []
    working = [(name, variant) for name in pythons for variant in PEERS[name].variants]
    for _ in range(passes):
        for name, variant in list(working):
            result = place / f"{name}.npy"
            try:
                said = run(pythons[name], name, variant, problem, result, LIMIT)
            except MissingError as error:
                print(f"{case}: {error}", flush=True)
                working.remove((name, variant))
                continue
            peer = Played(said["peer"], said["setting"], said["seconds"], np.load(result))
            pairs.append(Pair(peer, fedsim_rounds(case, rounds)))
    print(table(case, pairs) + "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=ROUNDS, default=["lr10", "lr100", "mlp10", "mlp100", "cnn10"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "fedsim-peers", help="environments")
    parser.add_argument("--rounds", type=int, default=0, help="of a block; 0: by the workload")
    parser.add_argument("--passes", type=int, default=2, help="blocks of every engine")
    options = parser.parse_args()
    pythons = {}
    for name in options.peers:
        try:
            pythons[name] = python_of(options.folder.resolve(), name)
        except MissingError as error:
            print(error, flush=True)
    with tempfile.TemporaryDirectory() as place:
        for case in options.cases:
            play(case, pythons, options.rounds or ROUNDS[case], options.passes, Path(place))


if __name__ == "__main__":
    sys.exit(main())
