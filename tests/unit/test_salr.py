"""SALR's measurement on losses whose sharpness is known, its bounds, and what it must leave alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Here, Local, Memory, Notes, Plan, solve
from fedsim.solvers.direction import Gradient, Momentum
from fedsim.solvers.order import ORDERS
from fedsim.solvers.rate import Constant, Salr, sharpness
from fedsim.tasks import Logistic
from fedsim.tasks.classifier import classifier
from fedsim.tasks.task import Batch

CPU, F64 = torch.device("cpu"), torch.float64


@dataclass(frozen=True)
class Known:
    """f(w) = value of a function known in closed form; the gradient says where a probe goes. weights count."""

    slope: Tensor
    curvature: float = 0.0
    sign: float = 1.0

    @property
    def dim(self) -> int:
        return len(self.slope)

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weight = batch.weights.sum(dim=1, keepdim=True)
        rows = weight * (self.slope + self.curvature * models)
        losses = weight[:, 0] * (models @ self.slope + self.curvature / 2 * models.square().sum(dim=1))
        return self.sign * rows, losses


@dataclass(frozen=True)
class Times:
    """a f: a task whose gradients and losses are ``factor`` times those of another."""

    task: Any
    factor: float
    walker: None = None

    @property
    def dim(self) -> int:
        return int(self.task.dim)

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, losses = self.task.gradients(models, batch)
        return self.factor * rows, self.factor * losses


def world(n: int = 11, d: int = 3) -> Federation:
    rng = np.random.default_rng(4)
    train = Examples(torch.from_numpy(rng.standard_normal((n, d))), torch.from_numpy(rng.integers(0, 2, n)), 2)
    return federate(Dataset(train, None, "random"), torch.zeros(n, dtype=torch.int64))


def here(task: Any, model: Tensor, b: int = 4, weight: float = 1.0) -> Here:
    shard = world().shard(0)
    weights = torch.full((1, b), weight / b, dtype=F64)
    return Here(task, model, Batch(shard.features[None, :b], shard.targets[None, :b], weights))


def history(*values: float) -> dict[str, Tensor]:
    return {"history": torch.tensor(values, dtype=F64), "factor": torch.tensor(1.0, dtype=F64)}


@pytest.mark.parametrize("normalise", ["batch", "sample"])
@given(
    slope=st.lists(st.floats(-3, 3), min_size=3, max_size=3).filter(lambda g: any(abs(x) > 1e-3 for x in g)),
    descent=st.integers(1, 7),
    ascent=st.integers(1, 7),
    probe=st.floats(1e-3, 10),
    weight=st.floats(0.1, 3),
)
@settings(max_examples=30, deadline=None)
def test_on_a_linear_loss(
    normalise: Any, slope: list[float], descent: int, ascent: int, probe: float, weight: float
) -> None:
    """S = (n1 + n2) gamma ||g||, also on the batch of a pass whose weights do not sum to 1."""
    g = torch.tensor(slope, dtype=F64)
    found = sharpness(here(Known(g), torch.ones(1, 3, dtype=F64), weight=weight), probe, descent, ascent, normalise)
    assert float(found) == pytest.approx((descent + ascent) * probe * float(g.norm()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("descent", "ascent"), [(1, 1), (2, 3), (4, 1)])
def test_on_a_parabola(descent: int, ascent: int) -> None:
    """Descent and ascent keep their directions: r -> r - n1 gamma and r + n2 gamma, S = c ((r+)^2 - (r-)^2) / 2."""
    model, probe, c = torch.tensor([[3.0, 4.0]], dtype=F64), 0.5, 1.7
    found = sharpness(here(Known(torch.zeros(2, dtype=F64), c), model), probe, descent, ascent, "batch")
    up, down = 5 + ascent * probe, 5 - descent * probe
    assert float(found) == pytest.approx(c * (up**2 - down**2) / 2, rel=1e-12)


def test_a_loss_that_falls_on_ascent_is_not_sharp() -> None:
    g = torch.tensor([1.0, 2.0], dtype=F64)
    assert float(sharpness(here(Known(g, sign=-1.0), torch.ones(1, 2, dtype=F64)), 0.1, 5, 5, "batch")) == 0


@pytest.mark.parametrize("normalise", ["batch", "sample"])
def test_a_flat_loss_has_no_direction(normalise: Any) -> None:
    flat = Known(torch.zeros(2, dtype=F64))
    assert float(sharpness(here(flat, torch.ones(1, 2, dtype=F64)), 0.1, 5, 5, normalise)) == 0


@pytest.mark.parametrize(
    ("size", "before", "floor", "cap", "expected"),
    [
        (1.0, (), 0.0, 5.0, 1.0),
        (1.0, (1.0, 1.0), 0.0, 5.0, 1.0),
        (3.0, (1.0, 1.0), 0.0, 5.0, 3.0),
        (100.0, (1.0, 1.0), 0.0, 5.0, 5.0),
        (0.0, (1.0, 1.0), 0.0, 5.0, 0.0),
        (0.0, (1.0, 1.0), 0.1, 5.0, 0.1),
        (0.5, (1.0, 1.0), 0.8, 5.0, 0.8),
        (2.0, (1.0,), 0.0, 5.0, 4 / 3),
        (2.0, (8.0, 4.0), 0.0, 5.0, 0.5),
        (2.0, (9.0, 1.0, 2.0, 7.0), 0.0, 5.0, 1.0),
        (0.0, (), 0.0, 5.0, 1.0),
        (7.0, (0.0, 0.0), 0.0, 5.0, 1.0),
    ],
)
def test_the_step_against_the_median_of_all(
    size: float, before: tuple[float, ...], floor: float, cap: float, expected: float
) -> None:
    """S = size is appended and divided by the median with it, then clamped. A median of zero says nothing: eta."""
    rule = Salr(descent=1, ascent=1, probe=0.5, period=2, floor=floor, cap=cap)
    place = here(Known(torch.tensor([0.6 * size, 0.8 * size], dtype=F64)), torch.zeros(1, 2, dtype=F64))
    eta, notes, cost = rule.step(6, 0.3, place, history(*before) if before else {})
    assert eta == pytest.approx(0.3 * expected, rel=1e-12)
    np.testing.assert_allclose(notes["history"].numpy(), [*before, size], rtol=1e-12)
    assert cost == 4 * 4
    kept, same, free = rule.step(7, 0.3, place, notes)
    assert (kept, same, free) == (eta, notes, 0)


def test_the_first_step_is_eta_exactly() -> None:
    task = Logistic().build((3,), 2, F64, CPU)
    for eta in (0.1, 1e-9, 12345.6789):
        assert Salr().step(0, eta, here(task, torch.ones(1, 3, dtype=F64)), {})[0] == eta


@pytest.mark.parametrize("normalise", ["batch", "sample"])
@pytest.mark.parametrize("factor", [2.0**-9, 0.25, 2.0, 1024.0])
def test_scaling_the_loss_leaves_the_steps(factor: float, normalise: Any) -> None:
    """a f with eta / a takes the same path, bit for bit where a is a power of two."""
    task, data, rounds = Logistic(l2=0.1).build((3,), 2, F64, CPU), world(), 4

    def path(a: float) -> tuple[list[Tensor], Memory]:
        memories: dict[int, Memory] = {}
        rule = Salr(probe=0.05, period=2, normalise=normalise)
        plan = Plan(Local(steps=3, batch=4, send="difference"), 0.25 / a, 1, ORDERS["reshuffle"], rule)
        model, models = torch.ones(1, 3, dtype=F64), []
        for round in range(rounds):
            stream = Stream(0, Purpose.BATCH, round)
            found = solve(Times(task, a), data, model, torch.tensor([0]), plan, stream, memories)
            model, memories = model - found.direction, {0: found.memories[0]}
            models.append(model)
        return models, memories[0]

    (one, memory), (other, scaled) = path(1.0), path(factor)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(memory.rate["factor"], scaled.rate["factor"])
    assert torch.equal(factor * memory.rate["history"], scaled.rate["history"])
    assert len(memory.rate["history"]) == 6  # steps 0, 2, 4, 6, 8, 10 of 12, over rounds of 3
    assert len(set(memory.rate["history"].tolist())) == 6


class WithState(nn.Module):
    """A buffer that a careless forward pass would change, and no other state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.scale)


def test_the_probe_touches_nothing() -> None:
    """Model, batch, the module's parameters and buffers, torch's and numpy's generators: the same bits after it."""
    task = classifier(WithState, (3,), 2, 0.0, F64, CPU)
    place = here(task, task.initial(1)[None])
    buffers = {name: buffer.clone() for name, buffer in task.skeleton.named_buffers()}
    kept = [tensor.clone() for tensor in (place.model, place.batch.features, place.batch.targets, place.batch.weights)]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = sharpness(place, 0.05, 3, 4, "batch")
    sharpness(place, 0.05, 3, 4, "sample")
    assert float(first) > 0
    after = (place.model, place.batch.features, place.batch.targets, place.batch.weights)
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    assert len(buffers) == 1
    assert all(torch.equal(buffers[name], buffer) for name, buffer in task.skeleton.named_buffers())
    assert all(parameter.is_meta and parameter.grad is None for parameter in task.skeleton.parameters())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("direction", [Gradient(), Momentum(), Momentum(reset="never")])
def test_measuring_alone_changes_no_bit_of_the_path(direction: Any) -> None:
    """floor = cap = 1 measures and then takes eta: batches, models and velocities are those of the constant rule."""
    task, data = Logistic(l2=0.1).build((3,), 2, F64, CPU), world()

    def run(rule: Any) -> tuple[list[Tensor], list[Notes], int]:
        plan = Plan(Local(steps=3, batch=4), 0.25, 1, ORDERS["reshuffle"], rule, direction)
        memories, rows, notes, cost = dict[int, Memory](), [], [], 0
        for round in range(3):
            stream = Stream(0, Purpose.BATCH, round)
            found = solve(task, data, torch.ones(1, 3, dtype=F64), torch.tensor([0]), plan, stream, memories)
            memories = {0: found.memories[0]}
            rows.append(found.direction)
            notes.append(found.memories[0].direction)
            cost += int(found.gradients)
        return rows, notes, cost

    plain, measured = run(Constant()), run(Salr(floor=1.0, cap=1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain[0], measured[0], strict=True))
    for one, other in zip(plain[1], measured[1], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    # Steps 0, 2, 4, 6, 8 measure: batches of 4, 3 (the short one), 4, 4, 3 samples, 12 gradients each.
    assert measured[2] - plain[2] == 12 * (4 + 3 + 4 + 4 + 3)
