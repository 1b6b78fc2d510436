"""What a quantized message of a Gaussian row costs, three ways: the papers' formula, its entropy, its real encoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.compression import Levels, Quantize
from fedsim.randomness import Purpose, Stream
from fedsim.wire import coding

NORM_BITS = 32


@dataclass(frozen=True, slots=True)
class MessageCost:
    """Bits of one message of d coordinates at s levels, its 32-bit norm included.

    formula: the published code's formula. entropy: zero-order empirical entropy of the levels, plus the norm (mean).
    payload, longest: mean and maximum of 8 x the encoded length.
    """

    d: int
    s: int
    formula: float
    entropy: float
    payload: float
    longest: int


def entropy_bits(levels: Tensor) -> float:
    """Zero-order empirical entropy of a row of integers, in bits for the whole row. levels: int[d]."""
    shares = torch.unique(levels, return_counts=True)[1].to(torch.float64) / levels.shape[0]
    return float(-(shares * shares.log2()).sum()) * levels.shape[0]


def message_costs(dimensions: Iterable[int], levels: Iterable[int], messages: int = 64) -> list[MessageCost]:
    """One MessageCost for each dimension and number of levels, over at most ``messages`` Gaussian rows each."""
    costs = []
    for d in dimensions:
        count = max(4, min(messages, 2**21 // d))
        rows = torch.randn((count, d), generator=torch.Generator().manual_seed(d))
        for s in levels:
            compressor = Quantize(s)
            payload = compressor.compress(rows, Stream(s, Purpose.UPLINK), torch.arange(count))
            assert isinstance(payload, Levels)
            sizes = coding.size(payload).to(torch.float64)
            entropy = sum(entropy_bits(row) for row in payload.levels) / count + NORM_BITS
            formula = sum(compressor.formula_bits(d))
            costs.append(MessageCost(d, s, formula, entropy, float(sizes.mean()), int(sizes.max())))
    return costs
