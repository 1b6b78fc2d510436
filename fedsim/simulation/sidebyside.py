"""Two run folders side by side: the same experiment, the same model, the same bytes?

A folder of a deployed run may also hold what Flower's messages came to, and what was counted on sockets:

    messages.csv    a line a message of the transport: round, direction, node, ..., message_bytes
    sockets.csv     a line a measurement: direction, bytes

Not to be taken for ``fedsim.simulation.comparison``, which plays an experiment again without compression.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fedsim.errors import CheckpointError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry, read_totals
from fedsim.simulation.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Account:
    """What a run folder says.

    model: SHA-256 of the final model, "" while there is none; totals: of the ledger; messages, sockets: bytes each way,
    empty where nobody counted them.
    """

    path: Path
    experiment: Experiment
    status: str
    model: str
    totals: Mapping[tuple[Direction, Entry], Cost]
    messages: Mapping[Direction, int]
    sockets: Mapping[Direction, int]

    def frames(self, way: Direction) -> Cost:
        """All frames of one direction."""
        return sum((cost for (direction, _), cost in self.totals.items() if direction is way), Cost())


def read_account(path: Path) -> Account:
    """Read a run folder, finished or not. Raises CheckpointError for one that is missing, damaged or not one."""
    experiment = RunFolder(path).experiment()
    if not (path / "ledger.csv").exists():
        raise CheckpointError(f"{path} has no ledger.csv; `fedsim resume {path}` runs it from its first round")
    facts = RunFolder(path).facts()
    totals = read_totals(path / "ledger.csv")
    messages, sockets = read_bytes(path / "messages.csv", "message_bytes"), read_bytes(path / "sockets.csv", "bytes")
    return Account(
        path,
        experiment,
        str(facts.get("status", "unknown")),
        str(facts.get("model_sha256", "")),
        totals,
        messages,
        sockets,
    )


def read_bytes(path: Path, column: str) -> dict[Direction, int]:
    """Sums of a column of a CSV file by direction; empty without the file. An unfinished last line is not read.

    Raises CheckpointError naming the line.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    sums: dict[Direction, int] = {}
    lines, number = csv.DictReader(text[: text.rfind("\n") + 1].splitlines()), 1
    while True:
        number += 1
        try:
            line = next(lines, None)
            if not {"direction", column} <= set(lines.fieldnames or ("direction", column)):
                raise ValueError
            if line is None:
                return sums
            way, count = Direction(line["direction"]), int(line[column])
            if count < 0:
                raise ValueError
        except (KeyError, ValueError, TypeError, csv.Error):
            raise CheckpointError(
                f"{path}:{number}: expected a direction (up or down) and whole {column}; put the file back or delete it"
            ) from None
        sums[way] = sums.get(way, 0) + count


def differing(first: Experiment, second: Experiment) -> list[str]:
    """The keys, such as "uplink.levels", in which two experiments differ; those that only say how to run as well."""
    a, b = dict(flat(first.table())), dict(flat(second.table()))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def unequal_line(first: Path, second: Path) -> int | None:
    """The number of the first line in which two files differ, from 1; None when they are equal to the byte."""
    with first.open("rb") as a, second.open("rb") as b:
        for number, (one, other) in enumerate(zip_longest(a, b), 1):
            if one != other:
                return number
    return None


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as (dotted key, value)."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value
