"""What a client sends is divided by the steps it took, so that no client weighs more than its share.

Clients with f_i(w) = (w - c_i)^2 and equal Hessians: whatever the local steps, a client's direction is a multiple of
w - c_i, known in closed form, and the fixed point of the federation is the mean of the c_i weighted by these multiples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Here, Local, Memory, Notes, Plan, solve
from fedsim.solvers.direction import Gradient, Momentum
from fedsim.solvers.order import ORDERS
from fedsim.solvers.rate import Constant, OwnRule
from fedsim.tasks import LeastSquares

F64 = torch.float64
CENTRES = (1.0, 5.0)


class BySize:
    """Clients with different constant steps: ``lengths`` by the number of their samples, times local.step."""

    def __init__(self, lengths: dict[str, float]) -> None:
        self.lengths = lengths

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        return base * self.lengths[str(here.batch.weights.shape[1])], notes, 0


class Listed:
    """Step k of a client is lengths[k] times local.step."""

    def __init__(self, lengths: list[float]) -> None:
        self.lengths = lengths

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        return base * self.lengths[k], notes, 7


def own(name: str, **options: Any) -> OwnRule:
    return OwnRule(f"tests.oracle.test_fixed_point:{name}", options)


def federation(sizes: tuple[int, int]) -> Federation:
    """Client i has sizes[i] copies of the sample whose loss is (w - c_i)^2."""
    targets = torch.cat([torch.full((n,), c, dtype=F64) for n, c in zip(sizes, CENTRES, strict=True)])
    owners = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    return federate(Dataset(Examples(torch.ones(len(targets), 1, dtype=F64), targets, None), None, "pulled"), owners)


def fixed_point(sizes: tuple[int, int], plan: Plan, gamma: float) -> float:
    """Where the model rests when the server subtracts gamma times the clients' mean."""
    task = LeastSquares().build((1,), None, F64, torch.device("cpu"))
    world, model, memories = federation(sizes), torch.zeros(1, dtype=F64), dict[int, Memory]()
    for round in range(20000):
        stream = Stream(0, Purpose.BATCH, round)
        found = solve(task, world, model.expand(2, -1), torch.arange(2), plan, stream, memories)
        memories, before = dict(enumerate(found.memories)), model
        model = model - gamma * found.direction.mean(dim=0)
        if float((model - before).abs()) < 1e-15:
            break
    return float(model)


def weighted(first: float, second: float) -> float:
    return (first * CENTRES[0] + second * CENTRES[1]) / (first + second)


@pytest.mark.parametrize("steps", [1, 4])
def test_clients_with_different_steps_keep_the_fixed_point(steps: int) -> None:
    """eta and 5 eta. The difference weighs the second client up to 5 times as much; the direction as much as the first.

    Exactly with one step; with more up to the drift, of the order of eta, which is known as well.
    """
    eta, lengths = 0.004, (1.0, 5.0)
    rule = own("BySize", lengths={"2": lengths[0], "3": lengths[1]})
    gone = [1 - (1 - 2 * eta * length) ** steps for length in lengths]

    def plan(send: Any) -> Plan:
        return Plan(Local(steps=steps, send=send), eta, 1, None, rule)

    divided = fixed_point((2, 3), plan("direction"), 0.4)
    assert divided == pytest.approx(weighted(gone[0] / lengths[0], gone[1] / lengths[1]), rel=1e-9)
    assert divided == pytest.approx(3, rel=1e-9 if steps == 1 else 0.03)
    moved = fixed_point((2, 3), plan("difference"), 8.0)
    assert moved == pytest.approx(weighted(*gone), rel=1e-9)
    assert moved > 4.2


@pytest.mark.parametrize("direction", [Gradient(), Momentum(beta=0.9)])
def test_clients_with_different_numbers_of_steps_keep_the_fixed_point(direction: Any) -> None:
    """1 and 8 steps of an epoch. With momentum the eighth is up to 5.7 times as long as the first, and counts so."""
    eta = 1e-5
    for send in ("direction", "difference"):
        local = Local(epochs=1, batch=2, order="reshuffle", send=send)
        plan = Plan(local, eta, 1, ORDERS["reshuffle"], Constant(), direction)
        found = fixed_point((2, 16), plan, 0.4 if send == "direction" else 0.05 / eta / 8)
        beta = getattr(direction, "beta", 0.0)
        lengths = [sum((1 - beta ** (h + 1)) / (1 - beta) for h in range(n)) for n in (1, 8)]
        expected = 3 if send == "direction" else weighted(*lengths)
        assert found == pytest.approx(expected, rel=2e-3)


def test_a_velocity_that_survives_rounds_keeps_the_fixed_point() -> None:
    local = Local(epochs=1, batch=2, order="reshuffle")
    plan = Plan(local, 1e-5, 1, ORDERS["reshuffle"], Constant(), Momentum(beta=0.9, reset="never"))
    assert fixed_point((2, 16), plan, 0.02) == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize("lengths", [[0, 2, 0, 1], [1, 0, 0, 3], [0, 0, 0, 2], [0.5, 0.5, 0, 0], [1, 1, 1, 1]])
def test_steps_of_no_length_do_not_count(lengths: list[float]) -> None:
    """Against the path itself: the difference is where it ended, the direction that, divided by the sum of lengths."""
    eta, w = 0.07, 0.3
    for length in lengths:
        w -= eta * length * 2 * (w - CENTRES[1])
    task = LeastSquares().build((1,), None, F64, torch.device("cpu"))
    for send, divisor in (("difference", 1.0), ("direction", eta * sum(lengths))):
        plan = Plan(Local(steps=4, send=send), eta, 1, None, own("Listed", lengths=lengths))
        start = torch.full((1, 1), 0.3, dtype=F64)
        found = solve(task, federation((2, 3)), start, torch.tensor([1]), plan, Stream(0, Purpose.BATCH))
        assert float(found.direction) == pytest.approx((0.3 - w) / divisor, rel=1e-12)
        assert found.gradients.tolist() == [4 * (3 + 7)]


def test_a_round_without_any_length_sends_a_gradient_and_no_difference() -> None:
    """The limit of ever shorter steps: the direction stays, the difference vanishes."""
    task = LeastSquares().build((1,), None, F64, torch.device("cpu"))
    sent = {}
    for send in ("difference", "direction"):
        plan = Plan(Local(steps=3, send=send), 0.1, 1, None, own("Listed", lengths=[0.0] * 3))
        found = solve(
            task, federation((2, 3)), torch.zeros(1, 1, dtype=F64), torch.tensor([1]), plan, Stream(0, Purpose.BATCH)
        )
        sent[send] = float(found.direction)
    assert sent == {"difference": 0.0, "direction": -2 * CENTRES[1]}


def test_short_steps_lose_no_digits() -> None:
    """Summed from the d_h, not from models whose difference cancels: eta = 1e-14, models of order 1e3."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((9, 4))), torch.from_numpy(rng.standard_normal(9))
    world = federate(Dataset(Examples(x, y, None), None, "random"), torch.zeros(9, dtype=torch.int64))
    task = LeastSquares().build((4,), None, F64, torch.device("cpu"))
    start = torch.full((1, 4), 1e3, dtype=F64)
    plan = Plan(Local(epochs=1, batch=4, order="reshuffle"), 1e-14, 1, ORDERS["reshuffle"])
    found = solve(task, world, start, torch.tensor([0]), plan, Stream(0, Purpose.BATCH))
    expected = 2 * x.numpy().T @ (x.numpy() @ start.numpy()[0] - y.numpy()) / 9
    np.testing.assert_allclose(found.direction.numpy()[0], expected, rtol=1e-10)
    assert math.isfinite(float(found.losses))
