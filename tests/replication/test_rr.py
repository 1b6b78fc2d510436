"""Random reshuffling as in its paper: the protocol step by step, its figures, and the theorems behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.data.examples import Examples
from fedsim.solvers.order import ORDERS
from fedsim.tasks import Logistic
from fedsim.tasks.optimum import optimum
from fedsim.tasks.task import Batch
from tests.replication import rr, rr_numpy
from tests.replication.__main__ import LIBSVM
from tests.replication.figures import Cell
from tests.replication.measure import measure

F64 = torch.float64
Array = npt.NDArray[np.float64]


@pytest.fixture(scope="session")
def rr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the cells read."""
    folder = tmp_path_factory.mktemp("rr")
    rr.write_files(folder, LIBSVM if (LIBSVM / rr.W8A).is_file() else None)
    return folder


@cache
def cancer() -> tuple[Array, Array, float, float]:
    """(features, labels -1 / +1, lambda, F*) of breast cancer."""
    train = rr.breast_cancer().load(0).train
    found = rr.problem(rr.breast_cancer())
    _, floor = optimum(Logistic(l2=found.l2).build((found.d,), 2, F64, torch.device("cpu")), train)
    return train.features.numpy(), 2.0 * train.targets.numpy() - 1, found.l2, floor


def permutations(order: str, n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """fedsim's passes over the samples of one client."""
    return (ORDERS[rr.ORDERS[order]](seed, 0, n, epoch, 1).numpy() for epoch in count())


@pytest.mark.parametrize("order", rr.ORDERS)
def test_a_run_is_the_protocol(order: str) -> None:
    """Ten epochs of the whole engine with one client, on the same permutations: schedule, short batch, weights."""
    result = fedsim.run(rr.protocol(rr.breast_cancer(), order, 32, 10))
    data = rr_numpy.breast_cancer()
    w, excess = rr_numpy.descend(data, order, 32, 10, permutations(order, 569, 0))
    np.testing.assert_allclose(result.model.numpy(), w, rtol=1e-9, atol=1e-12)
    losses = [found["loss"] for found in result.metrics[1:]]
    np.testing.assert_allclose(losses, excess + data.floor, rtol=1e-12)


def test_the_constants_of_the_protocol() -> None:
    """kappa = sqrt(n) + 1, and L_B between L (all samples) and L_max (one sample)."""
    found = rr.problem(rr.breast_cancer())
    assert (found.n, found.d) == (569, 31)
    assert (found.smoothness + found.l2) / found.l2 == pytest.approx(math.sqrt(569) + 1)
    assert found.expected_smoothness(1) == pytest.approx(found.largest + found.l2)
    assert found.expected_smoothness(569) == pytest.approx(found.smoothness + found.l2)


def test_reshuffling_beats_sgd_a_hundred_times_and_shuffling_once_ten_times() -> None:
    """100 epochs in the engine. Over seeds the ratios are 340 and 33; a factor 3 below is beyond three deviations."""
    floors = {order: rr.mean_excess([measure(rr.protocol(rr.breast_cancer(), order, 32, 100))]) for order in rr.ORDERS}
    assert floors["rr"] < floors["sgd"] - 2
    assert floors["so"] < floors["sgd"] - 1
    assert floors["ig"] == pytest.approx(math.log10(4.15e-6), abs=0.01)


def test_a_last_batch_that_wraps_around_changes_what_shuffling_once_minimises() -> None:
    """Its samples count twice in every pass: then F - F* stops falling."""
    data = rr_numpy.breast_cancer()
    short, wrap = (
        [rr_numpy.excess(data, "so", 32, 100, seed, last) for seed in range(3)] for last in ("short", "wrap")
    )
    assert np.mean(wrap) > 10 * np.mean(short)
    assert rr_numpy.excess(data, "so", 32, 200, 0, "wrap") > 0.7 * wrap[0]


@pytest.mark.slow
def test_on_w8a_wrapping_around_costs_shuffling_once_two_digits(rr_folder: Path) -> None:
    """3.2e-6 within a factor 2 against 3.0e-8 within a factor 3. fedsim does not wrap around."""
    key = w8a_key(rr_folder)
    wrap = rr.independent_excess(rr_folder, key, "so", last="wrap")
    assert wrap == pytest.approx(math.log10(3.2e-6), abs=math.log10(2))
    assert rr.independent_excess(rr_folder, key, "so") == pytest.approx(math.log10(3.0e-8), abs=math.log10(3))


RING = [(key, row["ig"]) for key, row in rr.TABLE.items() if not (math.isnan(row["ig"]) or key[0].startswith("w8a"))]


@pytest.mark.parametrize(("key", "figure"), RING)
def test_the_published_incremental_figures_are_of_batches_in_a_ring(key: rr.Key, figure: float) -> None:
    """IG draws nothing, so its figures tell how the last batch was filled: 0.83 to 1.3 of them when it rolls on."""
    measured = rr.independent_excess(Path(), key, "ig", last="roll")
    assert measured == pytest.approx(math.log10(figure), abs=0.12)


def test_the_order_of_a_file_sorted_by_label_is_no_better_than_sgd(rr_folder: Path) -> None:
    """Digits after kappa = 43 epochs: hundreds of times as far from the minimum. Reshuffling heals the same file."""
    data = rr.digits(rr_folder, "digits.sorted.txt")
    assert rr.problem(data).l2 == pytest.approx(rr.problem(rr.digits(rr_folder)).l2, rel=1e-6)
    floors = {order: rr.mean_excess([measure(rr.protocol(data, order, 32, 43))]) for order in ("sgd", "rr", "ig")}
    assert floors["ig"] > floors["sgd"] + 2
    assert floors["rr"] < floors["sgd"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "worse"),
    [
        (("breast cancer by label", 8, 100), False),
        (("breast cancer by label", 8, 250), False),
        (("digits by label", 32, 250), True),
        (("digits by label", 128, 250), True),
        (("w8a by label", 512, 250), True),
    ],
)
def test_the_order_of_a_file_sorted_by_label_beside_sgd(rr_folder: Path, key: rr.Key, worse: bool) -> None:
    """IG is no better than SGD on digits and w8a. On breast cancer it is: 5 times at 100 epochs, 9 times at 250.

    The error of IG is of order gamma^2 in any order, that of SGD gamma, and gamma shrinks: more epochs favour IG.
    """
    incremental = rr.mean_excess([measure(cell_of(rr_folder, key, "ig").experiment)])
    sgd = cell_of(rr_folder, (key[0].removesuffix(" by label"), *key[1:]), "sgd")
    assert (incremental > rr.mean_excess([measure(sgd.at(seed)) for seed in sgd.seeds])) == worse


@pytest.mark.parametrize("batch", [1, 2, 8, 32, 128, 256, 512])
def test_the_shuffling_variance_lies_within_its_bounds(batch: int) -> None:
    """gamma mu m / 8 s^2 <= max_i E D_(f_pi_i)(x_i*, x*) / gamma <= gamma L m / 4 s^2 over m batches, gamma = 1 / L.

    x_i* = x* - gamma sum_(j<i) grad f_pi_j(x*); E over 400 of fedsim's permutations; D the Bregman divergence. The
    bounds are a factor 2 kappa apart, and 400 permutations leave an error of a few percent.
    """
    x, y, l2, _ = cancer()
    n, d = 512, x.shape[1]
    m = n // batch
    task = Logistic(l2=l2).build((d,), 2, F64, torch.device("cpu"))
    features, targets = torch.from_numpy(x[:n]), torch.from_numpy((y[:n] > 0).astype(np.int64))
    best, _ = optimum(task, Examples(features, targets, 2))
    parts = features.reshape(m, batch, d)
    values = torch.linalg.eigvalsh(parts.transpose(1, 2) @ parts if batch > d else parts @ parts.transpose(1, 2))
    largest = float(values.amax()) / (4 * batch) + l2
    gamma = 1 / largest
    weights = torch.full((m, batch), 1 / batch, dtype=F64)

    def batches(which: Tensor) -> Batch:
        return Batch(parts[which], targets.reshape(m, batch)[which], weights[which])

    rows, values_at_best = task.gradients(best.expand(m, -1), batches(torch.arange(m)))
    noise = float(rows.square().sum(dim=1).mean())
    if m == 1:
        assert noise < 1e-20
        return
    divergences = torch.zeros(m, dtype=F64)
    draws = 400 if m <= 64 else 100
    for epoch in range(draws):
        pass_ = ORDERS["reshuffle"](7, 0, m, epoch, 1)
        walked = gamma * (rows[pass_].cumsum(dim=0) - rows[pass_])
        _, losses = task.gradients(best - walked, batches(pass_))
        divergences += losses - values_at_best[pass_] + (rows[pass_] * walked).sum(dim=1)
    variance = float(divergences[1:].amax()) / draws / gamma
    assert gamma * l2 * m / 8 * noise <= variance <= gamma * largest * m / 4 * noise


def test_theorem_1_bounds_reshuffling() -> None:
    """E||w_T - w*||^2 <= (1 - gamma mu)^(n T) r_0 + 2 gamma sigma^2 / mu with sigma^2 <= gamma L_max n / 4 s^2.

    gamma = 1 / (10 L_max), 8 epochs of single samples.
    """
    x, y, l2, _ = cancer()
    n, found = len(x), rr.problem(rr.breast_cancer())
    task = Logistic(l2=l2).build((found.d,), 2, F64, torch.device("cpu"))
    best, _ = optimum(task, Examples(torch.from_numpy(x), torch.from_numpy((y > 0).astype(np.int64)), 2))
    slopes = -y / (1 + np.exp(y * (x @ best.numpy())))
    noise = float(np.mean(np.sum((slopes[:, None] * x + l2 * best.numpy()) ** 2, axis=1)))
    gamma = 0.1 / (found.largest + l2)
    variance = gamma * (found.largest + l2) * n / 4 * noise
    bound = (1 - gamma * l2) ** (n * 8) * float(best @ best) + 2 * gamma * variance / l2
    result = fedsim.run(rr.protocol(rr.breast_cancer(), "rr", 1, 8, step=gamma))
    reached = float((result.model - best).square().sum())
    assert reached <= bound
    assert bound < float(best @ best)


CELLS = [(key, order) for key, row in rr.TABLE.items() for order, figure in row.items() if not math.isnan(figure)]


def cell_of(folder: Path, key: rr.Key, order: str) -> Cell:
    """A cell of the table, or skip."""
    cells = rr.keyed_cells(folder)
    if (key, order) not in cells:
        pytest.skip(f"needs {rr.W8A} in ../shared/data/libsvm beside the repository")
    return cells[key, order]


def w8a_key(folder: Path) -> rr.Key:
    """The row of w8a, or skip."""
    key = ("w8a", 512, 250)
    cell_of(folder, key, "so")
    return key


@pytest.mark.slow
@pytest.mark.parametrize(("key", "order"), [pair for pair in CELLS if pair not in rr.MISSED])
def test_every_cell_that_is_met(rr_folder: Path, key: rr.Key, order: str) -> None:
    cell = cell_of(rr_folder, key, order)
    assert cell.met(rr.mean_excess([measure(cell.at(seed)) for seed in cell.seeds]))


@pytest.mark.slow
@pytest.mark.parametrize(("key", "order"), rr.MISSED)
def test_every_cell_that_is_missed_agrees_with_numpy(rr_folder: Path, key: rr.Key, order: str) -> None:
    """IG, which draws nothing, in four digits; the others over ten seeds: means of log10 within 4 standard errors.

    False alarm: 1 in 1000 a cell (Student, about 18 degrees of freedom); the seeds are fixed, so it does not flicker.
    """
    cell = cell_of(rr_folder, key, order)
    data, seeds = rr.independent(key[0], rr_folder), range(1 if order == "ig" else 10)
    ours = np.array([rr.mean_excess([measure(cell.at(seed))]) for seed in seeds])
    theirs = np.log10([rr_numpy.excess(data, order, *key[1:], seed) for seed in seeds])
    assert not cell.met(math.log10(float(np.mean(10 ** ours[:3])))), "met: take it off the list"
    error = 1e-4 if order == "ig" else 4 * math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(seeds))
    assert abs(ours.mean() - theirs.mean()) <= error


@pytest.mark.slow
def test_the_published_figures_of_w8a_are_of_one_seed(rr_folder: Path) -> None:
    """numpy's seed 0 gives all four to 3 %. For rr it is the largest of ten seeds, whose geometric mean is 6.5e-10."""
    key = w8a_key(rr_folder)
    data = rr.independent("w8a", rr_folder)
    assert rr_numpy.excess(data, "sgd", *key[1:], 0) == pytest.approx(3.1e-6, rel=0.03)
    assert rr_numpy.excess(data, "rr", *key[1:], 0) == pytest.approx(3.1e-9, rel=0.03)
    assert rr_numpy.excess(data, "so", *key[1:], 0) == pytest.approx(3.0e-8, rel=0.03)
    assert rr_numpy.excess(data, "so", *key[1:], 0, "wrap") == pytest.approx(3.2e-6, rel=0.03)
    others = [rr_numpy.excess(data, "rr", *key[1:], seed) for seed in range(1, 10)]
    assert min(others) < 3.1e-9 / 10
    assert max(others) < 3.1e-9 / 2


@pytest.mark.slow
def test_on_w8a_a_run_is_the_protocol(rr_folder: Path) -> None:
    """On the same permutations the same F - F*: where the tables differ, the draws do."""
    cell = cell_of(rr_folder, w8a_key(rr_folder), "rr")
    walk = permutations("rr", 49749, 0)
    _, expected = rr_numpy.descend(rr.independent("w8a", rr_folder), "rr", 512, 250, walk)
    measured = 10 ** np.array(measure(cell.experiment).excess[1:])
    np.testing.assert_allclose(measured, expected, rtol=1e-6, atol=1e-14)


@pytest.mark.slow
def test_on_w8a_reshuffling_beats_sgd_hundreds_of_times(rr_folder: Path) -> None:
    """The paper's figure: SO and RR end 100 to 200 times below SGD and more; IG no better than SGD."""
    row = w8a_key(rr_folder)
    floors = {order: rr.mean_excess([measure(cell_of(rr_folder, row, order).experiment)]) for order in rr.ORDERS}
    assert floors["rr"] < floors["so"] < floors["sgd"] - 2
    assert floors["ig"] > floors["sgd"]
