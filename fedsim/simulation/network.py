"""Seconds that a round takes, from the bytes of the ledger and the lines of ``fedsim.network``.

A client's round is  down + c_i samples + up;  a round lasts as long as that of its slowest client, or until the
deadline. One frame of B bytes at R bit/s, latency l and jitter takes

    2 l E  +  8 W / R  +  stalls  +  jitter,        W = (B + O) (1500 / 1448)

symbol      meaning
E           exchanges, each a question and its answer, that follow one another until the message is across
O           bytes that these and the message around the frame take
1500/1448   an Ethernet packet, and what TCP carries in it (20 bytes of IP, 32 of TCP with its timestamps)
stalls      TCP begins with w = 10 segments and doubles: while the k-th window is shorter than a round trip it waits

    stalls = sum over the windows k = 0, 1, ... but the last of  max(0, 2 l + 8 s / R - 8 w s 2^k / R),  s = 1500 bytes

E and O are what was measured of Flower 1.41 (``python -m tests.flower network`` prints them, and the model beside
deployed rounds). Not in it: the 3 seconds after which an idle SuperNode asks again, the process it starts for each
message, what the server computes, its own line, and losses of packets.

Source: Kurose and Ross, Computer Networking, "TCP delay modeling" (static and slow-start windows); RFC 6928 (w = 10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.network import Known, Reals, Speeds, delays, speeds_of

Whole = NDArray[np.int64]

PACKET, CARRIED, FIRST_WINDOW = 1500, 1448, 10
"""Bytes of a packet; those that TCP carries in it; packets of its first window."""

DOUBLINGS = 24
"""Windows that are looked at: more than 10^11 bytes."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carries a frame one way. exchanges: E; octets: O."""

    exchanges: int
    octets: int


DOWN, UP = Carrier(3, 3_000), Carrier(3, 3_000)
"""Of Flower."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Rounds, one after another. seconds: float64[rounds]; slowest: int64[rounds], the client that took longest, -1 in
    a round of nobody; late: int64[rounds], clients whose upload did not arrive.
    """

    seconds: Reals
    slowest: Whole
    late: Whole


def frame_seconds(frames: Whole, octets: Whole, rate: Reals, latency: Reals, carrier: Carrier) -> Reals:
    """Seconds, float64[n], that frames of together ``octets`` bytes take at ``rate`` bit/s, without jitter.

    frames, octets: int64[n]; rate: float64[n], bit/s; latency: float64[n], seconds one way.
    """
    wire = (octets + frames * carrier.octets) * (PACKET / CARRIED)
    trip, segment = 2 * latency, 8 * PACKET / rate
    windows = FIRST_WINDOW * 2.0 ** np.arange(DOUBLINGS)
    follows = np.cumsum(windows) * PACKET < wire[:, None] / np.maximum(frames, 1)[:, None]
    stalls = np.maximum(0.0, (trip + segment)[:, None] - segment[:, None] * windows) * follows
    return np.asarray(frames * (carrier.exchanges * trip + stalls.sum(axis=1)) + 8 * wire / rate)


def client_seconds(speeds: Speeds, clients: Whole, sizes: Mapping[str, Whole], samples: Reals, extra: Reals) -> Reals:
    """Seconds of each client's round, float64[n].

    clients: int64[n]; sizes: int64[n] each: down_frames, down_bytes, up_frames, up_bytes; samples: float64[n], of which
    it takes the gradient; extra: float64[n, 2], seconds of jitter down and up, as of ``fedsim.network.delays``.
    """
    latency = speeds.latency[clients]
    down = frame_seconds(sizes["down_frames"], sizes["down_bytes"], speeds.down[clients], latency, DOWN)
    up = frame_seconds(sizes["up_frames"], sizes["up_bytes"], speeds.up[clients], latency, UP)
    waits = extra * np.stack((sizes["down_frames"] > 0, sizes["up_frames"] > 0), axis=1)
    return np.asarray(down + speeds.sample[clients] * samples + up + waits.sum(axis=1))


def round_timing(
    columns: Mapping[str, NDArray[Any]],
    speeds: Speeds,
    seed: int,
    samples: Reals | float = 0.0,
    deadline: float = 0.0,
    rounds: int | None = None,
) -> Timing:
    """How long rounds took. With a deadline, a client that was sent something and sent nothing was late.

    Args:
        columns: of a ledger: round, client (whole numbers), direction ("up" or "down"), frame_bytes; lines in any
            order.
        speeds: of all clients.
        seed: of the experiment, for the jitter.
        samples: gradients of samples that a client takes in a round: of each client, float64[N], or of all.
        deadline: seconds; 0: none.
        rounds: how many; None: as many as the ledger knows. One in which nobody takes part lasts 0 s.
    """
    n, count = len(speeds.up), np.asarray(columns["round"], np.int64)
    keys, places = np.unique(count * n + np.asarray(columns["client"], np.int64), return_inverse=True)
    of_round, clients = keys // n, keys % n
    up = np.asarray(columns["direction"]) == "up"
    sizes = {
        f"{way}_{what}": np.bincount(places, weights=one * chosen, minlength=len(keys)).astype(np.int64)
        for way, chosen in (("down", ~up), ("up", up))
        for what, one in (("frames", 1.0), ("bytes", np.asarray(columns["frame_bytes"], np.float64)))
    }
    work = np.broadcast_to(np.asarray(samples, np.float64), (n,))[clients]
    took = client_seconds(speeds, clients, sizes, work, delays(speeds, seed, of_round, clients))
    late = (sizes["up_frames"] == 0) & (deadline > 0)
    took = np.where(late, deadline, np.minimum(took, deadline) if deadline else took)
    total = int(keys[-1] // n + 1 if len(keys) else 0) if rounds is None else rounds
    timing = Timing(np.zeros(total), np.full(total, -1), np.zeros(total, np.int64))
    present, starts = np.unique(of_round, return_index=True)
    if len(present):
        timing.seconds[present] = np.maximum.reduceat(took, starts)
        first = np.flatnonzero(took == timing.seconds[of_round])[::-1]  # the lowest number comes last, and stays
        timing.slowest[of_round[first]] = clients[first]
        timing.late[present] = np.add.reduceat(late.astype(np.int64), starts)
    return timing


def round_seconds(
    columns: Mapping[str, NDArray[Any]],
    network: Known,
    clients: int,
    seed: int,
    samples: Reals | float = 0.0,
    rounds: int | None = None,
) -> Reals:
    """Seconds of each round, float64[rounds]: ``round_timing`` of the network's lines and deadline."""
    return round_timing(columns, speeds_of(network, clients, seed), seed, samples, network.deadline_s, rounds).seconds
