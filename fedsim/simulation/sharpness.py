"""SALR at the server: the cohort uploads how sharp the loss is where it stands, and the server scales its own step.

    S_i      sharpness at client i: of the model it received, on the first batch of its round; one float64 up
    S        median of the cohort's S_i
    factor   clip(S / median of all S so far, floor, cap):  gamma_t = gamma factor, until the next measurement

A client that replays updates needs the factor of each, so an update carries it: ``STEP_BYTES`` more. See
``fedsim.solvers.rate`` for the sharpness itself.
"""

from __future__ import annotations

import numpy as np
import torch

from fedsim.algorithms.artemis import Cohort
from fedsim.compression import Identity, Values
from fedsim.ledger import Entry, Lines
from fedsim.randomness import Purpose
from fedsim.simulation.exchange import exchange, framed, uplink_lines
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State
from fedsim.solvers.local import first_batch
from fedsim.solvers.memory import Memory
from fedsim.solvers.rate import Here, Salr
from fedsim.wire.frame import Kind

STEP_BYTES = 8
"""A float64."""

FORMULA_BITS = 32.0


def rule(setup: Setup) -> Salr | None:
    """The rule, if the server's step follows the sharpness."""
    rate = setup.experiment.rate
    return rate if isinstance(rate, Salr) and rate.level == "server" else None


def due(setup: Setup, cohort: Cohort, round: int) -> bool:
    """Whether the cohort measures in this round."""
    salr = rule(setup)
    return salr is not None and len(cohort.clients) > 0 and round % salr.period == 0


def step_bytes(setup: Setup) -> int:
    """What an update carries beside its payload."""
    return STEP_BYTES if rule(setup) else 0


def scaled(state: State, step: float) -> float:
    """The server's step in this round; as it is before the first measurement."""
    return step * float(state.rate["factor"]) if state.rate else step


def measure(setup: Setup, state: State, cohort: Cohort) -> Lines:
    """Measure at every client of the cohort, upload, and scale the server's step from this round on."""
    salr, t, model = rule(setup), state.server.round, state.server.view
    assert salr is not None
    found = []
    for client in cohort.clients.tolist():
        memory = state.store.solvers.get(client, Memory())
        stream = setup.stream(Purpose.BATCH, t)
        batch = first_batch(setup.federation, client, setup.plan, stream, model.dtype, memory)
        value, cost = salr.measure(Here(setup.task, model[None].clone(), batch))
        state.gradients += cost
        found.append(value)
    payload = Identity("float64").compress(torch.stack(found)[:, None], setup.stream(Purpose.UPLINK, t), cohort.clients)
    received, lengths = exchange(setup, state, cohort, payload, Kind.SHARPNESS)
    assert isinstance(received, Values)
    state.rate = salr.scale(received.values[:, 0].cpu().quantile(0.5), state.rate)
    return uplink_lines(t, Entry.SHARPNESS, cohort, lengths, FORMULA_BITS)


def expected(setup: Setup, cohort: Cohort, round: int) -> list[Lines]:
    """The ledger's lines of a round, without measuring."""
    if not due(setup, cohort, round):
        return []
    lengths = framed(np.full(len(cohort.clients), STEP_BYTES))
    return [uplink_lines(round, Entry.SHARPNESS, cohort, lengths, FORMULA_BITS)]
