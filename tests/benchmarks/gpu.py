"""The workloads on a GPU beside the CPU: milliseconds a round, best, uncompressed and under artemis; for who has one.

waits   what makes the host wait for the device inside local solving, as torch.cuda.set_sync_debug_mode reports it:
        "none" is what is wanted, because the host then prepares the next steps meanwhile
auto    the device that run.device = "auto" chooses
"""

from __future__ import annotations

import time

import torch
from msgspec.structs import replace

from fedsim import Experiment
from fedsim.algorithms.method import Downlink, Uplink
from fedsim.compression import Quantize
from fedsim.randomness import Purpose
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup, device_of, prepare
from fedsim.simulation.state import initial_state
from tests.benchmarks.peers.problem import experiment

CASES = {"lr10": 20, "lr100": 20, "mlp10": 10, "mlp100": 10, "cnn10": 3}
"""Rounds of each."""

DEVICES = ("cpu", "cuda")


def table() -> None:
    """Print a line for each workload and device; one clear line where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: skipped, torch sees no GPU here (torch.cuda.is_available() is False)")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; auto is {device_of('auto')}")
    print(f"{'':8}{'device':8}{'plain ms':>10}{'artemis ms':>12}{'ratio':>7}{'cpu / gpu':>11}  waits")
    for case, rounds in CASES.items():
        base: dict[str, float] = {}
        for device in DEVICES:
            plain = experiment(case, rounds)
            plain = replace(plain, run=replace(plain.run, device=device))
            compressed = replace(plain, uplink=Uplink(Quantize(1), memory=True), downlink=Downlink(Quantize(1)))
            base[device], waits = best_of(plain, rounds)
            other, _ = best_of(compressed, rounds)
            faster = f"{base['cpu'] / base[device]:11.2f}"
            print(f"{case:8}{device:8}{base[device]:10.2f}{other:12.2f}{other / base[device]:7.2f}{faster}  {waits}")


def best_of(given: Experiment, rounds: int) -> tuple[float, str]:
    """(milliseconds of the quickest round, what the host waits for in local solving)."""
    setup = prepare(given)
    try:
        state, took = initial_state(setup), []
        for _ in range(rounds):
            _synchronise(setup)
            before = time.perf_counter()
            play(setup, state)
            _synchronise(setup)
            took.append(1e3 * (time.perf_counter() - before))
        return min(took), waits_of(setup, state.server.model)
    finally:
        setup.close()


def waits_of(setup: Setup, model: torch.Tensor) -> str:
    """What the host waits for while a cohort solves, once everything has been made; "-" on a CPU."""
    if model.device.type != "cuda":
        return "-"
    cohort, stream = setup.cohort(0), setup.stream(Purpose.BATCH, 0)
    # Who takes part is known to the host before a round's work begins; here it is so already.
    clients = cohort.clients.cpu()
    models = model.expand(len(clients), -1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        setup.solve(setup.plan, models, clients, stream, {})
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _synchronise(setup: Setup) -> None:
    if setup.weights.device.type == "cuda":
        torch.cuda.synchronize()
