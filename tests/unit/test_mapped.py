"""Which modules go side by side under vmap, and that what autograd is kept from is found all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedsim.solvers import Local, Plan, solve
from fedsim.solvers.order import order_named
from fedsim.solvers.plan import Ask, Rows
from fedsim.solvers.stacked import groups_of, solve_group
from fedsim.tasks import CNN, MLP, Classifier, Module
from fedsim.tasks.mapped import Mapped
from tests.property.test_stacked import F64, models, round_, world

CPU = torch.device("cpu")


class Changed(nn.Module):
    """Changes in place what went into a linear layer, which keeps its product from being right."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        scores: Tensor = self.last(y)
        return scores + y.mul_(0.5)[:, :3]


class Branching(nn.Module):
    """What it does depends on a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x) * (2 if x.sum() > 100 else 1)
        return scores


class Ruleless(nn.Module):
    """vmap has no rule for one of its functions, and would loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = torch.renorm(self.layer(x), 2.0, 0, 1e6)
        return scores


def changed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Changed()


def branching(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Branching()


def ruleless(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Ruleless()


def built(name: str) -> Classifier:
    return Module(f"tests.unit.test_mapped:{name}").build((4,), 3, F64, CPU)


@pytest.mark.parametrize("name", ["changed", "branching", "ruleless"])
def test_modules_that_cannot_go_side_by_side_go_one_by_one(name: str) -> None:
    assert built(name).mapped is None


def test_stacks_convolutions_and_reduced_precision_do_not_go_through_vmap() -> None:
    assert MLP(hidden=(3,)).build((4,), 3, F64, CPU).mapped is None
    assert CNN(width=2).build((1, 4, 4), 3, F64, CPU).mapped is None
    task, _ = world("group norm", [1])
    assert isinstance(task, Classifier)
    assert task.mapped is not None
    assert Classifier(task.make, task.skeleton, task.layout, 0.0, F64, CPU, maps=True, compute=F64).mapped is None


@pytest.mark.parametrize(("kind", "products"), [("group norm", 1), ("transformer", 6)])
def test_weights_have_products_instead_of_gradients(kind: str, products: int) -> None:
    """Of a layer without a bias, and of the attention's own, autograd finds the gradient. Used twice: two products."""
    task, federation = world(kind, [3, 3])
    assert task.mapped is not None
    mapped, rows = task.mapped(2, False, task.initial(0)), models(task, 2)
    assert isinstance(mapped, Mapped)
    mapped.load(rows)
    features = federation.features.unflatten(0, (2, 3))
    answers = mapped.head.answers(federation.targets.view(2, 3), F64)
    (gradients, found), _ = mapped.errors(features, answers, torch.full((2, 3, 1), 1 / 3, dtype=F64), None)
    assert len(found) == products
    assert all(gradients[i] is None for i, _, _ in found)


@pytest.mark.parametrize("kind", ["group norm", "transformer"])
def test_bits_are_repeatable_and_rows_are_written_where_they_belong(kind: str) -> None:
    task, federation = world(kind, [5, 3, 4, 9], torch.float32)
    plan = Plan(Local(epochs=2, batch=2, order="reshuffle", step=0.1), 0.1, 2, order_named("reshuffle"))
    ids, start = torch.arange(4), models(task, 4)
    whole = solve(task, federation, start, ids, plan, round_(0))
    again, ask = Rows.like(start), Ask(start, ids, round_(0), {})
    for group in reversed(groups_of(federation, ids, plan)):
        solve_group(task, federation, plan, ask, group, again)
    assert torch.equal(whole.direction, again.direction)
    assert torch.equal(whole.losses, again.losses)
