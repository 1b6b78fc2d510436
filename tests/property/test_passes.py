"""A walk through a client's samples: passes, whatever the rounds they fall into, and batches at their true weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Memory, Plan, solve
from fedsim.solvers.order import ORDERS, order_named
from fedsim.solvers.passes import steps_of_a_pass, walk
from fedsim.tasks import LeastSquares, Logistic
from fedsim.tasks.task import full_batch

CPU, F64 = torch.device("cpu"), torch.float64
SIZES, SEEDS = st.integers(1, 40), st.integers(0, 2**63 - 1)
PASSES = ["reshuffle", "shuffle-once", "incremental", "synchronised"]


def numbered(sizes: list[int]) -> Federation:
    """Each sample is its own number within its client, so that a batch shows who is in it."""
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    numbers = torch.cat([torch.arange(n) for n in sizes]).to(F64)
    return federate(Dataset(Examples(numbers[:, None].repeat(1, 2), numbers, None), None, "numbered"), owners)


def places(order: str, seed: int, client: int, n: int, epoch: int, clients: int = 7) -> Tensor:
    return ORDERS[order](seed, client, n, epoch, clients)


@pytest.mark.parametrize("order", PASSES)
@given(n=SIZES, seed=SEEDS, client=st.integers(0, 6), epoch=st.integers(0, 2**20))
def test_a_pass_holds_every_sample_once(order: str, n: int, seed: int, client: int, epoch: int) -> None:
    assert places(order, seed, client, n, epoch).sort().values.tolist() == list(range(n))
    assert torch.equal(places(order, seed, client, n, epoch), places(order, seed, client, n, epoch))


@given(n=SIZES, seed=SEEDS, client=st.integers(0, 6), epoch=st.integers(0, 2**20))
def test_what_each_order_promises(n: int, seed: int, client: int, epoch: int) -> None:
    draws = places("with-replacement", seed, client, n, epoch)
    assert draws.shape == (n,)
    assert 0 <= int(draws.min()) <= int(draws.max()) < n
    assert places("incremental", seed, client, n, epoch).tolist() == list(range(n))
    assert torch.equal(places("shuffle-once", seed, client, n, epoch), places("reshuffle", seed, client, n, 0))
    shared = places("synchronised", seed, 0, n, epoch)
    assert torch.equal(places("synchronised", seed, client, n, epoch), shared.roll(-(client * n // 7)))


def test_reshuffling_reshuffles_and_shuffling_once_does_not() -> None:
    """200 samples: two of the 200! permutations are never equal by chance."""
    for order, distinct in (("reshuffle", 60), ("shuffle-once", 15), ("incremental", 1), ("with-replacement", 60)):
        passes = {
            tuple(places(order, seed, client, 200, epoch).tolist())
            for seed in range(3)
            for client in range(5)
            for epoch in range(4)
        }
        assert len(passes) == distinct
    shared = [places("synchronised", 0, 0, 200, epoch) for epoch in range(4)]
    assert len({tuple(pass_.tolist()) for pass_ in shared}) == 4


@given(
    n=SIZES,
    size=st.integers(0, 45),
    order=st.sampled_from(PASSES),
    rounds=st.lists(st.integers(1, 6), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_rounds_shorter_than_a_pass_continue_it(n: int, size: int, order: str, rounds: list[int]) -> None:
    """The batches of rounds of any lengths, each by a walk that begins anew, are those of one uninterrupted walk."""
    world = numbered([3, n, 5])
    seen, done, b = [], 0, min(size, n) or n
    for steps in rounds:
        batch_of = walk(world, 1, size, ORDERS[order], 9, F64)
        seen += [batch_of(done + h).targets[0] for h in range(steps)]
        done += steps
    passes = -(-done // steps_of_a_pass(n, size))
    expected = [part for e in range(passes) for part in places(order, 9, 1, n, e, clients=3).split(b)][:done]
    assert [batch.tolist() for batch in seen] == [part.tolist() for part in expected]


@given(n=SIZES, size=st.integers(0, 45), order=st.sampled_from(PASSES), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_mean_over_a_pass_is_the_full_gradient(n: int, size: int, order: str, seed: int) -> None:
    """Also where the last batch is short, penalty included: to rounding of float64."""
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.standard_normal((n, 3))), torch.from_numpy(rng.integers(0, 2, n))
    world = federate(Dataset(Examples(x, y, 2), None, "random"), torch.zeros(n, dtype=torch.int64))
    task = Logistic(l2=0.3).build((3,), 2, F64, CPU)
    model = torch.from_numpy(rng.standard_normal((1, 3)))
    batch_of, steps = walk(world, 0, size, ORDERS[order], seed, F64), steps_of_a_pass(n, size)
    rows, losses = zip(*(task.gradients(model, batch_of(k)) for k in range(steps)), strict=True)
    full, loss = task.gradients(model, full_batch(x, y, F64))
    torch.testing.assert_close(torch.cat(rows).mean(dim=0, keepdim=True), full, rtol=1e-14, atol=2e-15)
    torch.testing.assert_close(torch.cat(losses).mean(dim=0, keepdim=True), loss, rtol=1e-14, atol=2e-15)


@pytest.mark.parametrize(("n", "size", "steps"), [(9, 0, 1), (9, 9, 1), (9, 10, 1), (9, 8, 2), (9, 1, 9), (9, 3, 3)])
def test_steps_of_a_pass(n: int, size: int, steps: int) -> None:
    assert steps_of_a_pass(n, size) == steps
    batch_of = walk(numbered([n]), 0, size, ORDERS["incremental"], 0, F64)
    weights = [batch_of(k).weights for k in range(steps)]
    assert all((weight == steps / n).all() for weight in weights)
    assert sum(weight.shape[1] for weight in weights) == n


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    size=st.integers(0, 6),
    order=st.sampled_from(sorted(ORDERS)),
    steps=st.integers(1, 7),
    rounds=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_what_is_counted(sizes: list[int], size: int, order: str, steps: int, rounds: int) -> None:
    """Samples, gradients and steps of clients that take part in any number of rounds."""
    world, task = numbered(sizes), LeastSquares().build((2,), None, F64, CPU)
    ids = torch.arange(len(sizes))
    plan = Plan(Local(steps=steps, batch=size, order=order), 0.001, order=order_named(order))
    memories: dict[int, Memory] = {}
    total = torch.zeros(len(sizes), dtype=torch.int64)
    for round in range(rounds):
        stream = Stream(1, Purpose.BATCH, round)
        found = solve(task, world, torch.zeros(len(sizes), 2, dtype=F64), ids, plan, stream, memories)
        assert torch.equal(found.samples, found.gradients)
        memories, total = dict(enumerate(found.memories)), total + found.samples
    for i, n in enumerate(sizes):
        assert memories[i].steps == rounds * steps
        batches = [part.shape[0] for part in torch.arange(n).split(min(size, n) or n)]
        assert int(total[i]) == sum(batches[k % len(batches)] for k in range(rounds * steps))


@given(n=st.integers(1, 30), size=st.integers(0, 12), order=st.sampled_from(sorted(ORDERS)))
@settings(max_examples=30, deadline=None)
def test_the_loss_is_that_of_the_first_batch(n: int, size: int, order: str) -> None:
    """F with its penalty: the samples of the batch weigh 1 / b each, not what they weigh in the pass."""
    rng = np.random.default_rng(n)
    x, y = torch.from_numpy(rng.standard_normal((n, 3))), torch.from_numpy(rng.standard_normal(n))
    world = federate(Dataset(Examples(x, y, None), None, "random"), torch.zeros(n, dtype=torch.int64))
    task = LeastSquares(l2=0.7).build((3,), None, F64, CPU)
    w = rng.standard_normal(3)
    plan = Plan(Local(batch=size, order=order), 0.1, order=order_named(order))
    found = solve(task, world, torch.from_numpy(w)[None], torch.tensor([0]), plan, Stream(5, Purpose.BATCH))
    some = places(order, 5, 0, n, 0, clients=1)[: size or None].numpy()
    expected = np.mean((x.numpy()[some] @ w - y.numpy()[some]) ** 2) + 0.35 * w @ w
    assert float(found.losses) == pytest.approx(expected, rel=1e-12)
