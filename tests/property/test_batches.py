"""Mini-batches: which samples are chosen depends on the address of their numbers and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Plan
from fedsim.solvers.batches import alone, choose
from fedsim.solvers.course import Course
from fedsim.tasks.task import Batch

F64 = torch.float64
CLIENTS = st.lists(
    st.tuples(st.integers(0, 2**31), st.integers(1, 40)), min_size=1, max_size=5, unique_by=lambda c: c[0]
)


def stream(round: int = 3, step: int = 2) -> Stream:
    return Stream(seed=11, purpose=Purpose.BATCH, round=round, index=step)


def federation(sizes: list[int], classes: int | None = None) -> Federation:
    """Clients of the given sizes; each sample is its own number, so that a batch shows who is in it."""
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    n = sum(sizes)
    train = Examples(torch.arange(n, dtype=F64)[:, None].repeat(1, 2), torch.arange(n, dtype=F64), classes)
    return federate(Dataset(train, None, "numbered"), owners)


@given(CLIENTS, st.integers(1, 45), st.integers(0, 9), st.integers(0, 5))
def test_the_smallest_keys_win(clients: list[tuple[int, int]], count: int, step: int, padding: int) -> None:
    """Against numpy: sort (key, position), take the first, for each client by itself and without padding."""
    ids, sizes = torch.tensor([c for c, _ in clients]), torch.tensor([n for _, n in clients])
    width = int(sizes.amax()) + padding
    places = choose(stream(step=step), ids, sizes, width, count)
    assert places.shape == (len(clients), min(count, width))
    for row, (client, n) in zip(places, clients, strict=True):
        keys = stream(step=step).words(torch.tensor([client]), n)[0].numpy()
        expected = sorted(np.lexsort((np.arange(n), keys))[:count].tolist())
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == width).all()


def test_ties_go_to_the_earlier_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal 32-bit keys are too rare to wait for."""
    monkeypatch.setattr(
        Stream, "words", lambda self, clients, width: torch.zeros((len(clients), width), dtype=torch.int64)
    )
    ids, sizes = torch.tensor([0, 1]), torch.tensor([50, 2])
    assert choose(stream(), ids, sizes, 50, 3).tolist() == [[0, 1, 2], [0, 1, 50]]
    assert choose(stream(), ids, sizes, 50, 1).tolist() == [[0], [0]]


def test_the_largest_key_of_a_real_sample_is_before_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    top = 2**32 - 1
    monkeypatch.setattr(Stream, "words", lambda self, clients, width: torch.tensor([[top, top, 0, 0]]))
    assert choose(stream(), torch.tensor([0]), torch.tensor([2]), 4, 1).tolist() == [[0]]
    assert choose(stream(), torch.tensor([0]), torch.tensor([2]), 4, 3).tolist() == [[0, 1, 4]]


def test_steps_rounds_and_clients_draw_different_batches() -> None:
    ids, sizes = torch.tensor([0, 1]), torch.tensor([500, 500])
    batches = [choose(stream(r, s), ids, sizes, 500, 20) for r, s in ((0, 0), (0, 1), (1, 0))]
    rows = [tuple(row.tolist()) for batch in batches for row in batch]
    assert len(set(rows)) == 6


def stacked(world: Federation, ids: Tensor, size: int) -> Batch:
    """The one step of a group; its clients stand in the order given."""
    clients = ids.numpy()
    (page,) = Course.of(world, Plan(Local(batch=size), 0.1, 2), clients, np.zeros_like(clients)).pages(
        stream(step=0), F64
    )
    return Batch(*(next(iter(page.split(part))) for part in (page.features, page.targets, page.weights)))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 14), st.data())
def test_a_stack_holds_each_clients_own_batch(sizes: list[int], size: int, data: st.DataObject) -> None:
    """Same samples and weights with and without padding; padding has weight 0 and shows a sample of the same client."""
    world = federation(sizes)
    ids = torch.tensor(data.draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, max_size=4, unique=True)))
    page = stacked(world, ids, size)
    for i, client in enumerate(ids.tolist()):
        own = alone(world, ids[i : i + 1], size, F64)(stream(step=0))
        b = own.targets.shape[1]
        assert b == (min(size, sizes[client]) or sizes[client])
        assert torch.equal(page.features[i, :b], own.features[0])
        assert torch.equal(page.targets[i, :b], own.targets[0])
        assert torch.equal(page.weights[i, :b], own.weights[0])
        assert (page.weights[i, b:] == 0).all()
        assert torch.isin(page.targets[i], world.shard(client).targets).all()
        assert (own.weights == 1 / b).all()
        assert own.targets[0].unique().numel() == b


@pytest.mark.parametrize("size", [0, 4, 9])
def test_all_samples_of_one_client_or_of_equal_neighbours_are_views(size: int) -> None:
    world = federation([4, 4, 4, 3])
    memory = world.features.untyped_storage().data_ptr()
    lone, page = alone(world, torch.tensor([3]), size, F64)(stream()), stacked(world, torch.tensor([1, 2]), size)
    assert lone.features.untyped_storage().data_ptr() == page.features.untyped_storage().data_ptr() == memory
    assert torch.equal(page.targets, torch.arange(4, 12, dtype=F64).reshape(2, 4))
    assert (page.weights == 0.25).all()


@pytest.mark.parametrize("ids", [[0, 2], [2, 1], [2, 3], [1, 0, 2]])
def test_other_stacks_are_not_mistaken_for_neighbours(ids: list[int]) -> None:
    world = federation([4, 4, 4, 3])
    page = stacked(world, torch.tensor(ids), 0)
    for i, client in enumerate(ids):
        shard = world.shard(client)
        assert torch.equal(page.targets[i, : len(shard)], shard.targets)
        assert torch.equal(page.features[i, : len(shard)], shard.features)


def test_every_step_of_a_full_batch_reuses_it() -> None:
    world = federation([4, 3])
    batches = alone(world, torch.tensor([0]), 0, F64)
    assert batches(stream(step=0)) is batches(stream(step=1))
    clients = np.array([0, 1])
    (page,) = Course.of(world, Plan(Local(steps=5), 0.1, 2), clients, np.zeros_like(clients)).pages(stream(), F64)
    assert (page.same, page.going, tuple(page.features.shape)) == (True, [2] * 5, (8, 2))
