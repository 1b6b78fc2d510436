"""Where an uncompressed round goes, in percent: tensor operations by kind, the compiled loop, and what is left.

In one process, so that everything can be seen: a workload that would be spread over workers is solved by the same
groups here. What is left is Python and the making of tensors; the profiler makes that look larger than it is.
"""

from __future__ import annotations

import time
from contextlib import closing

import msgspec
from torch.profiler import ProfilerActivity, profile

from fedsim.kernels import epoch
from fedsim.simulation import engine
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state
from tests.benchmarks.artemis import timed
from tests.benchmarks.peers.problem import experiment

CASES = {"lr10": 60, "lr100": 30, "mlp10": 6, "mlp100": 2, "cnn10": 1}
"""Rounds that are profiled."""

KINDS = {
    "products": ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"),
    "convolutions": ("mkldnn_convolution", "convolution_backward"),
    "copies": ("copy_", "index_select", "index", "index_copy_", "cat"),
    "ReLU, pooling, softmax": (
        *("relu", "relu_", "clamp_min", "clamp_min_", "threshold_backward", "_softmax", "_log_softmax"),
        *("max_pool2d_with_indices", "max_pool2d_with_indices_backward"),
    ),
}
"""Names of operations, by kind."""

OTHER = "other tensor operations"


def play(case: str) -> None:
    """Print one workload's shares, largest first."""
    given = experiment(case, CASES[case] + 1)
    with closing(prepare(given)) as setup:
        choice = setup.choice
    run = {"executor": "sequential" if choice.chunk == 1 else "stacked", "chunk": choice.chunk}
    with closing(prepare(msgspec.structs.replace(given, run=msgspec.structs.replace(given.run, **run)))) as setup:
        state = initial_state(setup)
        engine.play(setup, state)
        with profile(activities=[ProfilerActivity.CPU]) as seen, timed(((epoch, "walk"),)) as spent:
            began = time.perf_counter()
            for _ in range(CASES[case]):
                engine.play(setup, state)
            whole = time.perf_counter() - began
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    found = {"compiled loop": spent["walk"]}
    for event in seen.key_averages():
        if event.key.startswith("aten::"):
            kind = kind_of.get(event.key, OTHER)
            found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    found["what is left"] = whole - sum(found.values())
    shares = sorted(((seconds / whole, name) for name, seconds in found.items() if seconds > 0), reverse=True)
    print(f"{case}: chunk {choice.chunk}, {1e3 * whole / CASES[case]:.2f} ms a round with the profiler on")
    print("  " + ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares), flush=True)
