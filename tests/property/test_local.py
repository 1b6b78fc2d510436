"""What a client computes depends neither on the others nor on padding nor, up to rounding, on the executor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.errors import DataError
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Plan, solve
from fedsim.tasks import CNN, MLP, LeastSquares, Logistic, Softmax, Task

CPU, F64 = torch.device("cpu"), torch.float64
SIZES = [5, 9, 1, 9, 14, 3]
TASKS = {
    "least-squares": (LeastSquares(l2=0.1), (4,), None),
    "logistic": (Logistic(), (4,), 2),
    "softmax": (Softmax(), (4,), 3),
    "mlp": (MLP(hidden=(5,)), (4,), 3),
    "cnn": (CNN(width=2), (1, 4, 4), 3),
}
PLANS = st.builds(
    Local,
    steps=st.integers(1, 4),
    batch=st.integers(0, 12),
    step=st.just(0.05),
    send=st.sampled_from(["direction", "difference"]),
)


def world(kind: str, sizes: list[int], dtype: torch.dtype = F64) -> tuple[Task, Federation]:
    options, shape, classes = TASKS[kind]
    rng, n = np.random.default_rng(0), sum(sizes)
    features = torch.from_numpy(rng.standard_normal((n, *shape)))
    targets = torch.from_numpy(rng.standard_normal(n) if classes is None else rng.integers(0, classes, n))
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    federation = federate(Dataset(Examples(features, targets, classes), None, kind), owners).to(CPU, dtype)
    return options.build(shape, classes, dtype, CPU), federation


def models(task: Task, n: int, seed: int = 1) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, task.dim)))
    return task.initial(0) + 0.3 * noise.to(task.initial(0).dtype)


def stream(round: int = 4) -> Stream:
    return Stream(seed=2, purpose=Purpose.BATCH, round=round)


@pytest.mark.parametrize("kind", TASKS)
@given(local=PLANS, chunk=st.integers(2, 7), order=st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_stacking_and_padding_change_nothing_but_rounding(
    kind: str, local: Local, chunk: int, order: list[int]
) -> None:
    """float64: 1e-12 relative, for every chunk size, also where clients differ in size."""
    task, federation = world(kind, SIZES)
    rows, ids = models(task, 6)[order], torch.tensor(order)
    one = solve(task, federation, rows, ids, Plan(local, 0.05, 1), stream())
    many = solve(task, federation, rows, ids, Plan(local, 0.05, chunk), stream())
    torch.testing.assert_close(many.direction, one.direction, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many.losses, one.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(many.samples, one.samples)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("kind", TASKS)
@given(local=PLANS, order=st.permutations(range(6)), n=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_a_row_of_the_reference_has_the_same_bits_in_every_cohort(
    kind: str, dtype: torch.dtype, local: Local, order: list[int], n: int
) -> None:
    task, federation = world(kind, SIZES, dtype)
    rows, ids = models(task, 6), torch.arange(6)
    everyone = solve(task, federation, rows, ids, Plan(local, 0.05), stream())
    some = torch.tensor(order[:n])
    few = solve(task, federation, rows[some], some, Plan(local, 0.05), stream())
    assert torch.equal(few.direction, everyone.direction[some])
    assert torch.equal(few.losses, everyone.losses[some])
    assert torch.equal(few.samples, everyone.samples[some])


@pytest.mark.parametrize("batch", [0, 8])
@pytest.mark.parametrize("kind", TASKS)
def test_a_client_that_holds_only_its_own_samples_computes_the_same_bits(kind: str, batch: int) -> None:
    """What a container does: the same client number, its own samples elsewhere in memory, no other client's data."""
    sizes = [37, 61, 23, 50]
    task, federation = world(kind, sizes, torch.float32)
    plan = Plan(Local(steps=3, batch=batch, step=0.05), 0.05)
    rows = models(task, 4)
    everyone = solve(task, federation, rows, torch.arange(4), plan, stream())
    for client in range(4):
        shard, offsets = federation.shard(client), torch.zeros(5, dtype=torch.int64)
        offsets[client + 1 :] = sizes[client]
        features, targets = shard.features.clone(), shard.targets.clone()
        own = Federation(features, targets, offsets, None, federation.classes, "own")
        alone = solve(task, own, rows[client : client + 1], torch.tensor([client]), plan, stream())
        assert torch.equal(alone.direction[0], everyone.direction[client])


@pytest.mark.parametrize("chunk", [1, 3])
def test_repeatable_to_the_bit_and_global_generators_untouched(chunk: int) -> None:
    task, federation = world("mlp", SIZES)
    plan = Plan(Local(steps=3, batch=4, step=0.1), 0.1, chunk)
    before = torch.get_rng_state()
    first, second = (solve(task, federation, models(task, 6), torch.arange(6), plan, stream()) for _ in range(2))
    assert torch.equal(first.direction, second.direction)
    assert torch.equal(first.losses, second.losses)
    assert torch.equal(before, torch.get_rng_state())
    other = solve(task, federation, models(task, 6), torch.arange(6), plan, stream(round=5))
    assert not torch.equal(first.direction, other.direction)


@pytest.mark.parametrize("chunk", [1, 4])
def test_inputs_are_left_alone_and_may_be_one_model_for_all(chunk: int) -> None:
    """The same bits in the reference; side by side, one model for all is one product, so up to rounding of float64."""
    task, federation = world("logistic", SIZES)
    model = models(task, 1)[0]
    kept = model.clone()
    plan = Plan(Local(steps=3, step=0.1), 0.1, chunk)
    shared = solve(task, federation, model.expand(6, -1), torch.arange(6), plan, stream())
    apart = solve(task, federation, model.repeat(6, 1), torch.arange(6), plan, stream())
    if chunk == 1:
        assert torch.equal(shared.direction, apart.direction)
    torch.testing.assert_close(shared.direction, apart.direction, rtol=1e-12, atol=1e-12)
    assert torch.equal(model, kept)


@pytest.mark.parametrize("chunk", [1, 4])
def test_an_empty_cohort_has_no_rows(chunk: int) -> None:
    task, federation = world("logistic", SIZES)
    nobody = torch.zeros(0, dtype=torch.int64)
    solution = solve(task, federation, models(task, 0), nobody, Plan(Local(batch=3), 0.1, chunk), stream())
    assert solution.direction.shape == (0, 4)
    assert solution.losses.shape == solution.samples.shape == (0,)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_client_without_samples_is_named(chunk: int) -> None:
    task, federation = world("logistic", [3, 4, 0, 5])
    with pytest.raises(DataError, match="client 2 has no samples, so it has no gradient; leave it out"):
        solve(task, federation, models(task, 4), torch.arange(4), Plan(Local(), 0.1, chunk), stream())
    present = torch.tensor([0, 1, 3])
    solution = solve(task, federation, models(task, 3), present, Plan(Local(), 0.1, chunk), stream())
    assert solution.samples.tolist() == [3, 4, 5]
