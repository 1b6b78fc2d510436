"""The device path without a device.

Under FakeTensorMode with "cuda", and on "meta" under ``OneDevice``, an operation that mixes devices raises, and so does
one that has to know a number on the host (``.item()``, a branch on a value): what passes here neither leaves the device
nor waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim import Experiment
from fedsim.algorithms.recipes import RECIPES
from fedsim.compression import Compressor
from fedsim.data.examples import Federation
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.engine import play
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state
from fedsim.solvers import Local, Plan, solve
from fedsim.solvers.batches import choose
from fedsim.tasks import CNN, MLP, Batch, LeastSquares, Logistic, Module, Softmax, TaskOptions
from tests.contract.test_compressors import COMPRESSORS

CUDA, META = torch.device("cuda:0"), torch.device("meta")
TASKS: list[tuple[TaskOptions, tuple[int, ...], int | None]] = [
    (LeastSquares(l2=0.1), (5,), None),
    (LeastSquares(), (5,), 2),
    (Logistic(l2=0.1), (5,), 2),
    (Softmax(l2=0.1), (5,), 3),
    (MLP(hidden=(4,), l2=0.1), (5,), 3),
    (CNN(width=2), (1, 4, 4), 3),
    (Module("tests.property.test_stacked:normed"), (5,), 3),
    (Module("tests.property.test_stacked:transformer"), (2, 5), 3),
]
EVERY_TASK = pytest.mark.parametrize(("options", "shape", "classes"), TASKS, ids=[repr(task[0]) for task in TASKS])
NO_CUDA = not torch.backends.cuda.is_built()


class Subscripts(TorchFunctionMode):
    """``x[...]`` by operators: the subscript itself switches the current device, which a build without CUDA cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        dim = 0
        for part in index if isinstance(index, tuple) else (index,):
            if part is None:
                tensor = tensor.unsqueeze(dim)
            elif isinstance(part, int):
                tensor, dim = tensor.select(dim, part), dim - 1
            elif isinstance(part, slice):
                tensor = torch.ops.aten.slice(tensor, dim, part.start, part.stop)
            else:
                raise NotImplementedError(part)  # an index that no module here uses: say so, do not guess
            dim += 1
        return tensor


class OneDevice(TorchDispatchMode):
    """Every operator, forward and backward, sees tensors of one device; "meta" by itself does not check products."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{func} mixes devices {devices}")
        return func(*args, **(kwargs or {}))


class HostReads(TorchFunctionMode):
    """What a host reads of "meta", where it is meant to: once a message, whether all is finite; what it sends; SALR's
    sharpness, a number a step.

    Numbers are 0, so lengths and coordinates are possible ones, and every question is answered with yes. A read by
    other means than these, and every mix of devices, still raises.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.device == META:
            if func is Tensor.__bool__:
                return True
            zeros = torch.zeros(first.shape, dtype=first.dtype, device="cpu")
            if func is Tensor.cpu:
                return zeros
            if func is Tensor.to and args[1] in ("cpu", torch.device("cpu")):
                return zeros.to(*args[1:])
            if func in (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__):
                return func(zeros)
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[None]:
    with FakeTensorMode(), Subscripts():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@EVERY_TASK
def test_gradients_stay_on_the_device(
    options: TaskOptions, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype
) -> None:
    task = options.build(shape, classes, dtype, CUDA)
    if NO_CUDA and isinstance(options, MLP | CNN | Module):
        pytest.skip("autograd aborts for fake CUDA tensors in a build without CUDA; the next test but one covers it")
    with fake_cuda():
        models = torch.empty(3, task.dim, dtype=dtype, device=CUDA)
        targets = torch.empty(3, 7, dtype=dtype if classes is None else torch.int64, device=CUDA)
        batch = Batch(torch.empty(3, 7, *shape, dtype=dtype, device=CUDA), targets, models.new_empty(3, 7))
        rows, losses = task.gradients(models, batch)
    for result, expected in ((rows, (3, task.dim)), (losses, (3,))):
        assert (result.device, result.dtype, tuple(result.shape)) == (CUDA, dtype, expected)


@pytest.mark.parametrize("count", [1, 4])
def test_choices_stay_on_the_device(count: int) -> None:
    with fake_cuda():
        clients = torch.empty(3, dtype=torch.int64, device=CUDA)
        places = choose(Stream(0, Purpose.BATCH), clients, torch.empty_like(clients), 9, count)
    assert (places.device, tuple(places.shape)) == (CUDA, (3, count))


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("sizes", [[5, 5, 5], [4, 5, 3]], ids=str)
@EVERY_TASK
def test_a_clients_round_stays_on_the_device(
    options: TaskOptions, shape: tuple[int, ...], classes: int | None, sizes: list[int], batch: int, chunk: int
) -> None:
    task = options.build(shape, classes, torch.float32, META)
    offsets, n = torch.tensor([0, *accumulate(sizes)]), sum(sizes)
    targets = torch.empty(n, dtype=torch.float32 if classes is None else torch.int64, device=META)
    world = Federation(torch.empty(n, *shape, device=META), targets, offsets, None, classes, "no data")
    plan = Plan(Local(steps=2, batch=batch), 0.1, chunk)
    models = torch.empty(3, task.dim, device=META)
    with OneDevice():
        solution = solve(task, world, models, torch.arange(3), plan, Stream(0, Purpose.BATCH))
    for result, expected in ((solution.direction, (3, task.dim)), (solution.losses, (3,)), (solution.samples, (3,))):
        assert (result.device, tuple(result.shape)) == (META, expected)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_compression_stays_on_the_device(compressor: Compressor) -> None:
    with OneDevice(), HostReads():
        payload = compressor.compress(
            torch.empty(3, 12, device=META), Stream(0, Purpose.UPLINK), torch.arange(3, device=META)
        )
        rows = compressor.decompress(payload, torch.float32)
    assert (rows.device, rows.dtype, tuple(rows.shape)) == (META, torch.float32, (3, 12))


@pytest.mark.parametrize("wire", ["counted", "real"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_rounds_of_every_method_stay_on_the_device(recipe: str, wire: str) -> None:
    """From the cohort to the server's step, with what the host is told in ``HostReads``."""
    data = {"source": "synthetic-logistic", "clients": 4, "per_client": 6}
    experiment = Experiment.of(
        algorithm=recipe, data=data, server={"step": 0.1}, local={"step": 0.1}, run={"wire": wire, "device": "cpu"}
    )
    setup = prepare(experiment)
    world = replace(
        setup.federation, features=setup.federation.features.to(META), targets=setup.federation.targets.to(META)
    )
    task = experiment.task.build((2,), 2, torch.float32, META)
    with OneDevice(), HostReads():
        setup = replace(setup, federation=world, task=task, weights=setup.weights.to(META))
        state = initial_state(setup)
        for _ in range(3):
            play(setup, state)
    assert state.server.model.device == META
    assert state.server.round == 3


def test_the_modes_catch_what_they_are_for() -> None:
    """The proof that the tests above can fail."""
    task = Softmax().build((5,), 3, torch.float32, CUDA)
    with fake_cuda():
        models = torch.empty(3, task.dim, device=CUDA)
        batch = Batch(torch.empty(3, 7, 5, device=CUDA), torch.empty(3, 7, dtype=torch.int64), models.new_empty(3, 7))
        with pytest.raises(RuntimeError, match="device"):
            task.gradients(models, batch)
        with pytest.raises(DataDependentOutputException):
            models.sum().item()
    with OneDevice(), pytest.raises(RuntimeError, match="mixes devices"):
        torch.nn.functional.linear(torch.empty(2, 3), torch.empty(4, 3, device=META))
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty(3, device=META).sum().item()
