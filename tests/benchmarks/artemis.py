"""What compression costs: rounds of artemis beside uncompressed ones, interleaved, and where a round's time goes.

Both ways quantized with s = 1 and memories, exact code lengths counted; clients and local work are the workloads'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from fedsim import Experiment
from fedsim.algorithms import artemis
from fedsim.algorithms.method import Downlink, Uplink
from fedsim.compression import Quantize
from fedsim.simulation import engine
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import State, initial_state
from tests.benchmarks.peers.problem import experiment

CASES = {"lr10": 150, "lr100": 80, "mlp10": 20, "mlp100": 6, "cnn10": 2}
"""Rounds of each."""

PARTS: tuple[tuple[Any, str], ...] = (
    (Setup, "cohort"),
    (engine, "deliver"),
    (Setup, "solve"),
    (engine, "send_uploads"),
    (artemis, "absorb"),
    (engine, "update_bytes"),
)


def play(case: str) -> None:
    """Print the table of one workload."""
    plain = experiment(case, CASES[case])
    compressed = replace(plain, uplink=Uplink(Quantize(1), memory=True), downlink=Downlink(Quantize(1)))
    played = {"uncompressed": _begin(plain), "artemis": _begin(compressed)}
    best = {name: [float("inf")] * (len(PARTS) + 1) for name in played}
    for t in range(CASES[case]):
        for name, (setup, state) in played.items():
            with _timed(PARTS) as spent:
                began = time.perf_counter()
                engine.play(setup, state)
                whole = time.perf_counter() - began
            if t:
                found = [whole, *(spent[part] for _, part in PARTS)]
                best[name] = [min(old, new) for old, new in zip(best[name], found, strict=True)]
    print(f"{case}: best of {CASES[case]} rounds, ms")
    print(f"  {'':14}{'round':>9}" + "".join(f"{part:>14}" for _, part in PARTS))
    for name, times in best.items():
        print(f"  {name:14}{1e3 * times[0]:9.3f}" + "".join(f"{1e3 * part:14.3f}" for part in times[1:]))
    print(f"  artemis / uncompressed = {best['artemis'][0] / best['uncompressed'][0]:.2f}", flush=True)
    for setup, _ in played.values():
        setup.close()


def _begin(given: Experiment) -> tuple[Setup, State]:
    setup = prepare(given)
    return setup, initial_state(setup)


@contextmanager
def _timed(parts: tuple[tuple[Any, str], ...]) -> Iterator[dict[str, float]]:
    """Seconds spent in each part while inside."""
    spent = {name: 0.0 for _, name in parts}
    whole = [(owner, name, getattr(owner, name)) for owner, name in parts]

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = function(*given, **named)
            spent[name] += time.perf_counter() - began
            return found

        return call

    for owner, name, function in whole:
        setattr(owner, name, clocked(name, function))
    try:
        yield spent
    finally:
        for owner, name, function in whole:
            setattr(owner, name, function)
