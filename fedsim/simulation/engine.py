"""One round of a federation in one process: the calls a server and its clients make, and what their messages cost.

cohort      who takes part
bring       each client receives the updates it missed, or the whole model where that is shorter, or its own message
whiten      where features are whitened together and it is time: moments up, pooled moments down
measure     where the server's step follows the sharpness and it is time: one number a client up
solve       each client computes its direction from the model
deadline    where rounds have one and time is simulated: whose upload will not arrive is as if it were lost
upload      compress and send; the server goes on with what arrived
absorb      memories, average, compressed update, step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients, Cohort
from fedsim.algorithms.method import Method
from fedsim.algorithms.whitening import Mixing
from fedsim.compression import Identity, Received, send
from fedsim.errors import DivergedError
from fedsim.ledger import Entry, Lines
from fedsim.randomness import Purpose
from fedsim.simulation import deadline, sharpness, whitening
from fedsim.simulation.downlink import bring
from fedsim.simulation.exchange import counted, exchange, update_bytes, uplink_lines
from fedsim.simulation.setup import Setup
from fedsim.simulation.spread import spread
from fedsim.simulation.state import State
from fedsim.wire.frame import Kind


@dataclass(frozen=True, slots=True)
class Round:
    """What happened. round: number, from 0; clients: cohort size; loss: the cohort's mean at the round's start."""

    round: int
    clients: int
    loss: float | None
    lines: Sequence[Lines]


def play(setup: Setup, state: State) -> Round:
    """Advance ``state`` by one round. Raises DivergedError, naming the round, when something stops being finite."""
    t = state.server.round
    try:
        return _play(setup, state, t, setup.step_of(t))
    except DivergedError as error:
        raise DivergedError(f"round {t}: {error}") from None


def _play(setup: Setup, state: State, t: int, step: float) -> Round:
    cohort = setup.cohort(t)
    seen = state.store.seen[cohort.clients.cpu().numpy()]
    lines, models = bring(setup, state, cohort)
    losses, received = None, None
    state.spread = {}
    if whitening.due(setup, state, cohort):
        lines += whitening.refresh(setup, state, cohort)
    method = whitening.method_of(setup, state)
    if sharpness.due(setup, cohort, t):
        lines.append(sharpness.measure(setup, state, cohort))
    step = sharpness.scaled(state, step)
    if len(cohort.clients):
        solution = setup.solve(
            whitening.plan_of(setup, state),
            models,
            cohort.clients,
            setup.stream(Purpose.BATCH, t),
            state.store.solvers,
        )
        losses = solution.losses
        state.gradients += int(solution.gradients.sum())
        if setup.clock is not None and setup.clock.deadline:
            cohort, solution = deadline.kept(setup, state, cohort, seen, (lines, solution))
    if len(cohort.clients):
        directions = solution.direction
        if isinstance(setup.experiment.whitening, Mixing):
            directions, sent = whitening.mix(setup, state, cohort, solution)
            method = whitening.method_of(setup, state)
            lines.append(sent)
        if setup.evaluated(t + 1):
            state.spread = spread(directions, state.store.memory, cohort.clients)
        in_full = setup.synchronised(t)
        if in_full or (t == 0 and setup.experiment.uplink.initial == "gradient"):
            lines.append(send_memories(setup, state, cohort, directions))
        if not in_full:
            received, sent = send_uploads(setup, state, cohort, directions, method)
            lines.append(sent)
        state.store.solvers |= zip(cohort.clients.tolist(), solution.memories, strict=True)
    noise = setup.stream(Purpose.DOWNLINK, t)
    state.server, update = artemis.absorb(method, state.server, received, cohort, step, noise)
    if not _finite(state.server.model):
        raise DivergedError(f"the model is not finite with server.step = {step:.4g}; use a smaller step")
    own = 0 if update is None else update_bytes(setup, update)  # each has its own: nobody will replay this one
    state.updates.add(own + sharpness.step_bytes(setup))
    return Round(t, len(cohort.clients), None if losses is None else float(losses.cpu().numpy().mean()), lines)


def _finite(model: Tensor) -> bool:
    """Whether every number is. A sum is finite only of finite numbers, and the quickest look at all of them."""
    return math.isfinite(float(model.sum())) or bool(torch.isfinite(model).all())


def send_memories(setup: Setup, state: State, cohort: Cohort, directions: Tensor) -> Lines:
    """Every client uploads its direction in full: it becomes the client's memory, at both ends."""
    t, exact = state.server.round, Identity("float64" if directions.dtype == torch.float64 else "float32")
    payload = exact.compress(directions, setup.stream(Purpose.UPLINK, t), cohort.clients)
    received, lengths = exchange(setup, state, cohort, payload, Kind.MEMORY)
    state.server = artemis.remember(state.server, cohort, exact.decompress(received, directions.dtype))
    state.store.put(cohort.clients, Clients(memory=directions, last=directions))
    return uplink_lines(t, Entry.MEMORY, cohort, lengths, 32.0 * setup.task.dim)


def send_uploads(
    setup: Setup, state: State, cohort: Cohort, directions: Tensor, method: Method
) -> tuple[Received, Lines]:
    """The cohort's compressed directions, as the server decoded them. method: in the coordinates of the round."""
    t = state.server.round
    noise, received = setup.stream(Purpose.UPLINK, t), _in_place(setup, state, cohort, directions, method)
    if received is not None:
        lengths = counted(state, cohort, received)
    else:
        rows = state.store.take(cohort.clients)
        payload, rows = artemis.upload(method, rows, directions, cohort.clients, setup.step_of(t), noise)
        received, lengths = exchange(setup, state, cohort, payload, Kind.UPLOAD)
        state.store.put(cohort.clients, rows)
    message_bits, shared_bits = setup.method.uplink.compressor.formula_bits(setup.task.dim)
    formula = message_bits + shared_bits / len(cohort.clients)
    return received, uplink_lines(t, Entry.UPLOAD, cohort, lengths, formula)


def _in_place(setup: Setup, state: State, cohort: Cohort, directions: Tensor, method: Method) -> Received | None:
    """``artemis.upload`` where the memories lie, for messages that cannot be lost; None where that is not quicker."""
    store, noise = state.store, setup.stream(Purpose.UPLINK, state.server.round)
    exact = setup.experiment.run.wire == "real" or state.server.memories is not None
    if store.memory is None or store.error is not None or store.last is not None or exact:
        return None
    rows = store.memory.dense
    payload = send(method.up, directions, rows, method.alpha, noise, cohort.clients, setup.threads)
    store.memory.written()
    return payload
