"""Rules of aggregation: what they are for a minority that says anything, and that they depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from fedsim.algorithms.method import ServerOptions
from fedsim.algorithms.robust import clipped, combine, geometric_median, median, trimmed_mean
from fedsim.flat import tree_sum

RULES = {
    "median": ServerOptions(aggregate="median"),
    "trimmed-mean": ServerOptions(aggregate="trimmed-mean", trim=0.4),
    "geometric-median": ServerOptions(aggregate="geometric-median"),
    "clip": ServerOptions(clip=1.0),
    "clipped geometric median": ServerOptions(aggregate="geometric-median", clip=2.0),
}
COHORTS = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))


def rows_of(n: int, d: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


def even(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@given(cohort=COHORTS)
def test_who_says_it_does_not_count(rule: str, cohort: tuple[int, int, int]) -> None:
    rows = rows_of(*cohort)
    order = torch.from_numpy(np.random.default_rng(cohort[2]).permutation(len(rows)))
    found, again = (combine(RULES[rule], each, even(len(rows))) for each in (rows, rows[order]))
    torch.testing.assert_close(found, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@given(cohort=COHORTS, times=st.sampled_from([2.0**-20, 0.5, 8.0]), shares=st.sampled_from([0.5, 1.0, 2.0]))
def test_lengths_carry_over(rule: str, cohort: tuple[int, int, int], times: float, shares: float) -> None:
    """Of all rows, and of the factors in the estimate; powers of 2, which rounding leaves alone."""
    rows, factors = rows_of(*cohort), even(cohort[0])
    found = combine(RULES[rule], times * rows, shares * factors)
    torch.testing.assert_close(found, times * shares * combine(RULES[rule], rows, factors), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", RULES)
@given(cohort=COHORTS, length=st.sampled_from([1e3, 1e8, 1e30]))
def test_a_fifth_cannot_move_it_far(rule: str, cohort: tuple[int, int, int], length: float) -> None:
    """The result stays within three lengths of an honest row, where the mean goes as far as they like."""
    _, d, seed = cohort
    honest, liars = rows_of(8, d, seed), torch.full((2, d), length, dtype=torch.float64)
    rows = torch.cat((honest, liars))
    assert float(combine(RULES[rule], rows, even(10)).norm()) <= 3 * float(honest.norm(dim=1).max())
    assert float(combine(ServerOptions(), rows, even(10)).norm()) > 0.1 * length


@given(cohort=COHORTS)
def test_a_majority_at_one_place_decides(cohort: tuple[int, int, int]) -> None:
    """Of rows most of which are equal the medians are that row; also where it is zero, and has no length."""
    _, d, seed = cohort
    for place in (rows_of(1, d, seed), torch.zeros(1, d, dtype=torch.float64)):
        rows = torch.cat((place.expand(7, d), 100 * rows_of(3, d, seed + 1)))
        assert torch.equal(median(rows), place[0])
        assert torch.equal(trimmed_mean(rows, 0.3), trimmed_mean(rows[:7], 0.3))
        torch.testing.assert_close(geometric_median(rows), place[0], rtol=0.2, atol=0.2 * float(place.norm()) + 1e-12)


@pytest.mark.parametrize("far", [1.0, 100.0, 1e6])
def test_four_steps_of_weiszfeld_come_near_the_minimum(far: float) -> None:
    """Of sum ||x_i - z||, which scipy finds: within 1 % of what there is between it and the best row."""
    for seed in range(20):
        rows = rows_of(20, 30, seed)
        rows[:4] += far

        def total(z: object, rows: Tensor = rows) -> float:
            return float((rows - torch.as_tensor(z)).norm(dim=1).sum())

        best = minimize(total, rows.median(dim=0).values.numpy(), method="BFGS", options={"gtol": 1e-9}).fun
        start = total(rows[4:].median(dim=0).values)
        assert total(geometric_median(rows)) - best <= 0.01 * (start - best) + 1e-6 * best


@given(cohort=COHORTS, times=st.floats(0.1, 3.0))
def test_clipping_shortens_and_never_turns(cohort: tuple[int, int, int], times: float) -> None:
    rows = rows_of(*cohort)
    rows[0] = 0.0
    found, lengths = clipped(rows, times), rows.norm(dim=1)
    middle = times * float(lengths.sort().values[(len(rows) - 1) // 2])
    torch.testing.assert_close(found.norm(dim=1), lengths.clamp_max(middle), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(found * lengths[:, None], rows * found.norm(dim=1)[:, None], rtol=1e-12, atol=1e-12)


@given(cohort=COHORTS)
def test_the_default_is_the_weighted_mean_to_the_bit(cohort: tuple[int, int, int]) -> None:
    rows = rows_of(*cohort).to(torch.float32)
    shares = rows_of(cohort[0], 1, cohort[2] + 1)[:, 0].abs().to(torch.float32)
    assert torch.equal(combine(ServerOptions(), rows, shares), tree_sum(shares[:, None] * rows, dim=0))


@given(cohort=COHORTS, trim=st.floats(0.01, 0.49))
def test_what_a_trimmed_mean_leaves_out(cohort: tuple[int, int, int], trim: float) -> None:
    """At least the share it says on either side, as long as anything is left; and it lies between what is left."""
    rows = rows_of(*cohort)
    n, ordered, found = len(rows), rows.sort(dim=0).values, trimmed_mean(rows, trim)
    cut = min(int(np.ceil(trim * n - 1e-9)), (n - 1) // 2)
    assert bool((found >= ordered[cut] - 1e-12).all())
    assert bool((found <= ordered[n - 1 - cut] + 1e-12).all())
