"""What compression costs: rounds of artemis beside uncompressed ones, interleaved, and where a round's time goes.

Both ways quantized with s = 1 and memories, exact code lengths counted; clients and local work are the workloads'. The
server's step is small, as with s = 1 a million coordinates would diverge. Every client's memory is written once before:
what the system takes for its first pages is not a round's, and stands in a line of its own.
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

CASES = {"lr10": 150, "lr100": 80, "mlp10": 40, "mlp100": 10, "cnn10": 5}
"""Rounds of each."""

PARTS: tuple[tuple[Any, str], ...] = (
    (Setup, "cohort"),
    (engine, "bring"),
    (Setup, "solve"),
    (engine, "send_uploads"),
    (artemis, "absorb"),
    (engine, "update_bytes"),
)


def play(case: str) -> None:
    """Print the table of one workload."""
    plain = experiment(case, CASES[case])
    plain = replace(plain, server=replace(plain.server, step=1e-4))
    compressed = replace(plain, uplink=Uplink(Quantize(1), memory=True), downlink=Downlink(Quantize(1)))
    played = {"uncompressed": _begin(plain), "artemis": _begin(compressed)}
    rows = played["artemis"][1].store.memory
    assert rows is not None
    began = time.perf_counter()
    rows.dense.zero_()
    first = (time.perf_counter() - began) / len(rows.dense)
    best = {name: [float("inf")] * (len(PARTS) + 1) for name in played}
    for t in range(CASES[case]):
        for name, (setup, state) in played.items():
            with timed(PARTS) as spent:
                began = time.perf_counter()
                engine.play(setup, state)
                whole = time.perf_counter() - began
            if t:
                found = [whole, *(spent[part] for _, part in PARTS)]
                best[name] = [min(old, new) for old, new in zip(best[name], found, strict=True)]
    print(f"{case}: best of {CASES[case]} rounds, ms and % of the round")
    print(f"  {'':14}{'round':>9}" + "".join(f"{part:>20}" for _, part in PARTS) + f"{'rest':>20}")
    for name, (whole, *parts) in best.items():
        parts.append(whole - sum(parts))
        shares = (f"{1e3 * part:12.3f} {100 * part / whole:5.1f} %" for part in parts)
        print(f"  {name:14}{1e3 * whole:9.3f}" + "".join(shares))
    print(f"  artemis / uncompressed = {best['artemis'][0] / best['uncompressed'][0]:.2f}")
    print(f"  a client's memory is written the first time in {1e3 * first:.3f} ms", flush=True)
    for setup, _ in played.values():
        setup.close()


def _begin(given: Experiment) -> tuple[Setup, State]:
    setup = prepare(given)
    return setup, initial_state(setup)


@contextmanager
def timed(parts: tuple[tuple[Any, str], ...]) -> Iterator[dict[str, float]]:
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
