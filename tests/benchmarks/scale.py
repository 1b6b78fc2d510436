"""Rounds of large federations, each in a process of its own: registered clients cost nothing until they take part.

registered   artemis with memories, an MLP of 101,117 parameters, 100 of N clients a round, rows in memory or on disk
cohort       softmax regression, an epoch of reshuffling at each of 10,000 clients a round
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

ROUNDS = 30
TABLE = [("registered", n, rows) for n in (1_000, 1_000_000) for rows in ("memory", "disk")] + [
    ("cohort", 10_000, "memory")
]


def table() -> None:
    """Print a line a federation."""
    print(f"{'':12}{'clients':>10} {'rows':7}{'start s':>9}{'best ms':>9}{'median ms':>11}{'peak MiB':>10}")
    for name, clients, rows in TABLE:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", name, str(clients), rows], check=True)


def line(name: str, clients: int, rows: str) -> str:
    """Play one federation in this process."""
    before = time.perf_counter()
    from fedsim import Experiment
    from fedsim.simulation.engine import play
    from fedsim.simulation.setup import prepare
    from fedsim.simulation.state import initial_state

    if name == "registered":
        experiment = Experiment.of(
            algorithm="artemis",
            data={"source": "synthetic-logistic", "clients": clients, "per_client": 2},
            task={"kind": "mlp", "hidden": [315, 315]},
            participation={"scheme": "k-of-n", "k": 100},
            server={"step": 0.01},
            run={"rows": rows},
        )
    else:
        experiment = Experiment.of(
            algorithm="fed-rr",
            data={"source": "synthetic-logistic", "clients": clients, "per_client": 20},
            task={"kind": "softmax"},
            participation={"scheme": "full"},
            local={"step": 0.1},
        )
    setup = prepare(experiment)
    state, took = initial_state(setup), []
    start = time.perf_counter() - before
    for _ in range(ROUNDS):
        began = time.perf_counter()
        play(setup, state)
        took.append(1e3 * (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{name:12}{clients:10d} {rows:7}{start:9.2f}{min(took):9.1f}{sorted(took)[ROUNDS // 2]:11.1f}{peak:10.0f}"


if __name__ == "__main__":
    print(line(sys.argv[1], int(sys.argv[2]), sys.argv[3]), flush=True)
