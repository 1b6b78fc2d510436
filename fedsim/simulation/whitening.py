"""The moments of whitening as messages: what clients upload, what the server pools and sends, and who holds it.

shared    at a refresh every client of the cohort uploads the moments of its samples, and receives the pooled ones.
          A client that was absent receives what it lacks: to replay updates, the moments under which they were made;
          with a whole model, the newest ones. In the round of a refresh the newest come after the pooling.
mixing    every client of a cohort uploads the moments of its last refresh; nothing comes down, as updates are steps.

A message is the lower triangle of each layer's A in the numbers of the model, so that both ends compute the same maps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.algorithms import whitening
from fedsim.algorithms.artemis import Cohort
from fedsim.algorithms.method import Method
from fedsim.algorithms.whitening import Along, Mixing, Shared
from fedsim.compression import Identity, Payload, Values
from fedsim.ledger import Direction, Entry, Lines
from fedsim.randomness import SERVER, Purpose
from fedsim.simulation.exchange import Lengths, exchange, framed, uplink_lines
from fedsim.simulation.setup import Setup, metric_of
from fedsim.simulation.state import Pooled, State
from fedsim.solvers.direction import direction_of
from fedsim.solvers.local import Plan, Solution
from fedsim.solvers.metric import Metric
from fedsim.tasks.layer import pack, packed
from fedsim.tasks.task import full_batch, portions
from fedsim.wire import coding
from fedsim.wire.frame import GENESIS, HEADER_BYTES, Frame, Kind, decode_frame, encode_frame

PORTION = 1024
"""Samples whose moments are computed at once."""


def due(setup: Setup, state: State, cohort: Cohort) -> bool:
    """Whether the moments are pooled in this round: refresh rounds after the last time, or when somebody is there."""
    options, pooled = setup.experiment.whitening, state.pooled
    if not isinstance(options, Shared) or not len(cohort.clients):
        return False
    return pooled is None or bool(options.refresh and state.server.round - pooled.made >= options.refresh)


def plan_of(setup: Setup, state: State) -> Plan:
    """How clients solve in this round."""
    if isinstance(setup.experiment.whitening, Shared) and state.pooled is not None and setup.plan.chunk == 1:
        return replace(setup.plan, direction=Along(direction_of(setup.plan.direction), state.pooled.metric))
    return setup.plan


def method_of(setup: Setup, state: State) -> Method:
    """The method in this round's coordinates."""
    if isinstance(setup.experiment.whitening, whitening.Off):
        return setup.method
    found = None if state.pooled is None else state.pooled.metric
    return Method(
        setup.method.uplink,
        setup.method.downlink,
        setup.method.server,
        setup.method.d,
        whitening.space(setup.experiment.whitening, found),
    )


def refresh(setup: Setup, state: State, cohort: Cohort) -> list[Lines]:
    """Pool the moments of the cohort at the current model, over the wire."""
    model = state.server.view
    rows = torch.stack([moments_of(setup, model, client) for client in cohort.clients.tolist()])
    lengths = _pool(setup, state, cohort, rows)
    sent = _broadcast(setup, state)
    state.store.held[cohort.clients.cpu().numpy()] = _count(state)
    return pooling_lines(setup, state, cohort, lengths, len(sent))


def mix(setup: Setup, state: State, cohort: Cohort, solution: Solution) -> tuple[Tensor, Lines]:
    """Upload each client's moments and pool them. Returns the directions times them, float[n, d]."""
    rows = torch.stack(
        [pack([memory.direction[f"moment.{i}"] for i in range(len(setup.whitened))]) for memory in solution.memories]
    )
    restored = [
        metric_of(setup, row).restore(direction[None])[0]
        for row, direction in zip(rows, solution.direction, strict=True)
    ]
    lengths = _pool(setup, state, cohort, rows)
    return torch.stack(restored), moment_lines(setup, state, cohort, lengths)


def moments_of(setup: Setup, model: Tensor, client: int) -> Tensor:
    """Packed moments of all samples of a client, float[k]."""
    shard, total = setup.federation.shard(client), model.new_zeros(packed(setup.whitened))
    for features, targets in portions(shard, PORTION):
        batch = full_batch(features, targets, model.dtype)
        found = pack(setup.task.moments(model[None], batch, setup.whitened))
        total = total + found * (features.shape[0] / len(shard))
    return total


def catch_up(setup: Setup, state: State, clients: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """(pooled moments that each client lacks, int64[n]; bytes of one)."""
    if not isinstance(setup.experiment.whitening, Shared):
        return np.zeros_like(clients), 0
    return _count(state) - state.store.held[clients], message_bytes(setup, state)


def late_lines(setup: Setup, state: State, clients: NDArray[np.int64], messages: NDArray[np.int64]) -> Lines:
    """Moments that a client lacks, in one frame each client; those without any have no line."""
    clients, messages = clients[messages > 0], messages[messages > 0]
    body = message_bytes(setup, state)
    state.store.held[clients] = _count(state)
    return Lines(
        round=state.server.round,
        direction=Direction.DOWN,
        kind=Entry.MOMENTS,
        clients=clients,
        messages=messages,
        formula_bits=messages * np.float64(32 * packed(setup.whitened)),
        payload_bits=8 * messages * body,
        frame_bytes=HEADER_BYTES + messages * body,
    )


def pooling_lines(setup: Setup, state: State, cohort: Cohort, lengths: Lengths, down: int) -> list[Lines]:
    """The ledger's lines of a refresh. down: bytes of the frame that each client of the cohort receives."""
    sent = moment_lines(setup, state, cohort, lengths)
    received = replace(
        sent,
        direction=Direction.DOWN,
        payload_bits=np.full_like(lengths[0], 8 * (down - HEADER_BYTES)),
        frame_bytes=np.full_like(lengths[0], down),
    )
    return [sent, received]


def moment_lines(setup: Setup, state: State, cohort: Cohort, lengths: Lengths) -> Lines:
    """The ledger's lines of uploaded moments."""
    return uplink_lines(state.server.round, Entry.MOMENTS, cohort, lengths, 32.0 * packed(setup.whitened))


def message_bytes(setup: Setup, state: State) -> int:
    """Bytes of the packed moments on the wire."""
    return packed(setup.whitened) * state.server.model.element_size()


def expected(setup: Setup, state: State, cohort: Cohort) -> list[Lines]:
    """The ledger's lines of a round, without computing a moment; the state counts on."""
    n, body = len(cohort.clients), message_bytes(setup, state)
    lengths = framed(np.full(n, body))
    if due(setup, state, cohort):
        state.pooled = Pooled(state.server.model[:0], state.server.round, _count(state) + 1, Metric(()))
        state.store.held[cohort.clients.cpu().numpy()] = _count(state)
        return pooling_lines(setup, state, cohort, lengths, HEADER_BYTES + body)
    if n and isinstance(setup.experiment.whitening, Mixing):
        return [moment_lines(setup, state, cohort, lengths)]
    return []


def _pool(setup: Setup, state: State, cohort: Cohort, rows: Tensor) -> Lengths:
    """Rows over the wire into the state."""
    payload = _exact(state).compress(rows, setup.stream(Purpose.UPLINK, state.server.round), cohort.clients)
    received, lengths = exchange(setup, state, cohort, payload, Kind.MOMENTS)
    options, before = setup.experiment.whitening, state.pooled
    assert isinstance(received, Values)
    row = whitening.pool(
        received.values.to(rows),
        cohort.weights,
        None if before is None else before.row,
        options.ema if isinstance(options, Shared) else 0.0,
    )
    state.pooled = Pooled(row, state.server.round, _count(state) + 1, metric_of(setup, row))
    return lengths


def _broadcast(setup: Setup, state: State) -> bytes:
    """The frame of the pooled moments; the server goes on with what a client reads from it."""
    assert state.pooled is not None
    exact, pooled = _exact(state), state.pooled
    payload: Payload = exact.compress(
        pooled.row[None], setup.stream(Purpose.DOWNLINK, state.server.round), torch.tensor([SERVER])
    )
    message = coding.encode(payload)[0]
    sent = encode_frame(Frame(Kind.MOMENTS, setup.run, state.server.round, SERVER, 0, GENESIS, message))
    frame = decode_frame(sent, coding.longest(payload.layout))
    row = exact.decompress(coding.decode([frame.body], payload.layout), pooled.row.dtype)[0].to(pooled.row.device)
    state.pooled = replace(pooled, row=row, metric=metric_of(setup, row))
    return sent


def _exact(state: State) -> Identity:
    return Identity("float64" if state.server.model.dtype == torch.float64 else "float32")


def _count(state: State) -> int:
    return 0 if state.pooled is None else state.pooled.count
