"""One run as the page has it: its bytes by round, client and kind, who took part, its final model, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import FedsimError, one_line
from fedsim.reporting.breakdown import Binned, Traffic, read_traffic
from fedsim.reporting.final import Examiner
from fedsim.reporting.runs import Run

LEVELS = 35
"""Shares of a cell of the picture of who took part are written as one digit of base 36."""

LONGEST = 400
"""Characters of a value in the manifest that are shown."""


@dataclass(frozen=True, slots=True)
class Size:
    """How finely a page is drawn: points of a curve, bins of rounds and of clients, cells of the two together."""

    points: int
    rounds: int
    clients: int
    cells: int


SIZES = (Size(400, 160, 100, 16_000), Size(200, 100, 60, 6_000), Size(100, 60, 40, 2_000), Size(50, 30, 20, 500))
"""From fine to coarse; a page takes the first with which it is small enough."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A run, its ledger and the page's form of what needed its data. traffic, final: None where there is none."""

    run: Run
    traffic: Traffic | None
    final: dict[str, Any] | None
    notes: tuple[str, ...]


def examine(run: Run, examiner: Examiner | None) -> Examined:
    """Read a run's ledger and, with an examiner, look at its final model; what is missing becomes a note."""
    notes, traffic, final = [], None, None
    played = int(run.metrics[-1]["round"]) if run.finished and run.metrics else None
    if (run.path / "ledger.csv").exists():
        try:
            traffic = read_traffic(run.path / "ledger.csv", played, None)
        except FedsimError as error:
            notes.append(f"Bytes are left out: {one_line(str(error))}.")
    else:
        notes.append("Bytes are left out: there is no ledger.csv.")
    if examiner is not None:
        try:
            found = examiner.at_clients(run)
            final = {"client": found.clients.tolist(), "size": found.samples.tolist(), "loss": numbers(found.loss)}
            final |= {} if found.accuracy is None else {"accuracy": numbers(found.accuracy)}
        except FedsimError as error:
            notes.append(f"The final model at each client is left out: {one_line(str(error))}.")
    return Examined(run, traffic, final, tuple(notes))


def detail(examined: Examined, label: str, size: Size) -> dict[str, Any]:
    """The page's form of one run. label: unique among the runs of the page."""
    run, traffic = examined.run, examined.traffic
    drawn = {} if traffic is None or not len(traffic.round) else _drawn(traffic, size)
    return {
        "label": label,
        "toml": run.experiment.toml(),
        "command": command(run),
        "manifest": [[key, value] for key, value in _flat({"folder": str(run.path), **run.manifest})],
        "final": examined.final,
        "notes": list(examined.notes),
        **drawn,
    }


def command(run: Run) -> str:
    """What repeats a run, given its experiment.toml."""
    engine = str(run.manifest.get("engine", "simulator"))
    flags = [] if engine == "simulator" else ["--engine", engine]
    again = shlex.join(
        ["fedsim", "run", "experiment.toml", *flags, "--folder", f"runs/{run.path.resolve().name}-again"]
    )
    return one_line(again, LONGEST)


def numbers(row: NDArray[Any]) -> list[float | None]:
    """Numbers with six digits; None where there is none, which JSON can say."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in row.tolist()]


def whole(row: NDArray[Any]) -> list[int]:
    """Numbers rounded to whole ones, for bytes."""
    return [int(value) for value in np.rint(row).tolist()]


def _drawn(traffic: Traffic, size: Size) -> dict[str, Any]:
    rows = max(min(traffic.clients, size.clients), 1)
    presence = traffic.presence(rows, min(size.cells // rows, 4 * size.rounds))
    levels = np.rint(presence.share * LEVELS).astype(int)
    return {
        "rounds": _binned(traffic.by_round(size.rounds)),
        "clients": _binned(traffic.by_client(size.clients)),
        "presence": {
            "clients": presence.clients.tolist(),
            "rounds": presence.rounds.tolist(),
            "rows": ["".join(np.base_repr(level, 36) for level in row) for row in levels.tolist()],
            "count": {"clients": traffic.clients, "rounds": traffic.rounds},
        },
        "kinds": [{"name": f"{kind.direction} · {kind.kind}", **kind._asdict()} for kind in traffic.kinds],
    }


def _binned(binned: Binned) -> dict[str, Any]:
    return {"starts": binned.starts.tolist(), "each": [whole(part) for part in binned.each.T]}


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield one_line(f"{before}{key}", LONGEST), one_line(text, LONGEST)
