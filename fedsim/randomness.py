"""Counter-based random numbers: every number is a function of its address, never of who asked before.

    word(seed; purpose, index, round, client, j)  =  Philox4x32-10 with
        key     = seed                                       64 bits
        counter = (j // 4, client, round, purpose + 256 * index)     4 x 32 bits,   output word j % 4

So a client's numbers do not depend on the cohort it was sampled with, on batching, threads, device or engine, and a
container that holds one client draws what the simulator draws for it.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox and its constants).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import kernels

SERVER = 0xFFFFFFFF
"""The client number under which the server draws its own numbers."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def only(client: int = SERVER) -> Tensor:
    """The number of one client as int64[1]; ``torch.tensor([client])`` takes many times as long."""
    return torch.from_numpy(np.array([client]))


class Purpose(IntEnum):
    """What a number is for. The values are part of the format: never reuse or renumber one."""

    PARTICIPATION = 1
    BATCH = 2
    UPLINK = 3
    DOWNLINK = 4
    INITIAL_MODEL = 5
    PARTITION = 6
    SPLIT = 7
    SYNTHETIC = 8
    ORDER = 9
    PLACES = 10
    SYNCHRONISE = 11
    ROTATION = 16
    NETWORK = 24


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of broadcastable int64 tensors that hold 32-bit words. Returns four words, int64 in [0, 2^32).

    torch has no unsigned 32x32 -> 64 multiplication; int64 products wrap modulo 2^64, so masking the arithmetic shift
    gives the high word exactly.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def four_words(
    seed: int, purpose: Purpose, rounds: NDArray[np.int64], clients: NDArray[np.int64], index: int = 0
) -> NDArray[np.int64]:
    """The first four words of ``Stream(seed, purpose, round, index)`` for each pair of a round and a client.

    rounds, clients: int64[n]. Returns int64[n, 4], each in [0, 2^32).
    """
    if len(rounds) and (rounds == rounds[0]).all():  # a compiled loop
        return Stream(seed, purpose, int(rounds[0]), index).words(torch.from_numpy(clients), 4).numpy()
    counter = (
        torch.zeros(1, dtype=torch.int64),
        torch.from_numpy(np.ascontiguousarray(clients)),
        torch.from_numpy(np.ascontiguousarray(rounds)),
        torch.tensor([int(purpose) + 256 * index]),
    )
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=-1).numpy()


@dataclass(frozen=True, slots=True)
class Stream:
    """The numbers of one purpose in one round; ``index`` < 2^24 tells repeated draws apart (local step, epoch).

    >>> Stream(seed=1, purpose=Purpose.UPLINK, round=3).uniform(torch.tensor([7]), 2, torch.float32)
    tensor([[0.7105, 0.9567]])
    """

    seed: int
    purpose: Purpose
    round: int = 0
    index: int = 0

    def at(self, round: int, index: int = 0) -> Stream:
        """The same purpose in another round."""
        return replace(self, round=round, index=index)

    def words(self, clients: Tensor, width: int) -> Tensor:
        """``width`` words for each client. clients: int64[n]. Returns int64[n, width], each in [0, 2^32)."""
        if kernels.available(clients):
            from fedsim.kernels import philox as compiled

            found = np.empty((len(clients), width), np.int64)
            compiled.words(found, np.ascontiguousarray(clients.numpy(), np.int64), *self.address)
            return torch.from_numpy(found)
        device = clients.device
        blocks = torch.arange((width + 3) // 4, dtype=torch.int64, device=device)[None, :]
        one = torch.ones((1, 1), dtype=torch.int64, device=device)
        counter = (
            blocks,
            clients.to(torch.int64)[:, None],
            one * self.round,
            one * (int(self.purpose) + 256 * self.index),
        )
        key = (self.seed & _MASK, (self.seed >> 32) & _MASK)
        return torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :width]

    @property
    def address(self) -> tuple[np.uint64, np.uint32, np.uint32]:
        """What kernels take: key, and the counter's words of round and purpose."""
        return np.uint64(self.seed & 2**64 - 1), np.uint32(self.round), np.uint32(int(self.purpose) + 256 * self.index)

    def uniform(self, clients: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """Uniform numbers in [0, 1), dtype[n, width]: multiples of 2^-24 in float32, of 2^-32 in float64."""
        words = self.words(clients, width)
        if dtype == torch.float64:
            return words.to(torch.float64) * 2.0**-32
        return (words >> 8).to(dtype) * 2.0**-24

    def integer(self, client: int = SERVER) -> int:
        """One 64-bit integer, to seed a library's own generator (partitions, synthetic data, model initialisation)."""
        high, low = self.words(only(client), 2)[0].tolist()
        return int(high) << 32 | int(low)
