"""One round of a federation in one process: the calls a server and its clients make, with real messages between them.

cohort      who takes part
catch up    each client receives the updates it missed, or the whole model where that is shorter
solve       each client computes its direction from the model
upload      compress, encode, frame; the server decodes what arrived
absorb      memories, average, compressed update, step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients, Cohort
from fedsim.compression import Identity, Payload
from fedsim.errors import DivergedError
from fedsim.ledger import Direction, Entry, Lines
from fedsim.randomness import Purpose
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import NEVER, State
from fedsim.solvers.local import solve
from fedsim.wire import coding
from fedsim.wire.frame import HEADER_BYTES, Frame, Kind, decode_frame, encode_frame
from fedsim.wire.link import End, Reception, Sender, receive


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
    lines, losses, received = deliver(setup, state, cohort), None, None
    if len(cohort.clients):
        solution = solve(
            setup.task,
            setup.federation,
            state.server.model.expand(len(cohort.clients), -1),
            cohort.clients,
            setup.plan,
            setup.stream(Purpose.BATCH, t),
            state.store.solvers,
        )
        losses = solution.losses
        if t == 0 and setup.experiment.uplink.initial == "gradient":
            lines.append(send_memories(setup, state, cohort, solution.direction))
        received, sent = send_uploads(setup, state, cohort, solution.direction)
        lines.append(sent)
        state.store.solvers |= zip(cohort.clients.tolist(), solution.memories, strict=True)
    noise = setup.stream(Purpose.DOWNLINK, t)
    state.server, update = artemis.absorb(setup.method, state.server, received, cohort, step, noise)
    if not bool(torch.isfinite(state.server.model).all()):
        raise DivergedError(f"the model is not finite with server.step = {step:.4g}; use a smaller step")
    state.updates.add(len(coding.encode(update)[0]))
    return Round(t, len(cohort.clients), None if losses is None else float(losses.mean()), lines)


def deliver(setup: Setup, state: State, cohort: Cohort) -> list[Lines]:
    """Bring the cohort to the current model: for each client the cheaper of its missed updates and the whole model.

    A client that replays applies each update with the step size of its round, which it knows from the experiment, and
    so holds the server's model bit for bit. Source: Artemis, Algorithm 1 (catch-up of absent devices).
    """
    t, clients = state.server.round, cohort.clients.cpu().numpy()
    seen = state.store.seen[clients]
    missed = np.where(seen == NEVER, 0, t - seen)
    payload, framed = state.updates.since(np.maximum(seen, 0))
    whole = state.server.model.numel() * state.server.model.element_size()
    replays = (seen != NEVER) & (framed <= whole)
    update_bits, shared_bits = setup.method.downlink.compressor.formula_bits(setup.task.dim)
    state.store.seen[clients] = t
    models, updates = clients[~replays].tolist(), clients[replays].tolist()
    return [
        Lines(
            t,
            Direction.DOWN,
            Entry.MODEL,
            clients=models,
            messages=[1] * len(models),
            formula_bits=[32.0 * setup.task.dim] * len(models),
            payload_bits=[8 * whole] * len(models),
            frame_bytes=[HEADER_BYTES + whole] * len(models),
        ),
        Lines(
            t,
            Direction.DOWN,
            Entry.UPDATES,
            clients=updates,
            messages=missed[replays].tolist(),
            formula_bits=(missed[replays] * (update_bits + shared_bits / setup.clients)).tolist(),
            payload_bits=(8 * payload[replays]).tolist(),
            frame_bytes=(HEADER_BYTES + framed[replays]).tolist(),
        ),
    ]


def send_memories(setup: Setup, state: State, cohort: Cohort, directions: Tensor) -> Lines:
    """Every client uploads its first direction in full: it becomes the client's memory, at both ends."""
    exact = Identity("float64" if directions.dtype == torch.float64 else "float32")
    payload = exact.compress(directions, setup.stream(Purpose.UPLINK, 0), cohort.clients)
    received, frames = exchange(setup, state, cohort, payload, Kind.MEMORY)
    state.server = artemis.remember(state.server, cohort, exact.decompress(received, directions.dtype))
    state.store.put(cohort.clients, Clients(memory=directions))
    return uplink_lines(0, Entry.MEMORY, cohort, frames, 32.0 * setup.task.dim)


def send_uploads(setup: Setup, state: State, cohort: Cohort, directions: Tensor) -> tuple[Payload, Lines]:
    """The cohort's compressed directions, as the server decoded them."""
    t = state.server.round
    noise = setup.stream(Purpose.UPLINK, t)
    rows = state.store.take(cohort.clients)
    payload, rows = artemis.upload(setup.method, rows, directions, cohort.clients, setup.step_of(t), noise)
    received, frames = exchange(setup, state, cohort, payload, Kind.UPLOAD)
    state.store.put(cohort.clients, rows)
    message_bits, shared_bits = setup.method.uplink.compressor.formula_bits(setup.task.dim)
    formula = message_bits + shared_bits / len(cohort.clients)
    return received, uplink_lines(t, Entry.UPLOAD, cohort, frames, formula)


def exchange(
    setup: Setup, state: State, cohort: Cohort, payload: Payload, kind: Kind
) -> tuple[Payload, list[tuple[int, int]]]:
    """Send one message a client and receive them: rows -> frames -> bytes -> frames -> rows.

    Returns what the server decoded and (body bytes, frame bytes) of each frame. The links of both ends advance.
    """
    bodies, frames = [], []
    limit = coding.longest(payload.layout)
    for client, message in zip(cohort.clients.tolist(), coding.encode(payload), strict=True):
        server_end = state.store.end(client)
        sender = Sender(server_end, None).send(message, None)
        sent = encode_frame(
            Frame(kind, setup.run, state.server.round, client, sender.end.epoch, sender.end.digest, message)
        )
        frame = decode_frame(sent, limit)
        if receive(server_end, End(frame.epoch, frame.digest)) is not Reception.ACCEPT:
            raise AssertionError(f"client {client} and the server have parted in one process")
        state.store.set_end(client, sender.settle(server_end.after(frame.body)).end)
        bodies.append(frame.body)
        frames.append((len(frame.body), len(sent)))
    return coding.decode(bodies, payload.layout), frames


def uplink_lines(round: int, kind: Entry, cohort: Cohort, frames: list[tuple[int, int]], formula: float) -> Lines:
    """The ledger's lines for one upload a client. frames: (body bytes, frame bytes); formula: bits of each."""
    return Lines(
        round=round,
        direction=Direction.UP,
        kind=kind,
        clients=cohort.clients.tolist(),
        messages=[1] * len(frames),
        formula_bits=[formula] * len(frames),
        payload_bits=[8 * body for body, _ in frames],
        frame_bytes=[frame for _, frame in frames],
    )
