"""Which coordinates cross: the largest, or those that a seed draws. On the CPU, whatever the device of the rows.

A seed of 32 bits stands for the numbers word(j) = Philox word j of client number ``seed`` under key 0 and
``Purpose.PLACES`` (see ``fedsim.randomness``). Both ends draw from it

    an order    of places 0, 1, ...: by word, equal words by place. Every order has the same chance, up to the chance of
                equal words, below 2^-33 for a pair.
    a mask      of the places with word(j) < chance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.compression.chosen import DrawnLayout, MaskedLayout
from fedsim.compression.identity import Identity
from fedsim.compression.payload import Payload, Values
from fedsim.compression.quantize import Quantize
from fedsim.errors import DivergedError
from fedsim.randomness import Purpose, Stream

_APART = 2**23
"""Added to a stream's index where its own numbers go to what compresses the kept numbers."""

_AT_ONCE = 2**22
"""Coordinates ordered at once, so that the working memory does not grow with the cohort."""

_PLACE = 31
"""Bits of a place."""

_BITS: dict[torch.dtype, torch.dtype] = {torch.float32: torch.int32, torch.float64: torch.int64}


def share(fraction: float, d: int) -> int:
    """How many of d coordinates a share is: the nearest number (half: the even one), at least 1."""
    return max(1, round(fraction * d))


def seeds(noise: Stream, clients: Tensor) -> Tensor:
    """A seed for each client, int64[n] in [0, 2^32). It shares no numbers with what draws from ``noise`` itself."""
    return replace(noise, index=noise.index + _APART).words(clients, 1)[:, 0]


def drawn(layout: DrawnLayout, seeds: Tensor, numbers: Tensor) -> Tensor:
    """Places of block numbers[i] of the order of seeds[i], ascending: int64[n, k]; a place from d on is none."""
    k, step = layout.k, max(1, _AT_ONCE // layout.width)
    distinct, which = np.unique(seeds.cpu().numpy(), return_inverse=True)  # one order serves all that share a seed
    blocks, places = numbers.cpu().numpy(), np.empty((len(seeds), k), np.int64)
    for start in range(0, len(distinct), step):
        some = torch.from_numpy(distinct[start : start + step])
        keys = _words(some, layout.width).numpy()
        keys <<= _PLACE
        keys |= np.arange(layout.width)
        ordered = np.partition(keys, k - 1, axis=1)[:, :k] if layout.blocks == 1 else np.sort(keys, axis=1)
        rows = np.flatnonzero((which >= start) & (which < start + step))
        block = ordered.reshape(len(some), layout.blocks, k)[which[rows] - start, blocks[rows]]
        places[rows] = np.sort(block & ((1 << _PLACE) - 1), axis=1)
    return torch.from_numpy(places)


def mask(layout: MaskedLayout, seeds: Tensor) -> Tensor:
    """Which coordinates cross: bool[n, d]."""
    return _words(seeds, layout.d) < layout.chance


def _words(seeds: Tensor, width: int) -> Tensor:
    return Stream(0, Purpose.PLACES).words(seeds, width)


def largest(rows: Tensor, k: int) -> Tensor:
    """Places of the k largest magnitudes, the first of equal ones: float[n, d] -> int64[n, k], ascending in a row."""
    n, d = rows.shape
    keys = rows.detach().abs().cpu().view(_BITS[rows.dtype]).numpy()  # non-negative floats are ordered as their bits
    least = np.partition(keys, d - k, axis=1)[:, d - k : d - k + 1]
    chosen = keys >= least
    surplus = chosen.sum(axis=1) - k
    tied = np.flatnonzero(surplus)
    if tied.size:
        equal = keys[tied] == least[tied]
        kept = equal.sum(axis=1) - surplus[tied]
        chosen[tied] &= ~equal | (np.cumsum(equal, axis=1) <= kept[:, None])
    return torch.from_numpy(np.flatnonzero(chosen).reshape(n, k) - d * np.arange(n)[:, None])


def scatter(kept: Tensor, places: Tensor, d: int) -> Tensor:
    """Rows with ``kept`` at their places and zeros elsewhere: float[n, k], int64[n, k] -> float[n, d]."""
    return kept.new_zeros(len(kept), d).scatter_(1, places.to(kept.device), kept)


def finite(numbers: Tensor) -> Tensor:
    """The numbers. Raises DivergedError where one is not finite."""
    if not bool(torch.isfinite(numbers).all()):
        raise DivergedError("a row to sparsify is not finite, or a number to send exceeds 3.4e38; use a smaller step")
    return numbers


def packed(compressor: Identity | Quantize, kept: Tensor, noise: Stream, clients: Tensor) -> Payload:
    """What was kept of each row, float[n, k], as a payload. Raises DivergedError where it would not be finite."""
    payload = compressor.compress(kept, noise, clients)
    if isinstance(payload, Values):
        finite(payload.values)
    return payload
