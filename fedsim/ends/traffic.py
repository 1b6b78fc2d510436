"""The frames of the round in progress, one by one as they go and come, until they are entered into the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.ledger import Direction, Entry, Ledger, Lines
from fedsim.wire import HEADER_BYTES, Frame

ORDER = (Entry.MODEL, Entry.UPDATES, Entry.REFRESH, Entry.MEMORY, Entry.UPLOAD)
"""Of a round's lines in the ledger."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame: which way and what, of which client, and its costs as in ``Lines``."""

    way: Direction
    kind: Entry
    client: int
    messages: int
    formula_bits: float
    payload_bits: int
    frame_bytes: int


@dataclass
class Traffic:
    """What crossed in this round."""

    sent: list[Sent] = field(default_factory=list)

    def count(
        self, way: Direction, frame: Frame, formula: float, messages: int = 1, payload: int | None = None
    ) -> None:
        """One frame. formula: bits; payload: bytes of the encodings in its body, None: all of it."""
        body = len(frame.body)
        bits = 8 * (body if payload is None else payload)
        kind = Entry[frame.kind.name]
        self.sent.append(Sent(way, kind, frame.client, messages, formula, bits, HEADER_BYTES + body))

    def brought(self, client: int, kind: Entry) -> bool:
        """Whether such a frame went to this client in this round."""
        return any((one.way, one.kind, one.client) == (Direction.DOWN, kind, client) for one in self.sent)

    def enter(self, ledger: Ledger, round: int) -> None:
        """The round's frames into the ledger, in client order, and begin the next round."""
        for kind in ORDER:
            for way in Direction:
                lines = [one for one in self.sent if (one.kind, one.way) == (kind, way)]
                lines.sort(key=lambda one: one.client)
                ledger.add(
                    Lines(
                        round,
                        way,
                        kind,
                        clients=np.array([one.client for one in lines], np.int64),
                        messages=np.array([one.messages for one in lines], np.int64),
                        formula_bits=np.array([one.formula_bits for one in lines], np.float64),
                        payload_bits=np.array([one.payload_bits for one in lines], np.int64),
                        frame_bytes=np.array([one.frame_bytes for one in lines], np.int64),
                    )
                )
        self.sent.clear()
