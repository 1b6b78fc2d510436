"""Whole rounds of local training against a transcription in numpy: orders, rules, directions, and what survives."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Memory, Plan, solve
from fedsim.solvers.direction import Gradient, LocalDirection, Momentum, Sam
from fedsim.solvers.order import ORDERS
from fedsim.solvers.rate import Constant, Harmonic, RateRule, Salr
from fedsim.tasks import Logistic

F64 = torch.float64
SIZES, D, L2, SEED, ROUNDS = [7, 12, 5], 4, 0.2, 8, 4
Array = npt.NDArray[np.float64]


def federation() -> Federation:
    rng = np.random.default_rng(3)
    n = sum(SIZES)
    train = Examples(torch.from_numpy(rng.standard_normal((n, D))), torch.from_numpy(rng.integers(0, 2, n)), 2)
    return federate(Dataset(train, None, "random"), torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES)))


class Numpy:
    """One client of the transcription. It goes through all rounds with its own velocity, history and place."""

    def __init__(self, client: int, local: Local, rate: RateRule, direction: LocalDirection, eta: float) -> None:
        shard = federation().shard(client)
        self.x, self.y = shard.features.numpy(), 2.0 * shard.targets.numpy() - 1
        self.client, self.n, self.local, self.eta = client, len(shard), local, eta
        self.rate, self.direction = rate, direction
        self.k, self.velocity, self.length = 0, np.zeros(D), 0.0
        self.history: list[float] = []
        self.factor, self.gradients = 1.0, 0

    def loss(self, w: Array, some: Array, weight: float) -> float:
        margins = self.y[some] * (self.x[some] @ w)
        return float(weight * np.log1p(np.exp(-margins)).sum() + L2 / 2 * w @ w)

    def gradient(self, w: Array, some: Array, weight: float) -> Array:
        slopes = -self.y[some] / (1 + np.exp(self.y[some] * (self.x[some] @ w)))
        return weight * self.x[some].T @ slopes + L2 * w

    def batch(self) -> Array:
        b = min(self.local.batch, self.n) or self.n
        epoch, j = divmod(self.k, -(-self.n // b))
        pass_ = ORDERS[self.local.order](SEED, self.client, self.n, epoch, 3).numpy()
        return pass_[j * b : (j + 1) * b]

    def measure(self, w: Array, some: Array, rule: Salr) -> float:
        """Algorithm 2 as printed, with the mean over the batch."""
        ends = {}
        for sign, steps in ((-1, rule.descent), (1, rule.ascent)):
            theta = w.copy()
            for _ in range(steps):
                if rule.normalise == "batch":
                    g = self.gradient(theta, some, 1 / len(some))
                    unit = g / np.linalg.norm(g)
                else:
                    each = [self.gradient(theta, some[j : j + 1], 1.0) for j in range(len(some))]
                    unit = np.mean([g / np.linalg.norm(g) for g in each], axis=0)
                theta = theta + sign * rule.probe * unit
            ends[sign] = self.loss(theta, some, 1 / len(some))
        return max(0.0, ends[1] - ends[-1])

    def step_size(self, w: Array, some: Array) -> float:
        match self.rate:
            case Harmonic(mu=mu, factor=factor, hold=hold):
                return min(self.eta, 1 / (mu + mu * factor * max(0, self.k - hold)))
            case Salr() as rule:
                if not self.history or self.k % rule.period == 0:
                    self.history.append(self.measure(w, some, rule))
                    ratio = self.history[-1] / np.median(self.history)
                    self.factor = float(min(max(ratio, rule.floor), rule.cap))
                    self.gradients += (rule.descent + rule.ascent + 2) * len(some)
                return self.eta * self.factor
        return self.eta

    def step(self, w: Array, some: Array) -> Array:
        weight = -(-self.n // (min(self.local.batch, self.n) or self.n)) / self.n
        g = self.gradient(w, some, weight)
        self.gradients += len(some)
        match self.direction:
            case Momentum(beta=beta):
                self.velocity = beta * self.velocity + g
                self.length = beta * self.length + 1
                return self.velocity
            case Sam(rho=rho):
                self.gradients += len(some)
                return self.gradient(w + rho * g / np.linalg.norm(g), some, weight)
        self.length = 1.0
        return g

    def round(self, w: Array) -> Array:
        if isinstance(self.direction, Momentum) and self.direction.reset == "round":
            self.velocity, self.length = np.zeros(D), 0.0
        start, taken, self.gradients = w, 0.0, 0
        b = min(self.local.batch, self.n) or self.n
        for _ in range(self.local.epochs * -(-self.n // b) or self.local.steps):
            some = self.batch()
            eta = self.step_size(w, some)
            d = self.step(w, some)
            w, taken = w - eta * d, taken + eta * (self.length if isinstance(self.direction, Momentum) else 1)
            self.k += 1
        return start - w if self.local.send == "difference" else (start - w) / taken


RATES = [
    Constant(),
    Harmonic(mu=2.0, factor=1 / 3, hold=5),
    Harmonic(mu=20.0, factor=0.5),
    Salr(probe=0.05, period=3),
    Salr(descent=2, ascent=3, probe=0.1, period=1, cap=1.2, floor=0.8, normalise="sample"),
]
DIRECTIONS = [Gradient(), Momentum(beta=0.8), Momentum(beta=0.5, reset="never"), Sam(rho=0.1)]


@pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: f"{type(d).__name__}-{getattr(d, 'reset', '')}")
@pytest.mark.parametrize("rate", RATES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(("steps", "epochs", "batch"), [(1, 0, 0), (2, 0, 3), (1, 2, 5)])
def test_rounds_equal_their_pseudo_code(
    steps: int, epochs: int, batch: int, rate: RateRule, direction: LocalDirection
) -> None:
    """Four rounds of three clients, each from a new model, everything remembered from round to round."""
    world, eta = federation(), 0.11
    task = Logistic(l2=L2).build((D,), 2, F64, torch.device("cpu"))
    orders = sorted(ORDERS) if isinstance(direction, Gradient) else ["reshuffle", "synchronised"]
    for order, send in zip(orders, cycle(["direction", "difference"]), strict=False):
        local = Local(steps=steps, epochs=epochs, batch=batch, order=order, step=eta, send=send)
        plan = Plan(local, eta, 1, ORDERS[order], rate, direction)
        clients, memories = [Numpy(i, local, rate, direction, eta) for i in range(3)], dict[int, Memory]()
        for round in range(ROUNDS):
            start = np.random.default_rng(round).standard_normal((3, D))
            stream = Stream(SEED, Purpose.BATCH, round)
            found = solve(task, world, torch.from_numpy(start), torch.arange(3), plan, stream, memories)
            memories = dict(enumerate(found.memories))
            expected = np.stack([client.round(w) for client, w in zip(clients, start, strict=True)])
            np.testing.assert_allclose(found.direction.numpy(), expected, rtol=1e-9, atol=1e-11)
            assert found.gradients.tolist() == [client.gradients for client in clients]
            assert [memories[i].steps for i in range(3)] == [client.k for client in clients]
        for i, client in enumerate(clients):
            if isinstance(rate, Salr):
                np.testing.assert_allclose(memories[i].rate["history"].numpy(), client.history, rtol=1e-9)
