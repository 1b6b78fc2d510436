"""One message a client to the server, over real frames, and what that cost."""

from __future__ import annotations

from fedsim.algorithms.artemis import Cohort
from fedsim.compression import Payload
from fedsim.ledger import Direction, Entry, Lines
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State
from fedsim.wire import coding
from fedsim.wire.frame import Frame, Kind, decode_frame, encode_frame
from fedsim.wire.link import End, Reception, Sender, receive


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
