"""Seconds that a round takes, from the bytes of the ledger and the lines of ``fedsim.network``.

A client's round is  down + c_i samples + up;  a round lasts as long as that of its slowest client, or until the
deadline. One frame of B bytes at R bit/s (U up, D down), latency l and jitter takes

    E x  +  max(2 x, x + stalls + 8 W / R)  +  jitter,        x = 2 l + 8 q / U + 8 a / D,        W = (B + O) 1500/1448

symbol      meaning
x           an exchange: a question of q bytes up, its answer of a bytes down, and what the two are away
E           exchanges before and after the frame's own, beside which two short ones carry what Flower puts around it
O           bytes around the frame in its own exchange
1500/1448   an Ethernet packet, and what TCP carries in it (20 bytes of IP, 32 of TCP with its timestamps)
stalls      TCP begins with 10 packets and doubles: until a window lasts longer than a round trip the line waits

    stalls = sum of max(0, 2 l + p - 10 p 2^k) over the windows k = 0, 1, ... but the last,     p = 8 * 1500 / R

E, q, a and O are those of Flower 1.41 without TLS. Claim: of deployed rounds over lines of 0.25 to 20 Mbit/s the model
is 0.82 to 1.00 of the seconds measured on the wire, but for 300 kB over 8 and 20 Mbit/s, where it is 0.67 to 0.98
(``python -m tests.flower network``). There Linux ends slow start early (HyStart): without that it was 0.91 to 0.96. Not
in it either: losses of packets, the 3 seconds after which an idle SuperNode asks again, the process it starts for each
message, what both ends compute, the server's own line.

Source: Kurose and Ross, Computer Networking, on TCP's delay with a static and a growing window; RFC 6928 (10 packets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.ledger import Lines
from fedsim.network import Known, Reals, Speeds, Trace, Untimed, delays, digest, speeds_of, there
from fedsim.simulation.lossless import Choice, needs_all
from fedsim.solvers.plan import Local

Whole = NDArray[np.int64]
Columns: TypeAlias = Any
"""Arrays by name: a mapping, or an array with fields."""
NOBODY: Whole = np.zeros(0, np.int64)

PACKET, CARRIED, FIRST_WINDOW = 1500, 1448, 10
"""Bytes of a packet; those that TCP carries in it; packets of its first window."""

DOUBLINGS = 24
"""Windows that are looked at: more than 10^11 bytes."""


QUESTION, ANSWER, AROUND = 1100, 300, 200
"""q, a and O, bytes."""

BESIDE_DOWN, BESIDE_UP = 2, 1
"""E: a poll that finds the message and the receipt for it; the announcement of the reply."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What crosses of each client in a round, float64[n, 2], down and up. frames: how many; octets: their bytes."""

    frames: Reals
    octets: Reals


@dataclass(frozen=True, slots=True)
class Taken:
    """Clients in rounds, ascending. rounds, clients: int64[n]; seconds: float64[n]; answered: bool[n], sent a frame."""

    rounds: Whole
    clients: Whole
    seconds: Reals
    answered: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Timing:
    """Rounds, one after another. seconds: float64[rounds]; slowest: int64[rounds], the client that took longest, -1 in
    a round of nobody; late: int64[rounds], clients whose upload did not arrive.
    """

    seconds: Reals
    slowest: Whole
    late: Whole


def frame_seconds(octets: Reals, rate: Reals, trip: Reals, exchange: Reals, beside: int) -> Reals:
    """Seconds, float64[n], that frames of ``octets`` bytes take at ``rate`` bit/s, without jitter.

    float64[n] each: trip: seconds there and back; exchange: x, seconds. beside: E.
    """
    wire, packet = (octets + AROUND) * (PACKET / CARRIED), 8 * PACKET / rate
    windows = FIRST_WINDOW * 2.0 ** np.arange(DOUBLINGS)
    another = np.cumsum(windows) * PACKET < wire[:, None]
    stalls = (np.maximum(0.0, (trip + packet)[:, None] - packet[:, None] * windows) * another).sum(axis=1)
    return np.asarray(beside * exchange + np.maximum(2 * exchange, exchange + stalls + 8 * wire / rate))


def client_seconds(speeds: Speeds, clients: Whole, sizes: Sizes, samples: Reals, jitter: Reals) -> Reals:
    """Seconds of each client's round, float64[n].

    clients: int64[n]; samples: float64[n], of which it takes the gradient; jitter: float64[n, 2], seconds down and up,
    as of ``fedsim.network.delays``.
    """
    down, up, trip = speeds.down[clients], speeds.up[clients], 2 * speeds.latency[clients]
    exchange = trip + 8 * QUESTION / up + 8 * ANSWER / down
    took = speeds.sample[clients] * samples
    for way, (rate, beside) in enumerate(((down, BESIDE_DOWN), (up, BESIDE_UP))):
        frames, octets = sizes.frames[:, way], sizes.octets[:, way]
        each = frame_seconds(octets / np.maximum(frames, 1), rate, trip, exchange, beside)
        took = took + frames * each + (frames > 0) * jitter[:, way]
    return took


@dataclass(frozen=True, slots=True)
class Clock:
    """What turns the frames of a run into seconds.

    speeds: of all clients; samples: float64[N], gradients of samples that each takes in a round; deadline: seconds, 0:
    none; seed: of the experiment, for the jitter; trace: SHA-256 of a trace, which is a file and may change; else "".
    """

    speeds: Speeds
    samples: Reals
    deadline: float
    seed: int
    trace: str = ""

    @staticmethod
    def of(network: Known, samples: Reals, seed: int) -> Clock:
        """The clock of a network. Raises DataError for a trace that is none, or of other clients."""
        speeds = speeds_of(network, len(samples), seed)
        trace = digest(speeds) if isinstance(network, Trace) else ""
        return Clock(speeds, samples, network.deadline_s, seed, trace)

    @property
    def least(self) -> float:
        """The smallest chance that a client that is called is there."""
        return float(self.speeds.availability.min())

    def available(self, round: int, clients: Tensor) -> tuple[Tensor, float | Tensor]:
        """Who of these is there in a round, and the chance of that: the same for all, or float64[n].

        clients: int64[m] on the CPU. With the chance as a factor of the probability to take part, a mean over the
        cohort stays unbiased.
        """
        chances = self.speeds.availability
        if chances.min() == chances.max():
            share: float | Tensor = float(chances[0])
            if share == 1.0:
                return clients, share
        here = torch.from_numpy(there(self.speeds, self.seed, round, clients.numpy()))
        if chances.min() != chances.max():
            share = torch.from_numpy(chances)[clients[here]]
        return clients[here], share

    def clients(self, columns: Columns) -> Taken:
        """Every client's seconds in every round, with no deadline. columns: as of ``timing``."""
        n, rounds = len(self.samples), np.asarray(columns["round"], np.int64)
        keys, places = np.unique(rounds * n + np.asarray(columns["client"], np.int64), return_inverse=True)
        way = np.asarray(columns["direction"]) == "up"
        cells, shape = 2 * places + way, (len(keys), 2)
        octets = np.bincount(cells, np.asarray(columns["frame_bytes"], np.float64), 2 * len(keys)).reshape(shape)
        frames = np.bincount(cells, np.ones(len(cells)), 2 * len(keys)).reshape(shape)
        sizes: Sizes = Sizes(np.asarray(frames, np.float64), np.asarray(octets, np.float64))
        of_round, clients = keys // n, keys % n
        jitter = delays(self.speeds, self.seed, of_round, clients)
        seconds = client_seconds(self.speeds, clients, sizes, self.samples[clients], jitter)
        return Taken(of_round, clients, seconds, frames[:, 1] > 0)

    def timing(self, columns: Columns, rounds: int | None = None) -> Timing:
        """How long rounds took. With a deadline, a client that was sent something and sent nothing was late.

        columns: of a ledger, frames in any order: round, client (whole numbers), direction ("up" or "down"),
        frame_bytes. rounds: how many; None: as many as the ledger knows. One in which nobody takes part lasts 0 s.
        """
        taken = self.clients(columns)
        seconds, late = self._cut(taken)
        total = (int(taken.rounds[-1]) + 1 if len(seconds) else 0) if rounds is None else rounds
        timing = Timing(np.zeros(total), np.full(total, -1), np.zeros(total, np.int64))
        present, starts = np.unique(taken.rounds, return_index=True)
        if len(present):
            timing.seconds[present] = np.maximum.reduceat(seconds, starts)
            timing.late[present] = np.add.reduceat(late.astype(np.int64), starts)
            slowest = np.flatnonzero(seconds == timing.seconds[taken.rounds])[::-1]  # of equals the first stays
            timing.slowest[taken.rounds[slowest]] = taken.clients[slowest]
        return timing

    def lasted(self, lines: Sequence[Lines]) -> tuple[float, int, int]:
        """Of one round, from its frames: seconds, slowest and late as in ``Timing``."""
        taken = self.clients(columns_of(lines))
        seconds, late = self._cut(taken)
        if not len(seconds):
            return 0.0, -1, 0
        slowest = int(seconds.argmax())
        return float(seconds[slowest]), int(taken.clients[slowest]), int(late.sum())

    def _cut(self, taken: Taken) -> tuple[Reals, NDArray[np.bool_]]:
        """Seconds until the client or the deadline is done with, and who was late."""
        if not self.deadline:
            return taken.seconds, np.zeros_like(taken.answered)
        late = ~taken.answered
        return np.where(late, self.deadline, np.minimum(taken.seconds, self.deadline)), late


def clock_of(experiment: Experiment, sizes: NDArray[Any]) -> Clock | None:
    """The clock of an experiment, None if it has none. sizes: samples of each client, [N].

    Raises ConfigError for what cannot do without a client, DataError for its trace.
    """
    network = experiment.network
    if isinstance(network, Untimed):
        return None
    clock = Clock.of(network, samples_of(experiment.local, sizes.astype(np.float64)), experiment.seed)
    if experiment.uplink.synchronise and clock.least < 1:
        raise ConfigError(
            f"uplink.synchronise = {experiment.uplink.synchronise!r} calls all clients at once, but by network."
            f"availability some are not there; use availability = 1"
        )
    if network.deadline_s:
        found = needs_all(experiment)
        if found is None and experiment.uplink.initial == "gradient":
            found = Choice("uplink.initial", "gradient", "zero")
        if found is not None:
            raise ConfigError(
                f"network.deadline_s = {network.deadline_s} loses messages, but {found.key} = {found.value!r} needs "
                f"all of them; use {found.key} = {found.instead!r}, or deadline_s = 0"
            )
    return clock


def columns_of(lines: Sequence[Lines]) -> Columns:
    """The columns that a clock reads, of some lines of a ledger."""
    return {
        "round": np.concatenate([np.full(len(one.clients), one.round) for one in lines] or [NOBODY]),
        "client": np.concatenate([one.clients for one in lines] or [NOBODY]),
        "direction": np.concatenate([np.full(len(one.clients), one.direction.value) for one in lines] or [NOBODY]),
        "frame_bytes": np.concatenate([one.frame_bytes for one in lines] or [NOBODY]),
    }


def samples_of(local: Local, sizes: Reals) -> Reals:
    """Gradients of samples in a client's round, float64[N], from how many samples it has, float64[N].

    Those of its steps; what a step-size rule or a direction asks for besides (salr, sam) is not counted.
    """
    return local.epochs * sizes if local.epochs else local.steps * np.minimum(local.batch or np.inf, sizes)


def round_seconds(
    columns: Columns,
    network: Known,
    clients: int,
    seed: int,
    samples: Reals | float = 0.0,
    rounds: int | None = None,
) -> Reals:
    """Seconds of each round, float64[rounds], of a ledger's columns, such as ``fedsim.ledger.read_lines`` gives.

    samples: gradients of samples of every client in a round, or float64[N] of each; 0: computing takes no time. Others:
    see ``Clock.timing``. Raises DataError for a trace that is none, or of other clients.
    """
    work = np.broadcast_to(np.asarray(samples, np.float64), (clients,))
    return Clock.of(network, work, seed).timing(columns, rounds).seconds
