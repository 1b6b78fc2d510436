"""One message a client to the server, and what that cost.

run.wire    what happens
counted     only lengths: ``coding.size`` is exactly the length of ``coding.encode``, and decoding inverts it exactly
real        every message is encoded, framed, checked, judged by its link and decoded

The model and the ledger are the same, bit for bit. Only links differ: where messages are counted a link knows how many
it carried, but not their digest, which nobody compares in one process.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.algorithms.artemis import Cohort
from fedsim.compression import Payload, Received
from fedsim.ledger import Direction, Entry, Lines
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State
from fedsim.wire import coding
from fedsim.wire.frame import HEADER_BYTES, Frame, Kind, decode_frame, encode_frame
from fedsim.wire.link import End, Reception, Sender, receive

Lengths = tuple[NDArray[np.int64], NDArray[np.int64]]
"""int64[n] each: bytes of the bodies, and of their frames."""


def framed(bodies: NDArray[np.int64]) -> Lengths:
    """Bytes of each body, int64[n], with those of its frame."""
    return bodies, bodies + HEADER_BYTES


def exchange(setup: Setup, state: State, cohort: Cohort, payload: Payload, kind: Kind) -> tuple[Payload, Lengths]:
    """Send one message a client and receive them. Returns what the server decoded; the links of both ends advance."""
    if setup.experiment.run.wire == "real":
        return _send(setup, state, cohort, payload, kind)
    return payload, counted(state, cohort, payload)


def counted(state: State, cohort: Cohort, payload: Received) -> Lengths:
    """What ``exchange`` does where only lengths are computed."""
    state.store.epochs[cohort.clients.cpu().numpy()] += 1
    return framed(coding.size(payload).numpy() // 8)


def message_bytes(setup: Setup, payload: Payload) -> NDArray[np.int64]:
    """Bytes of the message of each row, int64[n]."""
    if setup.experiment.run.wire == "real":
        return np.array([len(message) for message in coding.encode(payload)], np.int64)
    return coding.size(payload).numpy() // 8


def update_bytes(setup: Setup, update: Payload) -> int:
    """Bytes of the message of the server's update, one row."""
    return int(message_bytes(setup, update)[0])


def uplink_lines(round: int, kind: Entry, cohort: Cohort, lengths: Lengths, formula: float) -> Lines:
    """The ledger's lines for one upload a client. formula: bits of each."""
    bodies, frames = lengths
    return Lines(
        round=round,
        direction=Direction.UP,
        kind=kind,
        clients=cohort.clients.cpu().numpy(),
        messages=np.ones_like(bodies),
        formula_bits=np.full(len(bodies), formula),
        payload_bits=8 * bodies,
        frame_bytes=frames,
    )


def _send(setup: Setup, state: State, cohort: Cohort, payload: Payload, kind: Kind) -> tuple[Payload, Lengths]:
    """Rows -> frames -> bytes -> frames -> rows."""
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
        frames.append(len(sent))
    lengths = np.array([len(body) for body in bodies], np.int64), np.array(frames, np.int64)
    return coding.decode(bodies, payload.layout), lengths
