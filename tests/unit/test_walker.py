"""One client of a module walks as the reference of rows does; the order of its numbers in memory changes no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedsim.tasks import CNN, Module
from fedsim.tasks.task import Batch
from fedsim.tasks.walker import Walker, by_pixel, takes_pixels

CPU = torch.device("cpu")


class Viewed(nn.Module):
    """Cannot run with channels side by side: a view of what is not in order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.first(x).view(len(x), -1))
        return scores


def viewed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Viewed()


def test_only_modules_that_run_so_take_pixels() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    assert takes_pixels(conv, (1, 6, 6), CPU)
    assert not takes_pixels(Viewed(), (1, 6, 6), CPU)
    assert not takes_pixels(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 6, 6), CPU)
    assert not takes_pixels(conv, (1, 6, 6), torch.device("meta"))
    assert by_pixel(torch.zeros(4, 1, 3, 3)).stride() == (9, 1, 3, 1)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("viewing", [False, True])
def test_steps_are_those_of_the_gradient_rows(viewing: bool, l2: float, summed: bool) -> None:
    """float64, 1e-12, over three steps: w_0 - w_3, or the sum of the gradients."""
    options = Module("tests.unit.test_walker:viewed", l2) if viewing else CNN(2, l2)
    task = options.build((1, 6, 6), 3, torch.float64, CPU)
    assert task.pixels != viewing
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 5, 1, 6, 6, generator=generator, dtype=torch.float64), torch.tensor([[0, 1, 2, 1, 0]] * 3)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    start = task.initial(0)
    walker = task.walker(summed)
    assert isinstance(walker, Walker)
    walker.load(start[None])
    model, total = start[None], torch.zeros(1, task.dim, dtype=torch.float64)
    for h in range(3):
        features, answers = walker.prepared(x[h])[None], walker.head.answers(y[h], torch.float64)[None]
        column = weights[None, :, None]
        found, losses = walker.errors(features, answers, column, column)
        rows, expected = task.gradients(model, Batch(x[h][None], y[h][None], weights[None]))
        assert losses is not None
        torch.testing.assert_close(losses + l2 / 2 * (model * model).sum(), expected, rtol=1e-12, atol=0)
        if summed:
            walker.add(found, 1.0, h == 0)
            walker.follow(1, 0.1)
        else:
            walker.descend(found, 0.1, 1 - 0.1 * l2)
        model, total = model - 0.1 * rows, total + rows
    out = torch.empty_like(total)
    walker.write(out, 0)
    torch.testing.assert_close(out, total if summed else 0.1 * total, rtol=1e-12, atol=1e-13)
