"""Cohorts: their distribution, and that they are a function of (seed, round) alone.

The statistical tests are fixed by their seeds; each would alarm on a perfect generator once in 10^7 seeds or less, all
of them together once in 10^6.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from fedsim.errors import ConfigError
from fedsim.participation import Bernoulli, Full, KofN, Participation
from fedsim.randomness import Purpose, Stream

FALSE_ALARM = 1e-7
SCHEMES: list[Participation] = [Full(), Bernoulli(0.3), KofN(3)]


def chi_square(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts look like their expectations, at FALSE_ALARM."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return bool(statistic < chi2.isf(FALSE_ALARM, df=len(counts) - 1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_cohort_is_ascending_distinct_and_repeatable(scheme: Participation) -> None:
    for round in range(100):
        cohort = scheme.sample(8, 5, round)
        clients = cohort.tolist()
        assert cohort.dtype == torch.int64
        assert clients == sorted(set(clients))
        assert all(0 <= client < 8 for client in clients)
        assert clients == scheme.sample(8, 5, round).tolist()


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=repr)
def test_cohorts_differ_by_round_and_seed(scheme: Participation) -> None:
    cohorts = [tuple(scheme.sample(40, seed, round).tolist()) for seed in range(10) for round in range(10)]
    assert len(set(cohorts)) > 95


def test_full() -> None:
    assert Full().sample(4, 0, 3).tolist() == [0, 1, 2, 3]
    assert Full().probability(4) == 1.0


def test_probabilities() -> None:
    assert Bernoulli(0.3).probability(7) == 0.3
    assert KofN(3).probability(7) == 3 / 7


def test_bernoulli_at_the_edges() -> None:
    assert Bernoulli(1.0).sample(50, 1, 2).tolist() == list(range(50))
    assert Bernoulli(1e-300).sample(50, 1, 2).shape == (0,)


def test_a_bernoulli_client_takes_part_when_its_coin_is_below_p() -> None:
    coin = float(Stream(1, Purpose.PARTICIPATION, 2).uniform(torch.tensor([5]), 1, torch.float64))
    assert 5 not in Bernoulli(coin).sample(6, 1, 2).tolist()
    assert 5 in Bernoulli(math.nextafter(coin, 1)).sample(6, 1, 2).tolist()


def test_a_bernoulli_client_is_drawn_alike_among_few_and_many() -> None:
    for round in range(50):
        many = Bernoulli(0.4).sample(30, 2, round)
        assert Bernoulli(0.4).sample(10, 2, round).tolist() == many[many < 10].tolist()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_bernoulli_statistics(p: float) -> None:
    """2000 rounds of 12 clients: the total and each client's count are binomial; so are the sizes (independence)."""
    rounds, clients = 2000, 12
    taken = np.zeros((rounds, clients), dtype=int)
    for round in range(rounds):
        taken[round, Bernoulli(p).sample(clients, 17, round).numpy()] = 1
    for counts, draws in ((taken.sum(), rounds * clients), (taken.sum(axis=0), rounds)):
        tail = FALSE_ALARM / 4 / np.size(counts)
        assert np.all(binom.cdf(counts, draws, p) >= tail)
        assert np.all(binom.sf(counts - 1, draws, p) >= tail)
    expected = rounds * binom.pmf(np.arange(clients + 1), clients, p)
    rare = expected < 20  # too few for a chi-square: counted together
    sizes = np.bincount(taken.sum(axis=1), minlength=clients + 1)
    assert chi_square(np.append(sizes[~rare], sizes[rare].sum()), np.append(expected[~rare], expected[rare].sum()))


@pytest.mark.parametrize(("n", "k"), [(6, 3), (5, 1), (5, 4), (7, 2)])
def test_every_subset_is_equally_likely(n: int, k: int) -> None:
    """Floyd's algorithm: chi-square of 2000 cohorts over all subsets of k clients."""
    found = Counter(tuple(KofN(k).sample(n, 23, round).tolist()) for round in range(2000))
    subsets = list(combinations(range(n), k))
    assert set(found) <= set(subsets)
    assert chi_square(np.array([found[subset] for subset in subsets]), np.full(len(subsets), 2000 / len(subsets)))


def test_k_of_n_at_the_edges() -> None:
    assert KofN(5).sample(5, 0, 0).tolist() == [0, 1, 2, 3, 4]
    assert KofN(1).sample(1, 0, 0).tolist() == [0]
    many = 2**32 - 1
    cohort = KofN(1000).sample(many, 3, 4)  # the work grows with k, not with n
    assert len(set(cohort.tolist())) == 1000
    assert 0 <= int(cohort[0]) < int(cohort[-1]) < many
    assert abs(float(cohort.double().mean()) / many - 0.5) < 6 / np.sqrt(12 * 1000)


def test_more_clients_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"participation\.k = 6, but there are 5 clients; lower k or add clients"):
        KofN(6).sample(5, 0, 0)
