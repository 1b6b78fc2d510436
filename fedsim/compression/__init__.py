"""Compressors: rows -> payload -> rows. Frozen, stateless, and each declares its variance constant."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fedsim.compression.cohort import compress_difference, send, weighted_sums
from fedsim.compression.eden import Eden
from fedsim.compression.half import Half
from fedsim.compression.identity import Identity
from fedsim.compression.lowrank import LowRank
from fedsim.compression.natural import Natural, NaturalDithering
from fedsim.compression.payload import (
    Digits,
    DigitsLayout,
    Layout,
    Levels,
    LevelsLayout,
    Parts,
    PartsLayout,
    Payload,
    Received,
    Sparse,
    Values,
    ValuesLayout,
)
from fedsim.compression.pertensor import PerTensor, fitted
from fedsim.compression.quantize import Quantize
from fedsim.compression.randomk import Bernoulli, PermK, RandK
from fedsim.compression.sign import Sign
from fedsim.compression.topk import SparseTernary, TopK
from fedsim.randomness import Stream

__all__ = [
    "Bernoulli",
    "Compressor",
    "Digits",
    "DigitsLayout",
    "Eden",
    "Half",
    "Identity",
    "Layout",
    "Levels",
    "LevelsLayout",
    "LowRank",
    "Natural",
    "NaturalDithering",
    "Parts",
    "PartsLayout",
    "Payload",
    "PerTensor",
    "PermK",
    "Quantize",
    "RandK",
    "Received",
    "Sign",
    "Sparse",
    "SparseTernary",
    "Sparsifier",
    "TopK",
    "Values",
    "ValuesLayout",
    "compress_difference",
    "fitted",
    "send",
    "weighted_sums",
]

Sparsifier = RandK | Bernoulli | PermK | TopK | SparseTernary | LowRank
"""Compressors that send fewer numbers than a row has."""


class Compressor(Protocol):
    """The contract; ``tests/contract/test_compressors.py`` holds every compressor to it."""

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        ...

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> payload of n rows; row i draws only the numbers of clients[i] (int64[n])."""
        ...

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Payload of n rows -> dtype[n, d]."""
        ...

    def omega(self, d: int) -> float:
        """A constant w with E C(x) = x and E||C(x) - x||^2 <= w ||x||^2 for every row of ``d`` coordinates, as in the
        papers; infinity where there is none, as for a biased compressor.
        """
        ...

    def delta(self, d: int) -> float:
        """A constant in (0, 1] with E||C(x) - x||^2 <= (1 - delta) ||x||^2 for every row of ``d`` coordinates; 0 where
        there is none: then error feedback and memories of rate 1 are not stable.
        """
        ...

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by all messages of a round and direction) by the papers' formula."""
        ...
