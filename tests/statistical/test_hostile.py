"""Hostile minorities that pass the guard: where ``server.aggregate`` and ``server.clip`` end under them.

    python -m tests.statistical.test_hostile [SEEDS]      # the table of all rules, attacks and partitions

The reference task is the default experiment: softmax regression on digits, 100 clients with Dirichlet(0.3) or iid data,
20 a round, 1-level quantization both ways. The loss gap is the training loss over all samples after 400 rounds minus
its minimum, which is 0 here; the figures are its ratio, with 20 hostile clients, to that of the default run without any
(the plain mean of PP2). The price is the bytes to the final loss of that default run, over its own, both evaluated
every 5 rounds, without hostile clients. With the other sign ALIE makes training faster; with its authors' z for 20 of
100 clients, 0.29, it does little.
"""

from __future__ import annotations

import math
import sys
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from fedsim.errors import DivergedError
from fedsim.experiment import Experiment
from fedsim.simulation.player import Simulation
from fedsim.simulation.run import Result, advance
from fedsim.simulation.setup import prepare
from tests.hostile import Attack, alie, collude, flip, infiltrated

PARTITIONS: dict[str, dict[str, Any]] = {
    "non-iid": {"scheme": "dirichlet", "clients": 100, "alpha": 0.3},
    "iid": {"scheme": "iid", "clients": 100},
}
UNIFORM = {"memory": "pp1", "weights": "uniform"}
EXACT: dict[str, Any] = {"algorithm": "bi-qsgd", "uplink": {"compressor": "identity"}}
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "clip = 1": {"server": UNIFORM | {"clip": 1.0}},
    "geometric-median": {"server": UNIFORM | {"aggregate": "geometric-median"}},
    "median, plain uplink": EXACT | {"server": {"weights": "uniform", "aggregate": "median"}},
    "trimmed, plain uplink": EXACT | {"server": {"weights": "uniform", "aggregate": "trimmed-mean", "trim": 0.2}},
}
ATTACKS: dict[str, Attack] = {
    "flip 1": flip(1.0),
    "flip 3": flip(3.0),
    "flip 10": flip(10.0),
    "alie 1.5": alie(1.5),
    "collude 1": collude(1.0),
    "collude 10": collude(10.0),
}
SHARE, BOUND, PRICE = 0.2, 2.0, 1.05


def experiment(partition: str, rule: str, seed: int, rounds: int = 400, every: int = 400) -> Experiment:
    tables = {"partition": PARTITIONS[partition], "seed": seed, "rounds": rounds, "run": {"evaluate_every": every}}
    return Experiment.of(**tables, **RULES[rule])


def played(given: Experiment, attack: Attack | None = None, target: float | None = None) -> Result:
    with closing(prepare(given)) as setup:
        peopled = setup if attack is None else infiltrated(setup, attack, SHARE, given.seed)
        return advance(Simulation(peopled), None, target=target)


def loss(given: Experiment, attack: Attack | None) -> float:
    """Infinite where the run diverged."""
    try:
        return played(given, attack).loss
    except DivergedError:
        return math.inf


def usual(partition: str, seed: int) -> Result:
    """The default run without hostile clients."""
    return played(experiment(partition, "mean", seed, every=5))


def price(partition: str, rule: str, default: Result) -> float:
    """Bytes to the default run's final loss, over its own; infinite where 800 rounds do not reach it."""
    given = experiment(partition, rule, default.experiment.seed, rounds=800, every=5)
    found = played(given, target=default.loss)
    if found.loss > default.loss:
        return math.inf
    needed = next(metrics for metrics in default.metrics if metrics["loss"] <= default.loss)
    return _bytes(found.metrics[-1]) / _bytes(needed)


def _bytes(metrics: dict[str, Any]) -> float:
    return float(metrics["up_bytes"] + metrics["down_bytes"])


def gaps(partition: str, rule: str, defaults: list[Result]) -> dict[str, list[float]]:
    """Attack, or "none" -> its figure, default run by default run."""
    return {
        name: [loss(experiment(partition, rule, one.experiment.seed), attack) / one.loss for one in defaults]
        for name, attack in {"none": None, **ATTACKS}.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("partition", PARTITIONS)
def test_geometric_medians_hold_against_a_fifth(partition: str) -> None:
    """The gap is at most twice the clean one in each of 10 seeds."""
    found = gaps(partition, "geometric-median", [usual(partition, seed) for seed in range(10)])
    for name, figures in found.items():
        print(f"{partition}: {name}: {np.median(figures):.2f} (largest {max(figures):.2f})")
    assert max(map(max, found.values())) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    "partition",
    ["iid", pytest.param("non-iid", marks=pytest.mark.xfail(strict=True, reason="7.5 %, half of it for PP1, uniform"))],
)
def test_geometric_medians_cost_at_most_five_percent(partition: str) -> None:
    """In the median of 10 seeds."""
    prices = [price(partition, "geometric-median", usual(partition, seed)) for seed in range(10)]
    print(f"{partition}: price {np.median(prices):.3f} (largest {max(prices):.3f})")
    assert np.median(prices) <= PRICE


def test_it_holds_where_the_mean_does_not() -> None:
    """The attack is one: the plain mean ends ten times above a run without it, 100 rounds long."""
    mean, robust = (experiment("iid", rule, 0, rounds=100, every=100) for rule in ("mean", "geometric-median"))
    clean = loss(mean, None)
    assert loss(mean, flip(10.0)) > 10 * clean
    assert loss(robust, flip(10.0)) < BOUND * clean


def main(seeds: int) -> None:
    print("| partition | rule | none |", " | ".join(ATTACKS), "| price |")
    print("|---|---|" + "---:|" * (len(ATTACKS) + 2))
    for partition in PARTITIONS:
        defaults = [usual(partition, seed) for seed in range(seeds)]
        for rule in RULES:
            found = gaps(partition, rule, defaults)
            found["price"] = [price(partition, rule, one) for one in defaults]
            cells = [f"{np.median(cell):.3g} ({max(cell):.3g})" for cell in found.values()]
            print(f"| {partition} | {rule} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
