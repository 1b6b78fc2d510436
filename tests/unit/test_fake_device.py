"""Gradients and batches on a GPU that is not there: under FakeTensorMode an operation that mixes devices raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedsim.data.examples import Federation
from fedsim.randomness import Purpose, Stream
from fedsim.solvers.batches import choose
from fedsim.solvers.local import Local, Plan, solve
from fedsim.tasks import CNN, MLP, Batch, LeastSquares, Logistic, Softmax, TaskOptions

CUDA = torch.device("cuda:0")
TASKS: list[tuple[TaskOptions, tuple[int, ...], int | None]] = [
    (LeastSquares(l2=0.1), (5,), None),
    (LeastSquares(), (5,), 2),
    (Logistic(l2=0.1), (5,), 2),
    (Softmax(l2=0.1), (5,), 3),
    (MLP(hidden=(4,), l2=0.1), (5,), 3),
    (CNN(width=2), (1, 4, 4), 3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("options", "shape", "classes"), TASKS, ids=[repr(task[0]) for task in TASKS])
def test_gradients_stay_on_the_device(
    options: TaskOptions, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype
) -> None:
    task = options.build(shape, classes, dtype, CUDA)
    with FakeTensorMode():
        models = torch.empty(3, task.dim, dtype=dtype, device=CUDA)
        targets = torch.empty(3, 7, dtype=dtype if classes is None else torch.int64, device=CUDA)
        batch = Batch(torch.empty(3, 7, *shape, dtype=dtype, device=CUDA), targets, models.new_empty(3, 7))
        rows, losses = task.gradients(models, batch)
    for result, expected in ((rows, (3, task.dim)), (losses, (3,))):
        assert (result.device, result.dtype, tuple(result.shape)) == (CUDA, dtype, expected)


@pytest.mark.parametrize("count", [1, 4])
def test_choices_stay_on_the_device(count: int) -> None:
    with FakeTensorMode():
        clients = torch.empty(3, dtype=torch.int64, device=CUDA)
        places = choose(Stream(0, Purpose.BATCH), clients, torch.empty_like(clients), 9, count)
    assert (places.device, tuple(places.shape)) == (CUDA, (3, count))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("options", [Softmax(), MLP(hidden=(4,))], ids=["softmax", "mlp"])
def test_local_steps_stay_on_the_device(options: Softmax | MLP, batch: int, chunk: int) -> None:
    """Only the offsets, which are on the CPU by contract, are real."""
    task = options.build((5,), 3, torch.float32, CUDA)
    offsets, clients = torch.tensor([0, 4, 9, 12]), torch.arange(3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        features, targets = torch.empty(12, 5, device=CUDA), torch.empty(12, dtype=torch.int64, device=CUDA)
        world = Federation(features, targets, offsets, None, 3, "fake")
        models = torch.empty(3, task.dim, device=CUDA)
        plan = Plan(Local(steps=2, batch=batch), 0.1, chunk)
        solution = solve(task, world, models, clients, plan, Stream(0, Purpose.BATCH))
    for result, shape in ((solution.direction, (3, task.dim)), (solution.losses, (3,)), (solution.samples, (3,))):
        assert (result.device, tuple(result.shape)) == (CUDA, shape)


def test_the_mode_does_catch_a_tensor_on_the_wrong_device() -> None:
    """The proof that the tests above can fail."""
    task = Softmax().build((5,), 3, torch.float32, CUDA)
    with FakeTensorMode():
        models = torch.empty(3, task.dim, device=CUDA)
        batch = Batch(torch.empty(3, 7, 5, device=CUDA), torch.empty(3, 7, dtype=torch.int64), models.new_empty(3, 7))
        with pytest.raises((RuntimeError, TypeError), match="device"):
            task.gradients(models, batch)
    assert nn is not None
