"""Where a run's bytes went: ``ledger.csv`` as arrays, by part, round, client and kind, and who took part.

Every byte of every frame belongs to one of ``PARTS``:

    up         payload from clients to the server
    down       payload from the server to clients that missed nothing
    first      the first whole model of a client, and memories that are sent in full to begin with
    catch_up   payload that only absence made necessary: of a frame with m updates the share (m - 1) / m, and a whole
               model, or memory, for a client that had one before, unless whole models are all that this run sends down
    overhead   frame minus payload: headers, and the lengths between packed updates

A ledger has a line a frame, up to millions, so nothing here loops over lines, rounds or clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import CheckpointError
from fedsim.ledger import COLUMNS, Direction, Entry, read_lines

PARTS = ("up", "down", "first", "catch_up", "overhead")

Whole = NDArray[np.int64]
Amounts = NDArray[np.float64]


MOST_ROUNDS, MOST_CLIENTS = 2**32, 2**30
"""Of any run; their product is still a whole number of 64 bits."""


class Kind(NamedTuple):
    """All frames of a direction and kind. bits by formula; bytes of payload, and of payload and frame."""

    direction: str
    kind: str
    frames: int
    formula_bits: float
    payload_bytes: float
    frame_bytes: int


class Binned(NamedTuple):
    """Amounts by round or client. starts: int64[b], the first of each bin; each: float64[b, 5], mean bytes by part."""

    starts: Whole
    each: Amounts


class Presence(NamedTuple):
    """Who took part. share: float64[client bins, round bins], of the bin's clients and rounds, in [0, 1]."""

    clients: Whole
    rounds: Whole
    share: Amounts


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """A ledger. rounds, clients: how many there are; round, client: int64[f] of each frame; bytes: float64[f, 5]."""

    rounds: int
    clients: int
    round: Whole
    client: Whole
    took_part: NDArray[np.bool_]
    bytes: Amounts
    kinds: tuple[Kind, ...]

    def totals(self) -> dict[str, float]:
        """Bytes by part."""
        return dict(zip(PARTS, self.bytes.sum(axis=0).tolist(), strict=True))

    def by_round(self, most: int) -> Binned:
        """Mean bytes of a round, by part, in at most so many bins."""
        return self._binned(self.round, self.rounds, most)

    def by_client(self, most: int) -> Binned:
        """Bytes of a client over the run, by part; the mean of a bin's clients where there are more than bins."""
        return self._binned(self.client, self.clients, most)

    def presence(self, clients: int, rounds: int) -> Presence:
        """Who took part in which round, in at most so many bins of clients and of rounds."""
        rows, row_widths, row_starts = _bins(self.client, self.clients, clients)
        columns, column_widths, column_starts = _bins(self.round, self.rounds, rounds)
        _, once = np.unique((self.client * self.rounds + self.round)[self.took_part], return_index=True)
        places = (rows * len(column_widths) + columns)[self.took_part][once]
        counts = np.bincount(places, minlength=len(row_widths) * len(column_widths))
        cells = np.outer(row_widths, column_widths)
        return Presence(row_starts, column_starts, counts.reshape(cells.shape) / np.maximum(cells, 1))

    def _binned(self, index: Whole, count: int, most: int) -> Binned:
        places, widths, starts = _bins(index, count, most)
        sums = [np.bincount(places, column, minlength=len(widths)) for column in self.bytes.T]
        return Binned(starts, np.stack(sums, axis=1) / widths[:, None])


def _bins(index: Whole, count: int, most: int) -> tuple[Whole, Whole, Whole]:
    """0 .. count - 1 in min(count, most) bins, equal to one: the bin of each index, and bins' widths and starts."""
    bins = max(min(count, most), 1)
    starts = -(-np.arange(bins + 1, dtype=np.int64) * count // bins)
    return index * bins // max(count, 1), np.maximum(np.diff(starts), 1), starts[:-1]


def read_traffic(path: Path, rounds: int | None = None, clients: int | None = None) -> Traffic:
    """A ledger.csv, up to its last whole line. rounds, clients: how many there are; None: those that it names.

    Frames of later rounds do not count. Raises CheckpointError when it is no ledger.
    """
    table = read_lines(path)
    rounds = int(table["round"].max(initial=-1)) + 1 if rounds is None else rounds
    clients = int(table["client"].max(initial=-1)) + 1 if clients is None else clients
    if table["client"].max(initial=-1) >= clients or rounds > MOST_ROUNDS or clients > MOST_CLIENTS:
        raise CheckpointError(f"{path}: a round or client has a number that no run has; put the file back")
    table = table[table["round"] < rounds]
    down = table["direction"] == Direction.DOWN.value
    payload, kind = table["payload_bits"] / 8, table["kind"]
    whole = down & np.isin(kind, [Entry.MODEL.value, Entry.MEMORY.value])
    updates = down & (kind == Entry.UPDATES.value)
    first = (whole & _first_contact(table["client"], down)) | (~down & (kind == Entry.MEMORY.value))
    missed = np.where(updates, 1 - 1 / np.maximum(table["messages"], 1), 0.0)
    if updates.any():  # otherwise a whole model is what everybody is sent in every round
        missed[whole & ~first] = 1.0
    parts = np.zeros((len(table), len(PARTS)))
    parts[:, 0] = payload * (~down & ~first)
    parts[:, 1] = payload * (down & ~first) * (1 - missed)
    parts[:, 2] = payload * first
    parts[:, 3] = payload * (down & ~first) * missed
    parts[:, 4] = table["frame_bytes"] - payload
    took_part = ~down & (kind != Entry.REFRESH.value)
    return Traffic(rounds, clients, table["round"], table["client"], took_part, parts, tuple(_kinds(table)))


def _first_contact(client: Whole, down: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a frame is the first that its client was sent, bool[f]. Frames stand in the order of rounds."""
    found = np.zeros(len(client), np.bool_)
    places = np.flatnonzero(down)
    found[places[np.unique(client[places], return_index=True)[1]]] = True
    return found


def _kinds(table: NDArray[np.void]) -> list[Kind]:
    found = []
    for direction in Direction:
        for kind in Entry:
            lines = table[(table["direction"] == direction.value) & (table["kind"] == kind.value)]
            if len(lines):
                formula, payload, frame = (lines[name].sum().item() for name in COLUMNS[5:])
                found.append(Kind(direction.value, kind.value, len(lines), formula, payload / 8, frame))
    return found
