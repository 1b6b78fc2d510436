"""The ledger: what every message cost, by round, client and direction, in three units.

    formula_bits    what the papers' formula says for it
    payload_bits    8 x the length of its encoding (norms included, frame header apart)
    frame_bytes     what goes onto the wire: header, encoding and, in a catch-up, the length before each update

A line is one frame. ``messages`` counts the updates in it: more than one when an absent client catches up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import CheckpointError, one_line

Whole = NDArray[np.int64]

COLUMNS = ("round", "client", "direction", "kind", "messages", "formula_bits", "payload_bits", "frame_bytes")


class Direction(Enum):
    """UP: client to server. DOWN: server to client."""

    UP = "up"
    DOWN = "down"


class Entry(Enum):
    """What a frame carries.

    The whole MODEL, some UPDATES, an UPLOAD, a whole MEMORY, the MOMENTS of whitening, one client's SHARPNESS, or
    nothing: a client that lost its state asks for a REFRESH.
    """

    MODEL = "model"
    UPDATES = "updates"
    UPLOAD = "upload"
    MEMORY = "memory"
    MOMENTS = "moments"
    SHARPNESS = "sharpness"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Cost:
    """A sum over frames: number of frames, bits by formula, payload bits, frame bytes."""

    frames: int = 0
    formula_bits: float = 0.0
    payload_bits: int = 0
    frame_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.frames + other.frames,
            self.formula_bits + other.formula_bits,
            self.payload_bits + other.payload_bits,
            self.frame_bytes + other.frame_bytes,
        )


@dataclass(frozen=True, slots=True)
class Lines:
    """Frames of one round, direction and kind, one for each client: arrays of the same length."""

    round: int
    direction: Direction
    kind: Entry
    clients: Whole
    messages: Whole
    formula_bits: NDArray[np.float64]
    payload_bits: Whole
    frame_bytes: Whole

    def cost(self) -> Cost:
        """The sum of these lines."""
        return Cost(
            len(self.clients), float(self.formula_bits.sum()), int(self.payload_bits.sum()), int(self.frame_bytes.sum())
        )

    def rows(self) -> Iterable[str]:
        """The lines as CSV text."""
        head = f"{self.round},{{}},{self.direction.value},{self.kind.value}"
        columns = (self.clients, self.messages, self.formula_bits, self.payload_bits, self.frame_bytes)
        for client, messages, formula, payload, frame in zip(*(column.tolist() for column in columns), strict=True):
            yield f"{head.format(client)},{messages},{formula!r},{payload},{frame}\n"


@dataclass
class Ledger:
    """Running totals, and the lines that are not yet in the file (none are kept where there is no file)."""

    has_file: bool = True
    totals: dict[tuple[Direction, Entry], Cost] = field(default_factory=dict)
    unwritten: list[Lines] = field(default_factory=list)

    def add(self, lines: Lines) -> None:
        """Enter a round's frames."""
        if len(lines.clients):
            key = (lines.direction, lines.kind)
            self.totals[key] = self.totals.get(key, Cost()) + lines.cost()
            if self.has_file:
                self.unwritten.append(lines)

    def cost(self, direction: Direction | None = None) -> Cost:
        """The total of one direction, or of both."""
        costs = (cost for (way, _), cost in self.totals.items() if direction in (None, way))
        return sum(costs, Cost())

    def drain(self) -> str:
        """The unwritten lines as CSV text, once."""
        text = "".join(row for lines in self.unwritten for row in lines.rows())
        self.unwritten.clear()
        return text


_TYPES = [*zip(COLUMNS, ("i8", "i8", "U4", "U16", "i8", "f8", "i8", "i8"), strict=True)]


def read_lines(path: Path) -> NDArray[np.void]:
    """A ledger.csv, a row a frame, with the fields ``COLUMNS``; without a last line that a killed run left unfinished.

    Raises CheckpointError when it is not a ledger.
    """
    content = path.read_text(encoding="utf-8", errors="replace")
    whole = content[: content.rfind("\n") + 1]
    header = ",".join(COLUMNS) + "\n"
    if not (whole or header).startswith(header) or (not whole and not header.startswith(content)):
        raise CheckpointError(f"{path}: not a ledger (its columns are not {', '.join(COLUMNS)}); restore the file")
    if whole.count("\n") < 2:
        return np.zeros(0, _TYPES)
    try:
        with warnings.catch_warnings():  # of a number that is not whole
            warnings.simplefilter("error")
            table: NDArray[np.void] = np.loadtxt(
                whole.splitlines()[1:], _TYPES, comments=None, delimiter=",", ndmin=1, encoding="utf-8"
            )
        if not all(
            np.isfinite(table[name]).all() and (table[name] >= 0).all()
            for name in COLUMNS
            if name not in ("direction", "kind")
        ):
            raise ValueError("a number is negative, or none")
    except (ValueError, TypeError, OverflowError, Warning) as error:
        raise CheckpointError(f"{path}: not a ledger ({one_line(str(error))}); restore the file") from None
    return table


def read_totals(path: Path) -> dict[tuple[Direction, Entry], Cost]:
    """The totals of a ledger.csv, by direction and kind; see ``read_lines``."""
    table = read_lines(path)
    totals: dict[tuple[Direction, Entry], Cost] = {}
    for direction in Direction:
        for kind in Entry:
            lines = table[(table["direction"] == direction.value) & (table["kind"] == kind.value)]
            if len(lines):
                totals[direction, kind] = Cost(
                    len(lines),
                    float(lines["formula_bits"].sum()),
                    int(lines["payload_bits"].sum()),
                    int(lines["frame_bytes"].sum()),
                )
    return totals
