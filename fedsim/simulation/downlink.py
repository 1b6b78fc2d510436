"""What the clients of a round receive before they compute, and the models at which they then do."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.algorithms.artemis import Cohort
from fedsim.algorithms.downlink import address
from fedsim.ledger import Direction, Entry, Lines
from fedsim.randomness import Purpose
from fedsim.simulation import whitening
from fedsim.simulation.exchange import Lengths, message_bytes
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import NEVER, State
from fedsim.wire.frame import HEADER_BYTES


def bring(setup: Setup, state: State, cohort: Cohort) -> tuple[list[Lines], Tensor]:
    """Bring a cohort up to date: the ledger's lines, and the models at which its clients compute, float[n, d]."""
    n, model = len(cohort.clients), state.server.model
    if not setup.method.downlink.each:
        return deliver(setup, state, cohort), state.server.view.expand(n, -1)
    held_one = state.store.seen[cohort.clients.cpu().numpy()] != NEVER
    known = torch.from_numpy(np.flatnonzero(held_one)).to(model.device)  # places: a device would have to count a mask
    old, held = cohort.clients[known], model.expand(n, -1).clone()
    memories, lengths = held.clone(), np.zeros(0, np.int64)
    assert state.store.sent is not None
    if len(old):
        noise = setup.stream(Purpose.DOWNLINK, state.server.round)
        payload, models, after = address(setup.method, model, state.store.sent.take(old), old, noise)
        held[known], memories[known] = models, after
        lengths = message_bytes(setup, payload)
    state.store.sent.put(cohort.clients, memories)
    return own_lines(setup, state, cohort, lengths), held


def own_lines(setup: Setup, state: State, cohort: Cohort, lengths: NDArray[np.int64]) -> list[Lines]:
    """The ledger's lines where each client has its own message. lengths: bytes, int64, of those that held a model.

    A new client receives the whole model; one that was absent has missed nothing.
    """
    t, clients = state.server.round, cohort.clients.cpu().numpy()
    known = state.store.seen[clients] != NEVER
    state.store.seen[clients] = t
    lines = []
    if not known.all():
        lines.append(_model_lines(state, clients[~known], 1))
    if known.any():
        bits, shared = setup.method.downlink.compressor.formula_bits(setup.task.dim)
        formula = np.full(len(lengths), bits + shared)
        lines.append(_update_lines(t, clients[known], np.ones_like(lengths), formula, packed(lengths)))
    return lines


def packed(lengths: NDArray[np.int64]) -> Lengths:
    """Bytes of messages, int64[n], with those of a body of UPDATES that holds one of them."""
    return lengths, lengths + (np.frexp(np.maximum(lengths, 1))[1] + 6) // 7


def deliver(setup: Setup, state: State, cohort: Cohort) -> list[Lines]:
    """Bring the cohort to the current model: for each client the cheaper of its missed updates and the whole model.

    A client that replays applies each update with the step size of its round, which it knows from the experiment, and
    so holds the server's model bit for bit. Source: Artemis, Algorithm 1 (catch-up of absent devices).
    """
    t, clients = state.server.round, cohort.clients.cpu().numpy()
    seen = state.store.seen[clients]
    missed = np.where(seen == NEVER, 0, t - seen)
    payload, framed = state.updates.since(np.maximum(seen, 0))
    rows = _rows(setup, t)
    whole = rows * state.server.model.numel() * state.server.model.element_size()
    due = whitening.due(setup, state, cohort)
    lacking, each = whitening.catch_up(setup, state, clients)
    # To replay takes all moments that a client lacks; a whole model takes the newest, unless new ones follow at once.
    newest = np.zeros_like(lacking) if due else np.minimum(lacking, 1)
    replays = (seen != NEVER) & (framed + lacking * each <= whole + newest * each)
    moments = np.where(replays, lacking, newest)
    update_bits, shared_bits = setup.method.downlink.compressor.formula_bits(setup.task.dim)
    state.store.seen[clients] = t
    models, updates = clients[~replays], clients[replays]
    lines = []
    if len(models):
        lines.append(_model_lines(state, models, rows))
    if len(updates):
        if len(models):
            missed, payload, framed = missed[replays], payload[replays], framed[replays]
        formula = missed * (update_bits + shared_bits / setup.clients)
        lines.append(_update_lines(t, updates, missed, formula, (payload, framed)))
    if moments.any():
        lines.append(whitening.late_lines(setup, state, clients, moments))
    return lines


def _rows(setup: Setup, round: int) -> int:
    """Rows of a whole model: two with a downlink memory, unless the one tells the other.

    Before the first update the memory is the model, or zero; a memory of models of rate 1 is what clients hold.
    """
    memory = setup.method.downlink.memory
    return 1 if memory == "none" or round == 0 or (memory == "model" and setup.method.beta == 1) else 2


def _model_lines(state: State, clients: NDArray[np.int64], rows: int) -> Lines:
    """Whole models, of so many rows each."""
    numbers, octets = rows * state.server.model.numel(), state.server.model.element_size()
    return Lines(
        state.server.round,
        Direction.DOWN,
        Entry.MODEL,
        clients=clients,
        messages=np.ones_like(clients),
        formula_bits=np.full(len(clients), 32.0 * numbers),
        payload_bits=np.full(len(clients), 8 * octets * numbers),
        frame_bytes=np.full(len(clients), HEADER_BYTES + octets * numbers),
    )


def _update_lines(
    round: int,
    clients: NDArray[np.int64],
    messages: NDArray[np.int64],
    formula: NDArray[np.float64],
    lengths: Lengths,
) -> Lines:
    """Updates, ``messages`` of them a client. formula: bits; lengths: bytes of payloads, and of the frames' bodies."""
    payload, framed = lengths
    return Lines(
        round,
        Direction.DOWN,
        Entry.UPDATES,
        clients=clients,
        messages=messages,
        formula_bits=formula,
        payload_bits=8 * payload,
        frame_bytes=HEADER_BYTES + framed,
    )
