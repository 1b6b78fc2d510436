"""The experiments behind the figures, as pure functions of a folder with the data and an algorithm's name.

Where the published code departs from what its paper suggests, its figures need the departure:
- L is the mean over the clients of the Frobenius norms of X'X, and the objective pools all samples.
- k in the step gamma / sqrt(k) counts rounds, not epochs; an epoch of batch 1 over 200 samples is 200 rounds.
- "100 epochs" plays 99, "400 iterations" plays 399, and F is taken before the last step: at w_398 and at w_19799.
- The memories start at the first gradients of the clients, where all of them take part.
- The points of the plane set come from a seeded generator, so they are known: see ``write_plane``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from fedsim import Experiment

CLIENTS = 20
PER_CLIENT = 200
"""Rows of each client in the synthetic sets."""

MEMORIES = ("sgd-mem", "diana", "artemis", "mcm", "rand-mcm", "dore")
"""Algorithms that keep memories."""

SHIFTS = 0.12968
"""Published minimum of the noisy linear set: the variance of its 20 shifts."""

POINTS, OWNERS = "plane.txt", "plane.clients.txt"

RIDGE, STOCHASTIC_STEP, STOCHASTIC_ROUNDS = 0.01, "1/L", 4000
"""The plateau of a constant step is a theorem for strongly convex F, and a9a alone is not: along its nearly flat
directions a run remembers its start. With a penalty of 0.01/2 ||w||^2 the squared distance fades by e every L / 0.02 =
660 rounds at the step 1/L, so the second half of 4000 rounds is the plateau. At 1/L the plateau of artemis, 10^-2.3,
still lies well below the start, 10^-0.5."""


def first_gradients(algorithm: str) -> dict[str, Any]:
    """Memories that start at the first gradients, in algorithms that have some."""
    return {"initial": "gradient"} if algorithm in MEMORIES else {}


def convex(algorithm: str, rounds: int, every: int, **tables: dict[str, Any]) -> Experiment:
    """What all of these share: float64, the pooled objective, and gamma as a multiple of the Frobenius 1/L."""
    server = {"smoothness": "frobenius", "weights": "pooled"} | tables.pop("server", {})
    run = {"precision": "float64", "evaluate_every": every, "checkpoint_every": 1000} | tables.pop("run", {})
    return Experiment.of(algorithm=algorithm, rounds=rounds, server=server, run=run, **tables)


def a9a(folder: Path, algorithm: str, step: str, rounds: int, **tables: dict[str, Any]) -> Experiment:
    """Logistic regression on a9a in its 20 published clusters: standardised features and a bias column, d = 124."""
    return convex(
        algorithm,
        rounds,
        max(1, rounds // 40),
        data={"source": "libsvm", "path": str(folder / "a9a.gz")},
        partition={"scheme": "clusters", "clients": CLIENTS, "file": str(folder / "a9a.clusters20.txt")},
        server={"step": step} | tables.pop("server", {}),
        **{"participation": {"scheme": "full"}, "uplink": first_gradients(algorithm), **tables},
    )


def a9a_half(folder: Path, algorithm: str, rounds: int = 1600, **server: Any) -> Experiment:
    """Each client takes part with p = 1/2, memories from zero, step 4/L; ``server`` chooses PP1 or paper_compat."""
    half = {"scheme": "bernoulli", "p": 0.5}
    return a9a(folder, algorithm, "4/L", rounds, participation=half, uplink={}, server=server)


def a9a_stochastic(folder: Path, algorithm: str) -> Experiment:
    """Batches of 128, and a penalty that makes F strongly convex: see ``RIDGE``."""
    return a9a(
        folder,
        algorithm,
        STOCHASTIC_STEP,
        STOCHASTIC_ROUNDS,
        task={"kind": "logistic", "l2": RIDGE},
        local={"batch": 128},
        run={"chunk": CLIENTS},
    )


def a9a_preserved(folder: Path, algorithm: str, epochs: int = 600) -> Experiment:
    """The setting of MCM's paper: 600 epochs of batch 50 at 1/L, an objective in which all clients weigh the same.

    An epoch is a mean client's samples: 32,561 / (20 x 50) rounds.
    """
    rounds = epochs * (32561 // (CLIENTS * 50))
    run = {"chunk": CLIENTS, "evaluate_every": max(1, rounds // 200)}
    return a9a(folder, algorithm, "1/L", rounds, local={"batch": 50}, server={"weights": "uniform"}, run=run)


def linear(algorithm: str, batch: int, noise: bool) -> Experiment:
    """The published least squares: full gradients (batch 0) at 1/L, or 100 epochs of batch 1 at 1/(L sqrt k)."""
    rounds, every = (399, 14) if batch == 0 else (99 * PER_CLIENT, PER_CLIENT)
    return convex(
        algorithm,
        rounds - 1,
        every,
        data={"source": "synthetic-linear"} | ({"noise_variance": SHIFTS} if noise else {"noise": 0.0}),
        uplink=first_gradients(algorithm),
        local={"batch": batch},
        server={"step": "1/L", "schedule": "inverse-sqrt" if batch else "constant"},
        run={"chunk": CLIENTS},
    )


def write_plane(folder: Path) -> None:
    """Write the published plane points as LibSVM text, and the client of each row, into an existing folder.

    The published code seeds numpy's legacy generator with 0 before it draws each client's points, so they are known to
    the last bit; the labels are drawn without a seed, here with seed 0.
    """
    points = np.random.RandomState(0).multivariate_normal(np.zeros(2), [[1, 0.6], [0.6, 1]], size=PER_CLIENT)
    coins = np.random.default_rng(0).random((CLIENTS, PER_CLIENT))
    lines = []
    for client in range(CLIENTS):
        mirrored = client % 2 == 0
        x = points * ([-1, 1] if mirrored else [1, 1])
        chances = expit(x @ ([10, -10] if mirrored else [10, 10]))
        for (a, b), positive in zip(x.tolist(), coins[client] < chances, strict=True):
            lines.append(f"{'+1' if positive else '-1'} 1:{a!r} 2:{b!r}\n")
    (folder / POINTS).write_text("".join(lines))
    (folder / OWNERS).write_text("".join(f"{i // PER_CLIENT}\n" for i in range(len(lines))))


def plane(folder: Path, algorithm: str) -> Experiment:
    """The published logistic regression in the plane, on ``write_plane``'s rows: 400 full gradients at 1/L."""
    return convex(
        algorithm,
        398,
        14,
        data={"source": "libsvm", "path": str(folder / POINTS), "standardise": False, "bias": False},
        partition={"scheme": "clusters", "clients": CLIENTS, "file": str(folder / OWNERS)},
        participation={"scheme": "full"},
        uplink=first_gradients(algorithm),
        server={"step": "1/L"},
        run={"chunk": CLIENTS},
    )
