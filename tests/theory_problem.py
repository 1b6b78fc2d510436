"""A small strongly convex federation, of which theorems and predictions are tried."""

from __future__ import annotations

from typing import Any

import fedsim
from fedsim.algorithms.theory import Noise, Problem

HALF = {"participation": {"scheme": "bernoulli", "p": 0.5}}
FULL = {"local": {"batch": 0}}


def small(algorithm: str, step: float | str = "theory", seed: int = 0, **tables: Any) -> fedsim.Experiment:
    """Least squares with label noise and l2 = 1/2, 6 clients of 20 samples, d = 5, batches of 5, all clients."""
    return fedsim.Experiment.of(
        **{
            "algorithm": algorithm,
            "seed": seed,
            "rounds": 2000,
            "data": {
                "source": "synthetic-linear",
                "clients": 6,
                "per_client": 20,
                "features": 4,
                "noise": 1.0,
                "noise_kind": "label",
            },
            "task": {"l2": 0.5},
            "local": {"batch": 5},
            "run": {"precision": "float64"},
            **tables,
            "server": {"step": step} | tables.get("server", {}),
        }
    )


PROBLEM = Problem(
    clients=4,
    share=0.25,
    probability=1.0,
    sampling=1.0,
    up=3.0,
    down=0.5,
    up_delta=0.19,
    down_delta=0.5,
    smoothness=1.0,
    client_smoothness=1.25,
    largest_smoothness=1.5,
    batch_smoothness=1.75,
    sample_smoothness=2.0,
    convexity=0.1,
    client_convexity=0.1,
    batches=1,
    full_gradient=False,
)
NOISE = Noise(client=0.3, batch=0.7)
