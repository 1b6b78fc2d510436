"""Orders are as random as they say. Each test: false-alarm probability 1e-9 when the draws are ideal."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fedsim.solvers.order import ORDERS

ALARM = 1e-9


def refuse(observed: list[int], cells: int) -> None:
    """Chi-square test that ``observed`` counts are uniform over ``cells``."""
    expected = sum(observed) / cells
    statistic = sum((count - expected) ** 2 for count in observed) / expected
    statistic += (cells - len(observed)) * expected
    assert statistic < chi2.isf(ALARM, cells - 1)


@pytest.mark.parametrize("order", ["reshuffle", "synchronised"])
def test_all_permutations_of_four_are_equally_likely_over_passes(order: str) -> None:
    passes = [tuple(ORDERS[order](3, 2, 4, epoch, 5).tolist()) for epoch in range(1200)]
    refuse(list(Counter(passes).values()), math.factorial(4))


@pytest.mark.parametrize("order", ["reshuffle", "shuffle-once"])
def test_all_permutations_of_four_are_equally_likely_over_clients_and_seeds(order: str) -> None:
    clients = [tuple(ORDERS[order](3, client, 4, 0, 5).tolist()) for client in range(1200)]
    seeds = [tuple(ORDERS[order](seed, 1, 4, 0, 5).tolist()) for seed in range(1200)]
    refuse(list(Counter(clients).values()), math.factorial(4))
    refuse(list(Counter(seeds).values()), math.factorial(4))


def test_successive_passes_are_independent() -> None:
    """The pair (first sample of a pass, first sample of the next) is uniform over all pairs of 6."""
    firsts = [int(ORDERS["reshuffle"](8, 0, 6, epoch, 1)[0]) for epoch in range(2400)]
    refuse(list(Counter(zip(firsts[::2], firsts[1::2], strict=True)).values()), 36)


def test_draws_with_replacement_are_uniform_and_independent() -> None:
    """Pairs of neighbours in a pass over 12 samples, and the number of distinct samples in a pass."""
    passes = np.stack([ORDERS["with-replacement"](5, 1, 12, epoch, 1).numpy() for epoch in range(600)])
    pairs = passes.reshape(-1, 6, 2).reshape(-1, 2)
    refuse(list(Counter(map(tuple, pairs.tolist())).values()), 144)
    distinct = np.array([len(set(row)) for row in passes.tolist()])
    mean = 12 * (1 - (11 / 12) ** 12)
    variance = 12 * (11 / 12) ** 12 + 12 * 11 * (10 / 12) ** 12 - 144 * (11 / 12) ** 24
    assert abs(distinct.mean() - mean) < 6.2 * math.sqrt(variance / len(distinct))


def test_sampling_without_replacement_has_its_smaller_variance() -> None:
    """The mean of k of n numbers has variance (n - k) / (k (n - 1)) sigma^2: the lemma behind every rate of RR."""
    n, k, passes = 10, 4, 1000
    numbers = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = numbers - numbers.mean()
    means = torch.stack([centred[ORDERS["reshuffle"](2, 0, n, epoch, 1)[:k]].mean() for epoch in range(passes)])
    expected = (n - k) / (k * (n - 1)) * float(centred.square().mean())
    squares = means.square()
    assert abs(float(squares.mean()) - expected) < 6.2 * float(squares.std()) / math.sqrt(passes)
