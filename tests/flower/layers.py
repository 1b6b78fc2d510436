"""From payload to socket: what each layer adds to a deployed run's bytes, and how much that is a message.

payload -> frame            the frame's header, and in a catch-up the length before each update
frame -> Flower message     Flower's objects: message, records, names of keys, object tree
message -> socket           HTTP: headers, one request an object, polls of idle nodes, heartbeats
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.ledger import Direction
from fedsim.simulation.sidebyside import read_account
from tests.flower.federation import Federation
from tests.flower.measure import Round


@dataclass(frozen=True, slots=True)
class Way:
    """Bytes of all rounds but the first (whose beginning is not known, and which brings nodes and models).

    catch_up: bytes of lengths before updates.
    """

    payload: int
    frames: int
    messages: int
    sockets: int
    frame_count: int
    message_count: int
    catch_up: int


def note_sockets(federation: Federation, rounds: Sequence[Round], folder: Path) -> None:
    """Write sockets.csv: what the proxies saw from the first of these rounds to the last."""
    seen = [proxy.traffic(rounds[0].began, rounds[-1].ended) for proxy in federation.proxies]
    up, down = sum(one.up for one in seen), sum(one.down for one in seen)
    (folder / "sockets.csv").write_text(f"direction,bytes\nup,{up}\ndown,{down}\n")


def layers(folder: Path) -> tuple[Way, Way]:
    """Up and down."""
    sockets = read_account(folder).sockets
    up, down = (_way(folder, way, sockets[way]) for way in Direction)
    return up, down


def _way(folder: Path, way: Direction, sockets: int) -> Way:
    ledger, messages = (_lines(folder / name, way) for name in ("ledger.csv", "messages.csv"))
    return Way(
        payload=sum(int(line["payload_bits"]) for line in ledger) // 8,
        frames=sum(int(line["frame_bytes"]) for line in ledger),
        messages=sum(int(line["message_bytes"]) for line in messages),
        sockets=sockets,
        frame_count=len(ledger),
        message_count=len(messages),
        catch_up=sum(int(line["frame_bytes"]) - int(line["payload_bits"]) // 8 - 40 for line in ledger),
    )


def _lines(path: Path, way: Direction) -> list[dict[str, str]]:
    with path.open() as file:
        return [line for line in csv.DictReader(file) if line["direction"] == way.value and int(line["round"])]
