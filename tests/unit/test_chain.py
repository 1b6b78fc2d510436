"""A chain's way back, written by hand, against autograd's; and which modules are chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedsim.tasks.chain import Chain, chained
from fedsim.tasks.classifier import classifier
from fedsim.tasks.task import full_batch
from fedsim.tasks.walker import Walker

CPU = torch.device("cpu")


def images() -> nn.Module:
    """Every kind of layer but a GroupNorm of rows."""
    inner = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), inner, nn.Flatten(), nn.Linear(24, 5))


def pooled_first() -> nn.Module:
    """Layers without parameters before the first that has some."""
    return nn.Sequential(
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.Conv2d(3, 2, (2, 3)),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def rows() -> nn.Module:
    """Of flat samples, the last layer a ReLU."""
    layers = nn.Linear(7, 8), nn.GroupNorm(4, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.ReLU()
    return nn.Sequential(*layers)


Make = Callable[[], nn.Module]

CHAINS: list[tuple[Make, tuple[int, ...]]] = [
    (images, (3, 11, 11)),
    (pooled_first, (3, 9, 9)),
    (rows, (7,)),
]


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize(("make", "shape"), CHAINS)
def test_steps_are_those_of_autograd(make: Make, shape: tuple[int, ...], l2: float, summed: bool) -> None:
    task = classifier(make, shape, 5, l2, torch.float64, CPU)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (3, 4), generator=generator)
    start = torch.randn(task.dim, generator=generator, dtype=torch.float64)
    chain = task.walker(summed)
    assert isinstance(chain, Chain)
    chain.load(start[None])
    model, total, untouched = start.clone(), torch.zeros_like(start), x.clone()
    for h in range(3):
        batch = full_batch(x[h], y[h], torch.float64)
        answers, column = chain.head.answers(y[h], torch.float64)[None], batch.weights[..., None]
        found, losses = chain.errors(chain.prepared(x[h])[None], answers, column, None if h else column)
        gradient, loss = task.gradients(model[None], batch)
        if losses is not None:
            penalty = l2 / 2 * float(model @ model)
            assert float(losses) + penalty == pytest.approx(float(loss), rel=1e-12)
        total, model = total + gradient[0], model - 0.1 * gradient[0]
        if summed:
            chain.add(found, 1.0, h == 0)
            chain.follow(1, 0.1)
        else:
            chain.descend(found, 0.1, 1 - 0.1 * l2)
    out = torch.empty(1, task.dim, dtype=torch.float64)
    chain.write(out, 0)
    torch.testing.assert_close(out[0], total if summed else start - model, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x, untouched, rtol=0, atol=0)


def shared() -> nn.Module:
    twice = nn.Linear(4, 4)
    return nn.Sequential(twice, nn.ReLU(), twice)


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module[1].register_forward_hook(lambda part, given, found: 2 * found)
    return module


class Doubled(nn.Linear):
    """A Linear that is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Own(nn.Sequential):
    """A Sequential that is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)  # type: ignore[no-any-return]


OTHERS: list[Make] = [
    shared,
    tied,
    hooked,
    lambda: nn.Sequential(Doubled(4, 4)),
    lambda: Own(nn.Linear(4, 4)),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4, affine=False)),
    lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten()),
    lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(2)),
    lambda: nn.Linear(4, 4),
]


@pytest.mark.parametrize("make", OTHERS)
def test_what_is_no_chain_is_left_to_autograd(make: Make) -> None:
    assert not chained(make())


def test_reduced_arithmetic_is_left_to_autograd() -> None:
    task = replace(classifier(rows, (7,), 5, 0.0, torch.float32, CPU), compute=torch.bfloat16)
    assert type(task.walker(False)) is Walker
