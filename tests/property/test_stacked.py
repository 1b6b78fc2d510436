"""Clients side by side compute what each computes alone: the same samples exactly, the same numbers up to rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Memory, Plan, course, small, solve
from fedsim.solvers.course import Course, steps_of
from fedsim.solvers.direction import Gradient, Momentum, Sam
from fedsim.solvers.local import _batches
from fedsim.solvers.order import ORDERS, order_named, passes_of
from fedsim.solvers.rate import Constant, Harmonic
from fedsim.solvers.stacked import PADDED, groups_of
from fedsim.tasks import CNN, MLP, LeastSquares, Logistic, Module, Softmax, Task
from fedsim.tasks.task import Batch

CPU, F64 = torch.device("cpu"), torch.float64
TASKS: dict[str, tuple[Any, tuple[int, ...], int | None]] = {
    "least-squares": (LeastSquares(l2=0.1), (4,), None),
    "logistic": (Logistic(), (4,), 2),
    "softmax": (Softmax(l2=0.2), (4,), 3),
    "no hidden layer": (MLP(hidden=()), (2, 3), 3),
    "mlp": (MLP(hidden=(5,), l2=0.1), (4,), 3),
    "deep": (MLP(hidden=(6, 5, 4)), (4,), 3),
    "no bias": (Module("tests.property.test_stacked:without_bias"), (4,), 3),
    "cnn": (CNN(width=2), (1, 4, 4), 3),
    "group norm": (Module("tests.property.test_stacked:normed", l2=0.1), (4,), 3),
    "transformer": (Module("tests.property.test_stacked:transformer"), (3, 4), 3),
}
ONE_LAYER = ["least-squares", "logistic", "softmax", "no hidden layer"]
EVERY_ORDER = ["fresh", *ORDERS, "tests.plugins_example:there_and_back"]
RATES = [Constant(), Harmonic(mu=3.0, factor=0.5, hold=2)]
DIRECTIONS = [Gradient(), Momentum(), Momentum(0.7, "never"), Sam(0.1)]
SIZES = st.lists(st.integers(1, 17), min_size=1, max_size=7)


def without_bias(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5, bias=False), nn.ReLU(), nn.Linear(5, classes))


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    """GroupNorm with a large eps: a division by a small deviation would magnify what rounding left."""
    norm = nn.GroupNorm(2, 6, eps=0.1)
    return nn.Sequential(nn.Linear(shape[0], 6), norm, nn.ReLU(inplace=True), nn.Linear(6, classes, bias=False))


class Words(nn.Module):
    """A small transformer with one position after another, and one weight that is used twice."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
        self.last = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.layer(self.first(x)).mean(dim=1)) + self.last(self.first(x)[:, 0])
        return scores


def transformer(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Words(shape[1], classes)


def world(kind: str, sizes: list[int], dtype: torch.dtype = F64) -> tuple[Task, Federation]:
    options, shape, classes = TASKS[kind]
    rng, n = np.random.default_rng(0), sum(sizes)
    features = torch.from_numpy(rng.standard_normal((n, *shape)))
    targets = torch.from_numpy(rng.standard_normal(n) if classes is None else rng.integers(0, classes, n))
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    federation = federate(Dataset(Examples(features, targets, classes), None, kind), owners).to(CPU, dtype)
    return options.build(shape, classes, dtype, CPU), federation


def models(task: Task, n: int) -> Tensor:
    start = task.initial(0)
    return start + 0.3 * torch.from_numpy(np.random.default_rng(1).standard_normal((n, task.dim))).to(start)


def round_(t: int) -> Stream:
    return Stream(2, Purpose.BATCH, t)


LOCALS = st.builds(
    lambda steps, epochs, batch, order, send: Local(
        steps=1 if epochs and order != "fresh" else steps,
        epochs=epochs if order != "fresh" else 0,
        batch=batch,
        order=order,
        step=0.05,
        send=send,
    ),
    st.integers(1, 7),
    st.integers(0, 2),
    st.integers(0, 12),
    st.sampled_from(EVERY_ORDER),
    st.sampled_from(["direction", "difference"]),
)


@pytest.mark.parametrize(("dtype", "relative"), [(F64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize(("kind", "looped"), [(kind, False) for kind in TASKS] + [(kind, True) for kind in ONE_LAYER])
@given(
    local=LOCALS,
    rate=st.sampled_from(RATES),
    direction=st.sampled_from(DIRECTIONS),
    sizes=SIZES,
    chunk=st.integers(2, 8),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_stacked_is_sequential_up_to_rounding(
    dtype: torch.dtype,
    relative: float,
    kind: str,
    looped: bool,
    local: Local,
    rate: Any,
    direction: Any,
    sizes: list[int],
    chunk: int,
    data: st.DataObject,
) -> None:
    """Relative to the largest number of a row, or of the model where models are subtracted; over two rounds.

    looped: by the compiled loop for small steps, with the same numbers for every page that ``FOUND`` cuts. A network
    with GroupNorm divides by deviations that can be small: alone it is computed in another memory format, and in
    float32 either form is up to 2e-5 away from float64 (of one image a client), so there the two may be 1e-4 apart.
    """
    relative = 1e-4 if (kind, dtype) == ("cnn", torch.float32) else relative
    found = data.draw(st.sampled_from([course.FOUND, 1, 40]), label="found")
    with mock.patch.object(small, "SMALL", 2**16 if looped else 0), mock.patch.object(course, "FOUND", found):
        compare_executors(world(kind, sizes, dtype), relative, local, rate, direction, sizes, chunk, data)


def compare_executors(
    given: tuple[Task, Federation],
    relative: float,
    local: Local,
    rate: Any,
    direction: Any,
    sizes: list[int],
    chunk: int,
    data: st.DataObject,
) -> None:
    task, federation = given
    ids = torch.tensor(data.draw(st.permutations(range(len(sizes)))))
    start = models(task, len(sizes))
    if data.draw(st.booleans(), label="one model for all"):
        start = start[0].expand(len(sizes), -1)
    plans = [Plan(local, 0.05, c, order_named(local.order), rate, direction) for c in (1, chunk)]
    before: list[dict[int, Memory]] = [{}, {}]
    for t in range(2):
        pairs = [solve(task, federation, start, ids, plan, round_(t), b) for plan, b in zip(plans, before, strict=True)]
        one, many = pairs
        scale = one.direction.abs().amax(dim=1, keepdim=True)
        if local.send == "difference":
            scale = scale.maximum(start.abs().amax(dim=1, keepdim=True))
        assert ((many.direction - one.direction).abs() <= relative * scale).all()
        torch.testing.assert_close(many.losses, one.losses, rtol=relative, atol=relative)
        assert torch.equal(many.samples, one.samples)
        assert torch.equal(many.gradients, one.gradients)
        for mine, theirs in zip(many.memories, one.memories, strict=True):
            assert mine.steps == theirs.steps
            assert mine.rate.keys() == theirs.rate.keys()
            assert mine.direction.keys() == theirs.direction.keys()
            for name, note in theirs.direction.items():
                near = relative * max(1.0, float(note.abs().amax()))
                torch.testing.assert_close(mine.direction[name], note, rtol=0, atol=near)
        before = [dict(zip(ids.tolist(), found.memories, strict=True)) for found in pairs]


@pytest.mark.parametrize(("copied", "found"), [(course.COPIED, course.FOUND), (1, 1), (12, 40)])
@given(local=LOCALS, sizes=SIZES, done=st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_the_chosen_samples_are_exactly_those_of_the_reference(
    copied: int, found: int, local: Local, sizes: list[int], done: int
) -> None:
    """Each sample is its own number; also where pages are cut, and with the weights of the reference."""
    with mock.patch.object(course, "COPIED", copied), mock.patch.object(course, "FOUND", found):
        compare_samples(local, sizes, done)


def compare_samples(local: Local, sizes: list[int], done: int) -> None:
    numbers = torch.arange(sum(sizes), dtype=F64)
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    federation = federate(Dataset(Examples(numbers[:, None], numbers, None), None, "numbered"), owners)
    plan = Plan(local, 0.05, 4, order_named(local.order))
    counts = np.array(sizes)
    ids = np.argsort(-steps_of(plan, counts), kind="stable")
    before = (done + ids) % 30
    way = Course.of(federation, plan, ids, before)
    walks = [_batches(federation, int(i), plan, round_(3), F64, int(k)) for i, k in zip(ids, before, strict=True)]
    h, samples = 0, np.zeros(len(sizes), dtype=np.int64)
    for page in way.pages(round_(3), F64):
        parts = [page.split(part) for part in (page.features, page.targets, page.weights)]
        for features, targets, weights, going, width in zip(*parts, page.going, page.widths, strict=True):
            assert going == np.count_nonzero(way.steps > h)
            for i in range(going):
                own: Batch = walks[i](h)
                b = own.targets.shape[1]
                assert b <= width
                assert torch.equal(targets[i, :b], own.targets[0])
                assert torch.equal(features[i, :b], own.features[0])
                torch.testing.assert_close(weights[i, :b], own.weights[0], rtol=1e-15, atol=0)
                assert (weights[i, b:width] == 0).all()
                samples[i] += b
            h += 1
    assert h == way.steps[0]
    assert (samples == way.samples).all()


@pytest.mark.parametrize("order", [*ORDERS, "tests.plugins_example:there_and_back"])
@given(sizes=SIZES, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_passes_of_many_clients_are_those_of_each(order: str, sizes: list[int], seed: int, epoch: int) -> None:
    each = order_named(order)
    assert each is not None
    many = passes_of(each)(seed, torch.arange(len(sizes)), torch.tensor(sizes), epoch, len(sizes))
    for client, n in enumerate(sizes):
        assert torch.equal(many[client, :n], each(seed, client, n, epoch, len(sizes)))


@pytest.mark.parametrize("kind", ["softmax", "mlp", "cnn"])
@pytest.mark.parametrize("send", ["direction", "difference"])
def test_repeatable_to_the_bit_for_each_chunk(kind: str, send: Any) -> None:
    task, federation = world(kind, [9, 4, 13, 1, 7], torch.float32)
    plan = Plan(Local(epochs=1, batch=3, step=0.1, order="reshuffle", send=send), 0.1, 3, ORDERS["reshuffle"])
    first, second = (solve(task, federation, models(task, 5), torch.arange(5), plan, round_(0)) for _ in range(2))
    assert torch.equal(first.direction, second.direction)
    assert torch.equal(first.losses, second.losses)


@pytest.mark.parametrize("kind", ONE_LAYER)
@given(local=LOCALS, rate=st.sampled_from(RATES), sizes=SIZES, found=st.sampled_from([course.FOUND, 1, 40]))
@settings(max_examples=25, deadline=None)
def test_a_row_of_the_loop_for_small_steps_has_the_same_bits_in_every_cohort(
    kind: str, local: Local, rate: Any, sizes: list[int], found: int
) -> None:
    """Also whatever the chunk and the pages."""
    task, federation = world(kind, sizes, torch.float32)
    start, ids = models(task, len(sizes)), torch.arange(len(sizes))
    plan = Plan(local, 0.05, 8, order_named(local.order), rate)
    assert small.fits(task.stack, federation, plan)
    together = solve(task, federation, start, ids, plan, round_(1))
    with mock.patch.object(course, "FOUND", found):
        for i in range(len(sizes)):
            alone = solve(task, federation, start[i : i + 1], ids[i : i + 1], replace(plan, chunk=2), round_(1))
            assert torch.equal(alone.direction[0], together.direction[i])
            assert torch.equal(alone.losses[0], together.losses[i])


def test_the_loop_is_for_small_steps_of_one_layer_along_gradients() -> None:
    task, federation = world("softmax", [4, 4], torch.float32)
    plan = Plan(Local(steps=2, batch=3, step=0.1), 0.1, 2)
    assert small.fits(task.stack, federation, plan)
    assert not small.fits(task.stack, federation, replace(plan, direction=Momentum()))
    for kind in ("mlp", "cnn"):
        other, theirs = world(kind, [4, 4], torch.float32)
        assert not small.fits(other.stack, theirs, plan)
    wide, many = world("softmax", [5000, 5000], torch.float32)
    assert not small.fits(wide.stack, many, replace(plan, local=Local()))
    assert small.fits(wide.stack, many, plan)


def test_one_large_client_does_not_pad_the_others() -> None:
    """10,000 samples beside 200 clients of 2: side by side they would be 2,000,000 rows of 100 numbers."""
    sizes = torch.tensor([2] * 100 + [10_000] + [2] * 100)
    features = torch.zeros(int(sizes.sum()), 100)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    federation = Federation(features, features[:, 0], offsets, None, None, "uneven")
    groups = groups_of(federation, torch.arange(201), Plan(Local(), 0.1, 201))
    assert sorted(place for group in groups for place in group) == list(range(201))
    assert all(len(group) * int(sizes[group].amax()) * 100 <= PADDED for group in groups)
    assert len(groups) <= 3
