"""What ``fedsim compare`` says of two runs: the same experiment, the same model, the same bytes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.simulation.sidebyside import Account

DIGITS = 16
"""Of a SHA-256, as many as tell two models apart."""


def equal(first: Path, second: Path) -> bool:
    """Print two runs side by side; whether models and ledgers are equal."""
    from rich.console import Console
    from rich.table import Table

    from fedsim.simulation.sidebyside import differing, read_account, unequal_line

    a, b = read_account(first), read_account(second)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("first", "second", "second / first"):
        table.add_column(name, justify="right")
    table.add_row("experiment", a.experiment.identifier().hex(), b.experiment.identifier().hex())
    table.add_row("status", a.status, b.status)
    table.add_row("model SHA-256", a.model[:DIGITS] or "-", b.model[:DIGITS] or "-")
    for name, one, other in _lines(a, b):
        times = f"{other / one:.3f}" if one and other is not None else ""
        table.add_row(name, _number(one), _number(other), times)
    print(f"first: {first}\nsecond: {second}\n")
    Console(highlight=False, markup=False, emoji=False).print(table)
    print()
    if keys := differing(a.experiment, b.experiment):
        print(f"{_sameness(a, b)}; the keys that differ: {', '.join(keys)}")
    if not a.model or not b.model:
        unfinished = a if not a.model else b
        print(f"models: {unfinished.path} is not finished; `fedsim resume {unfinished.path}` goes on with it")
    elif a.model == b.model:
        print("models: equal to the bit")
    else:
        print("models: different")
    line = unequal_line(first / "ledger.csv", second / "ledger.csv")
    print("ledgers: equal to the byte" if line is None else f"ledgers: different, first in line {line} of ledger.csv")
    return line is None and bool(a.model) and a.model == b.model


def _sameness(a: Account, b: Account) -> str:
    same = a.experiment.identifier() == b.experiment.identifier()
    return "the same experiment, run differently" if same else "different experiments"


def _lines(a: Account, b: Account) -> list[tuple[str, int | None, int | None]]:
    """What is counted, of both: bytes by direction and kind, from payload to socket; None where nobody counted."""
    from fedsim.ledger import Cost, Direction

    lines: list[tuple[str, int | None, int | None]] = []
    for way in Direction:
        kinds = sorted({kind.value: kind for direction, kind in (*a.totals, *b.totals) if direction is way}.items())
        for name, kind in kinds:
            one, other = (account.totals.get((way, kind), Cost()) for account in (a, b))
            lines += [
                (f"{way.value} {name}: frames", one.frames, other.frames),
                (f"{way.value} {name}: payload bytes", one.payload_bits // 8, other.payload_bits // 8),
                (f"{way.value} {name}: frame bytes", one.frame_bytes, other.frame_bytes),
            ]
        lines.append((f"{way.value}: frame bytes", a.frames(way).frame_bytes, b.frames(way).frame_bytes))
        for name, one_way, other_way in (
            ("Flower message bytes", a.messages, b.messages),
            ("socket bytes", a.sockets, b.sockets),
        ):
            if one_way or other_way:
                lines.append((f"{way.value}: {name}", one_way.get(way), other_way.get(way)))
    return lines


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
