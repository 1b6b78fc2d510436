"""Philox4x32-10 over a run of counters; ``fedsim.randomness`` says what key and counter are, and gives the source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled

Words = NDArray[np.uint32]

PORTION = 1024
"""Words made at once, which stay in the first-level cache; a multiple of the four of a block."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)


@compiled
def fill(out: Words, seed: np.uint64, client: np.uint32, round: np.uint32, tag: np.uint32, block: int) -> None:
    """Words 4 block, 4 block + 1, ... of a client. out: uint32[4 k], written in whole blocks."""
    start = np.uint32(block)
    for i in range(len(out) // 4):
        a, b, c, d = np.uint32(start + np.uint32(i)), client, round, tag
        k0, k1 = np.uint32(seed), np.uint32(seed >> _HALF)
        for _ in range(10):
            p, q = np.uint64(a) * _M0, np.uint64(c) * _M1
            a, b, c, d = (
                np.uint32(np.uint32(q >> _HALF) ^ b ^ k0),
                np.uint32(q),
                np.uint32(np.uint32(p >> _HALF) ^ d ^ k1),
                np.uint32(p),
            )
            k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
        out[4 * i] = a
        out[4 * i + 1] = b
        out[4 * i + 2] = c
        out[4 * i + 3] = d


@compiled
def words(
    out: NDArray[np.int64], clients: NDArray[np.int64], seed: np.uint64, round: np.uint32, tag: np.uint32
) -> None:
    """The first words of each client. out: int64[n, width]; clients: int64[n]."""
    width = out.shape[1]
    portion = np.empty(PORTION, np.uint32)
    for i in range(len(out)):
        for start in range(0, width, PORTION):
            row = out[i, start : start + PORTION]
            fill(portion[: -(-len(row) // 4) * 4], seed, np.uint32(clients[i]), round, tag, start // 4)
            for j in range(len(row)):
                row[j] = portion[j]
