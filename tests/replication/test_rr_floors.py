"""How near the minimum a constant step gets: the laws in gamma, exactly by enumeration and through fedsim's solver.

For least squares with gradients g_i and Hessians H_i of n samples at the minimum, one epoch in the order pi moves w by

    -gamma n H (w - w*) + gamma^2 sum_(j<i) H_pi_i g_pi_j + O(gamma^3)          H the mean of H_i

    RR  mean over pi: -(gamma^2 / 2) sum_i H_i g_i, for sum_j g_j = 0. So w stays away by a bias of
        -(gamma / 2) H^-1 mean_i H_i g_i: squared, gamma^2. Around it, noise: a variance of order gamma^4 n^3 an epoch
        over a contraction by gamma n mu is gamma^3 n^2. The floor goes as gamma^3 while gamma mu n^2 >> 1 (and for
        ever where the bias happens to vanish), as gamma^2 below.
    SO  the same pi for ever: every draw has a bias of order gamma of its own. gamma^2.
    SGD noise of variance gamma^2 a step over a contraction by gamma mu: gamma.

The bound of the theorem for RR and SO is gamma^2. Derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedsim.data.examples import Dataset, Examples, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Memory, Plan, solve
from fedsim.solvers.order import ORDERS
from fedsim.tasks import LeastSquares
from tests.replication import rr

Array = npt.NDArray[np.float64]
F64 = torch.float64


@dataclass(frozen=True)
class Squares:
    """Mean of (<x_j, w> - y_j)^2. x: [n, d]. y: [n]."""

    x: Array
    y: Array

    @cached_property
    def best(self) -> Array:
        """w*."""
        return np.asarray(np.linalg.lstsq(self.x, self.y, rcond=None)[0])

    @cached_property
    def hessians(self) -> Array:
        """H_j: [n, d, d]."""
        return np.asarray(2 * self.x[:, :, None] * self.x[:, None])

    @cached_property
    def gradients(self) -> Array:
        """g_j at w*: [n, d]."""
        return np.asarray(2 * self.x * (self.x @ self.best - self.y)[:, None])

    @property
    def longest(self) -> float:
        """1 / L_max."""
        return 1 / float(2 * (self.x * self.x).sum(axis=1).max())


def unequal(n: int) -> Squares:
    """Samples of different lengths in the plane, two on a line: sum H_i g_i = 2 sum ||x_i||^2 g_i is not 0."""
    draw = np.random.default_rng(0)
    return Squares(draw.standard_normal((n, 2))[:, : n - 1], draw.standard_normal(n))


def circle(n: int = 8) -> Squares:
    """Samples of length 1: sum H_i g_i = 2 sum g_i = 0, so reshuffling has no bias."""
    angles = 2 * math.pi * np.arange(n) / n
    return Squares(np.c_[np.cos(angles), np.sin(angles)], np.random.default_rng(0).standard_normal(n))


def exactly(problem: Squares, order: str, gamma: float) -> tuple[float, Array]:
    """(E ||w - w*||^2 at the ends of epochs when the start is forgotten, E w - w*), over all orders of the samples.

    An epoch maps e = w - w* to A e + b. The first two moments solve m = E A m + E b and
    M = E[A M A' + A m b' + b m' A' + b b'].
    """
    n, d = problem.x.shape
    walks = [(j,) for j in range(n)] if order == "sgd" else list(permutations(range(n)))
    one, a, b = np.eye(d), np.tile(np.eye(d), (len(walks), 1, 1)), np.zeros((len(walks), d))
    for samples in np.array(walks).T:
        step = one - gamma * problem.hessians[samples]
        a, b = step @ a, np.einsum("kij,kj->ki", step, b) - gamma * problem.gradients[samples]
    if order == "so":
        stay = np.linalg.solve(one - a, b[:, :, None])[:, :, 0]
        return float((stay * stay).sum(axis=1).mean()), stay.mean(axis=0)
    mean = np.linalg.solve(one - a.mean(axis=0), b.mean(axis=0))
    moved = a @ mean
    cross = np.einsum("ki,kj->ij", moved, b) / len(walks)
    constant = cross + cross.T + np.einsum("ki,kj->ij", b, b) / len(walks)
    twice = np.einsum("kij,klm->iljm", a, a).reshape(d * d, d * d) / len(walks)
    moment = np.linalg.solve(np.eye(d * d) - twice, constant.ravel()).reshape(d, d)
    return float(np.trace(moment)), mean


def growth(problem: Squares, order: str, multiple: float) -> float:
    """The floor of the step ``multiple`` / L_max over that of half of it."""
    longer, shorter = (exactly(problem, order, step * problem.longest)[0] for step in (multiple, multiple / 2))
    return longer / shorter


def solved(problem: Squares, order: str, multiple: float, epochs: int, replicas: int = 6) -> float:
    """Mean ||w - w*||^2 at the ends of the last half of the epochs of independent clients, started at the minimum."""
    train = Examples(
        torch.from_numpy(np.tile(problem.x, (replicas, 1))), torch.from_numpy(np.tile(problem.y, replicas)), None
    )
    world = federate(Dataset(train, None, "squares"), torch.arange(replicas).repeat_interleave(len(problem.y)))
    best, ids = torch.from_numpy(problem.best), torch.arange(replicas)
    task = LeastSquares().build((problem.x.shape[1],), None, F64, torch.device("cpu"))
    name = rr.ORDERS[order]
    local = Local(epochs=1, batch=1, order=name, send="difference")
    plan = Plan(local, multiple * problem.longest, 1, ORDERS[name])
    models, errors = best.repeat(replicas, 1), []
    memories: dict[int, Memory] = {}
    for epoch in range(epochs):
        found = solve(task, world, models, ids, plan, Stream(0, Purpose.BATCH, epoch), memories)
        models, memories = models - found.direction, dict(enumerate(found.memories))
        if epoch >= epochs // 2:
            errors.append(float((models - best).square().sum(dim=1).mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_with_few_batches_the_floor_of_reshuffling_goes_as_the_square_of_a_small_step(n: int) -> None:
    """By enumeration: x3.9 +- .4 per doubling for RR and SO, x2 for SGD."""
    for order, law, tolerance in (("rr", 3.9, 0.4), ("so", 3.9, 0.4), ("sgd", 2, 0.1)):
        for multiple in (0.0125, 0.00625):
            assert growth(unequal(n), order, multiple) == pytest.approx(law, abs=tolerance), order


def test_longer_steps_of_reshuffling_have_a_floor_that_goes_as_their_cube() -> None:
    """By enumeration: x8 without a bias at any small step; with one, more than x6 at 0.4 / L_max, x4.1 at 0.0125."""
    assert growth(circle(6), "rr", 0.0125) == pytest.approx(8, abs=0.2)
    assert growth(unequal(6), "rr", 0.4) > 6
    assert growth(unequal(6), "rr", 0.0125) < 4.2


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_the_bias_of_reshuffling_is_half_a_step_times_the_mean_of_hessian_times_gradient(n: int) -> None:
    """-(gamma / 2) H^-1 mean H_i g_i, and the next term is of order gamma^2."""
    problem = unequal(n)
    pushed = np.einsum("kij,kj->i", problem.hessians, problem.gradients) / n
    predicted = -0.5 * np.linalg.solve(problem.hessians.mean(axis=0), pushed)
    far = []
    for multiple in (0.01, 0.005):
        gamma = multiple * problem.longest
        _, mean = exactly(problem, "rr", gamma)
        far.append(float(np.linalg.norm(mean / gamma - predicted) / np.linalg.norm(predicted)))
    assert far[1] < 0.05
    assert far[0] / far[1] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("order", ["rr", "so"])
def test_the_solver_has_the_law_of_the_enumeration(order: str) -> None:
    """Two samples, 0.025 and 0.05 / L_max: x3.9 +- .4 for twice the step. By enumeration 4.1 for RR and 4.0 for SO.

    Both steps see the same permutations, so what little RR's noise adds to its bias hardly changes the ratio.
    """
    shorter, longer = (solved(unequal(2), order, multiple, 240, 3) for multiple in (0.025, 0.05))
    assert longer / shorter == pytest.approx(3.9, abs=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [0.025, 0.05])
def test_the_solver_has_the_floor_of_the_enumeration(multiple: float) -> None:
    """Two samples, RR, 15 %.

    Noise e beside a bias b is 3 % of the floor, so ||b + e||^2 has a relative deviation of 2 sqrt(.03) = .35, over at
    least 6 x 1500 / (2 x 40) = 110 independent times 3.3 %.
    """
    expected, _ = exactly(unequal(2), "rr", multiple * unequal(2).longest)
    assert solved(unequal(2), "rr", multiple, 3000) == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_the_floors_of_constant_steps_without_a_bias() -> None:
    """Eight samples on the circle. Twice the step: x2 for SGD; x4 for SO; RR, bounded by x4 in theory, about x8."""
    for order, low, high in (("sgd", 1.8, 2.3), ("so", 3.5, 4.3), ("rr", 6.0, 9.0)):
        floors = [solved(circle(), order, multiple, 1200) for multiple in (0.025, 0.05, 0.1)]
        for shorter, longer in pairwise(floors):
            assert low <= longer / shorter <= high, order


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_the_floors_of_constant_steps_with_a_bias(n: int) -> None:
    """Two and three samples of different lengths. Twice the step: RR and SO x3.9 +- .4, SGD x2."""
    for order, law, tolerance in (("rr", 3.9, 0.4), ("so", 3.9, 0.4), ("sgd", 2.05, 0.25)):
        floors = [solved(unequal(n), order, multiple, 1500) for multiple in (0.05, 0.1)]
        assert floors[1] / floors[0] == pytest.approx(law, abs=tolerance), order
