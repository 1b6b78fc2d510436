"""The lines that clients have to the server, and how fast they compute: what turns bytes into seconds.

symbol      here            meaning
U_i, D_i    up, down        bandwidth of client i each way, bit/s
l_i         latency         seconds from one end to the other, one way
j_i         jitter          mean of what a message takes longer than that, seconds
c_i         sample          seconds for the gradient of one sample
a_i         availability    chance that a client is there when it is called

A profile gives medians. With a spread s, those of client i are times exp(s z), z ~ N(0, 1): one z for both bandwidths,
one for the latency and jitter, one for the computer. A trace is a CSV file with a line for every client, for example

    client,up_mbps,down_mbps,latency_s,jitter_s,sample_s,availability
    0,8,20,0.03,0.01,0.0001,1

of which the last three columns may be missing (0, 0 and 1). All are functions of (seed, client) alone.

The profiles' numbers are round ones of the right order, not measurements: set your own. A profile by itself changes
no model; availability and a deadline do.
"""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import astuple, dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedsim.data.files import expanded, read_file
from fedsim.errors import DataError, one_line
from fedsim.randomness import Purpose, four_words

Reals = NDArray[np.float64]

Mbps = Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Chance = Annotated[float, msgspec.Meta(gt=0, le=1)]
Spread = Annotated[float, msgspec.Meta(ge=0, le=3)]

MEGA = 1e6
LINE = 256
"""Bytes that a line of a trace has at most, on average."""
SPEEDS, COINS, JITTER = 0, 1, 2
"""``index`` of the network's random numbers: who has which line, who is there, how late a message is."""


class Untimed(msgspec.Struct, frozen=True, tag_field="profile", tag="off", forbid_unknown_fields=True):
    """No seconds are simulated."""


class Line(msgspec.Struct, frozen=True, tag_field="profile", forbid_unknown_fields=True):
    """What every profile says.

    Args:
        up_mbps, down_mbps: median bandwidth that way, megabits a second.
        latency_s: median seconds from one end to the other.
        jitter_s: mean seconds that a message takes longer than that (exponential).
        sample_s: median seconds for the gradient of one sample; those of the profiles suit small models.
        spread: standard deviation of the logarithms of these, over clients.
        availability: chance that a client that is to take part in a round is there, independently of all else.
        deadline_s: simulated seconds after which a round ends; uploads that are late are lost. 0: it waits for all.
    """

    up_mbps: Mbps
    down_mbps: Mbps
    latency_s: Seconds
    jitter_s: Seconds
    sample_s: Seconds
    spread: Spread
    availability: Chance = 1.0
    deadline_s: Seconds = 0.0


class DataCentre(Line, frozen=True, tag_field="profile", tag="data-centre", forbid_unknown_fields=True):
    """Servers side by side."""

    up_mbps: Mbps = 10_000.0
    down_mbps: Mbps = 10_000.0
    latency_s: Seconds = 0.0002
    jitter_s: Seconds = 0.0
    sample_s: Seconds = 1e-6
    spread: Spread = 0.0


class Fibre(Line, frozen=True, tag_field="profile", tag="fibre", forbid_unknown_fields=True):
    """Personal computers at home or in an office."""

    up_mbps: Mbps = 200.0
    down_mbps: Mbps = 500.0
    latency_s: Seconds = 0.005
    jitter_s: Seconds = 0.001
    sample_s: Seconds = 1e-5
    spread: Spread = 0.3


class Mobile(Line, frozen=True, tag_field="profile", tag="4g", forbid_unknown_fields=True):
    """Telephones."""

    up_mbps: Mbps = 8.0
    down_mbps: Mbps = 20.0
    latency_s: Seconds = 0.03
    jitter_s: Seconds = 0.01
    sample_s: Seconds = 1e-4
    spread: Spread = 0.5


class Things(Line, frozen=True, tag_field="profile", tag="iot", forbid_unknown_fields=True):
    """Sensors on a narrow radio link."""

    up_mbps: Mbps = 0.25
    down_mbps: Mbps = 0.25
    latency_s: Seconds = 0.1
    jitter_s: Seconds = 0.05
    sample_s: Seconds = 1e-3
    spread: Spread = 0.5


class Trace(msgspec.Struct, frozen=True, tag_field="profile", tag="trace", forbid_unknown_fields=True):
    """Every client's line from a file.

    Args:
        file: path of the CSV file.
        deadline_s: simulated seconds after which a round ends; uploads that are late are lost. 0: it waits for all.
    """

    file: Annotated[str, msgspec.Meta(min_length=1, description="a CSV file with a line for every client")]
    deadline_s: Seconds = 0.0


Profile = DataCentre | Fibre | Mobile | Things
Known = Profile | Trace
Network = Untimed | Known

PROFILES: dict[str, type[Profile]] = {
    str(kind.__struct_config__.tag): kind for kind in (DataCentre, Fibre, Mobile, Things)
}


def certain(network: Network) -> bool:
    """Whether whoever is called is there and heard in time; what a trace says of that is not looked at: False."""
    return isinstance(network, Untimed) or (
        isinstance(network, Line) and network.availability == 1 and not network.deadline_s
    )


@dataclass(frozen=True, slots=True)
class Speeds:
    """Every client's line, float64[N] each.

    up, down: bit/s; latency, jitter, sample: seconds; availability: chances.
    """

    up: Reals
    down: Reals
    latency: Reals
    jitter: Reals
    sample: Reals
    availability: Reals


def speeds_of(network: Known, clients: int, seed: int) -> Speeds:
    """The lines of ``clients`` clients. Raises DataError for a trace that is none, or of other clients."""
    if isinstance(network, Trace):
        return read_trace(network.file, clients)
    words = four_words(seed, Purpose.NETWORK, np.zeros(clients, np.int64), np.arange(clients), index=SPEEDS)
    factors = np.exp(network.spread * ndtri((words[:, :3] + 0.5) / 2.0**32))
    line, path, computer = factors.T
    return Speeds(
        up=network.up_mbps * MEGA * line,
        down=network.down_mbps * MEGA * line,
        latency=network.latency_s * path,
        jitter=network.jitter_s * path,
        sample=network.sample_s * computer,
        availability=np.full(clients, network.availability),
    )


def digest(speeds: Speeds) -> str:
    """SHA-256 of every client's line."""
    return hashlib.sha256(b"".join(part.astype("<f8").tobytes() for part in astuple(speeds))).hexdigest()


def delays(speeds: Speeds, seed: int, rounds: NDArray[np.int64], clients: NDArray[np.int64]) -> Reals:
    """What the jitter adds for these clients in these rounds, down and up: seconds, float64[n, 2]."""
    words = four_words(seed, Purpose.NETWORK, rounds, clients, index=JITTER)
    return np.asarray(-speeds.jitter[clients, None] * np.log((words[:, :2] + 0.5) / 2.0**32))


def there(speeds: Speeds, seed: int, round: int, clients: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these clients are there in a round, bool[n]. clients: int64[n]."""
    words = four_words(seed, Purpose.NETWORK, np.full_like(clients, round), clients, index=COINS)
    return np.asarray(words[:, 0] / 2.0**32 < speeds.availability[clients])


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a trace."""

    client: Annotated[int, msgspec.Meta(ge=0)]
    up_mbps: Mbps
    down_mbps: Mbps
    latency_s: Seconds
    jitter_s: Seconds = 0.0
    sample_s: Seconds = 0.0
    availability: Chance = 1.0


def read_trace(file: str, clients: int) -> Speeds:
    """A trace of exactly ``clients`` clients, in any order, plain or gzip. Raises DataError naming the line."""
    text = read_file(expanded(file), LINE * (clients + 1)).decode("utf-8", "replace")
    table, lines = np.full((clients, len(NUMBERS)), np.nan), csv.reader(text.splitlines())
    try:
        names = next(lines, [])
        for line in lines:
            row = msgspec.convert(dict(zip(names, line, strict=True)), Row, strict=False)
            numbers = [float(number) for number in msgspec.structs.astuple(row)[1:]]
            if row.client >= clients or not np.isnan(table[row.client, 0]) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"client {row.client}: expected one line of numbers for each of {clients}")
            table[row.client] = numbers
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{one_line(file)}:{lines.line_num}: not a line of a trace ({one_line(str(error))}); "
            f"its columns are client, {', '.join(NUMBERS)}"
        ) from None
    if np.isnan(table).any():
        absent = int(np.flatnonzero(np.isnan(table[:, 0]))[0])
        raise DataError(f"{one_line(file)}: no line for client {absent}; there are {clients} clients")
    up, down, *others = table.T
    return Speeds(up * MEGA, down * MEGA, *others)


NUMBERS = Row.__struct_fields__[1:]
