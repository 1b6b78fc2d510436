"""Every order with every step-size rule along both directions, on one federation, with compression both ways.

Softmax regression on digits, 20 clients with Dirichlet(0.3) labels, all in every round: one pass of small batches at
each client, and the mean direction of the pass through artemis (quantized both ways, memories on the uplink). As that
direction is divided by the sum of the local steps, a rule changes how far clients drift from the server and which of
their batches weigh more, not how far the server goes.

    direction   gradient; or whitened, by the moments that the clients upload once (whitening.mode = "shared")
    harmonic    eta / (1 + k / 20) at step k of a client: mu = 1 / eta, so that it acts within a few hundred steps
    excess      log10(F - F*), F* the minimum of the training loss by Newton's method
    payload     bits up and down, of which moments; wire: bytes of all frames
    gradients   of samples, by all clients, probes of SALR included
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import fedsim
from fedsim import Experiment
from fedsim.ledger import Cost, Direction, Entry
from fedsim.simulation.setup import prepare
from tests.replication.measure import SMALLEST, minimum

ORDERS = ("with-replacement", "reshuffle", "shuffle-once", "incremental")
RULES = ("constant", "harmonic", "salr")
STEPS: dict[str, tuple[float | str, float | str]] = {"gradient": ("0.25/L", "8/L"), "whitened": (0.05, 1.0)}
"""direction -> (local.step, server.step)."""

ROUNDS, BATCH, LEVELS, L2, DECAY = 100, 16, 16, 0.01, 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; see the top of this file."""

    direction: str
    rule: str
    order: str
    loss: float
    excess: float
    accuracy: float
    payload: int
    moments: int
    wire: int
    gradients: int
    seconds: float


def experiment(order: str, rule: str, direction: str, rounds: int = ROUNDS) -> Experiment:
    """What a row runs."""
    local, server = STEPS[direction]
    return Experiment.of(
        algorithm="artemis",
        rounds=rounds,
        data={"source": "digits"},
        partition={"scheme": "dirichlet", "clients": 20, "alpha": 0.3},
        participation={"scheme": "full"},
        task={"kind": "softmax", "l2": L2},
        local={"epochs": 1, "batch": BATCH, "order": order, "step": local},
        rate={"rule": rule} | ({"mu": 1 / first_step(direction), "factor": DECAY} if rule == "harmonic" else {}),
        whitening={"mode": "shared" if direction == "whitened" else "off"},
        uplink={"levels": LEVELS},
        downlink={"levels": LEVELS},
        server={"step": server},
        run={"evaluate_every": rounds},
    )


@cache
def first_step(direction: str) -> float:
    """local.step as a number."""
    return prepare(experiment(ORDERS[0], RULES[0], direction)).plan.step


def row(order: str, rule: str, direction: str, rounds: int = ROUNDS) -> Row:
    """Run and measure."""
    wanted = experiment(order, rule, direction, rounds)
    began = time.monotonic()
    result = fedsim.run(wanted)
    seconds, last = time.monotonic() - began, result.metrics[-1]
    moments = (result.ledger.totals.get((way, Entry.MOMENTS), Cost()) for way in Direction)
    return Row(
        direction,
        rule,
        order,
        loss=last["loss"],
        excess=math.log10(max(last["loss"] - minimum(wanted), SMALLEST)),
        accuracy=last["test_accuracy"],
        payload=last["payload_bits"],
        moments=sum(cost.payload_bits for cost in moments),
        wire=last["up_bytes"] + last["down_bytes"],
        gradients=last["gradients"],
        seconds=seconds,
    )


def rows(rounds: int = ROUNDS) -> Iterator[Row]:
    """All 24."""
    for direction, rule, order in product(STEPS, RULES, ORDERS):
        yield row(order, rule, direction, rounds)


def table(rounds: int = ROUNDS) -> int:
    """Print the rows. Returns 0: nothing is published that could be missed."""
    print(
        f"{rounds} rounds, batches of {BATCH}, {LEVELS} levels both ways, l2 = {L2:g}; "
        + "; ".join(f"{name}: local.step {local}, server.step {server}" for name, (local, server) in STEPS.items())
    )
    print(
        f"{'direction':10s} {'rule':9s} {'order':17s} {'loss':>8s} {'excess':>7s} {'accuracy':>9s} "
        f"{'payload bits':>13s} {'moments':>9s} {'wire bytes':>11s} {'gradients':>10s} {'seconds':>8s}"
    )
    for found in rows(rounds):
        print(
            f"{found.direction:10s} {found.rule:9s} {found.order:17s} {found.loss:8.5f} {found.excess:7.2f} "
            f"{found.accuracy:9.4f} {found.payload:13d} {found.moments:9d} {found.wire:11d} {found.gradients:10d} "
            f"{found.seconds:8.1f}",
            flush=True,
        )
    return 0
