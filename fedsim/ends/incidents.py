"""What did not go as it should: the file incidents.csv of a deployed run, one line an incident.

rejected    a reply that the guard refused; its bytes are not in the ledger
foreign     a reply for a client that was not called there
late        a reply to an earlier round
duplicate   a second reply in a round, of a client that was called once
trouble     a client, or its machine, said why it has no reply
absent      called, and nothing of it was taken
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Literal

from fedsim.errors import one_line

What = Literal["rejected", "foreign", "late", "duplicate", "trouble", "absent"]

FORMULA = ("=", "+", "-", "@")
"""With which a spreadsheet takes a cell for a program."""

COLUMNS = ("round", "client", "what", "bytes", "reason")


@dataclass(frozen=True, slots=True)
class Incident:
    """round: of the server when it happened; octets: bytes that came for nothing; reason: one line."""

    round: int
    client: int
    what: What
    octets: int
    reason: str


def lines(incidents: Iterable[Incident]) -> str:
    """CSV text. A reason may have been made elsewhere: what is not printable becomes a space, a formula a text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for one in incidents:
        *numbers, reason = astuple(one)
        said = one_line(reason)
        writer.writerow([*numbers, f"'{said}" if said.startswith(FORMULA) else said])
    return text.getvalue()
