"""F* against values known in closed form, and against the condition that characterises a minimum."""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from fedsim.data.examples import Examples
from fedsim.errors import ConfigError
from fedsim.tasks import MLP, LeastSquares, Logistic, Softmax
from fedsim.tasks.optimum import optimum
from fedsim.tasks.task import full_batch

CPU, F64 = torch.device("cpu"), torch.float64
Array = npt.NDArray[np.float64]


def examples(x: Array, y: npt.NDArray[np.generic], classes: int | None) -> Examples:
    return Examples(torch.from_numpy(x), torch.from_numpy(y), classes)


def entropy(*shares: float) -> float:
    return -sum(p * math.log(p) for p in shares)


def standardised(x: Array) -> Array:
    """Unit columns behind a column of ones; a constant column becomes zero."""
    spread = x.std(axis=0)
    return np.c_[np.ones(len(x)), (x - x.mean(axis=0)) / np.where(spread > 0, spread, np.inf)]


def test_least_squares_equals_numpy() -> None:
    x, y = load_diabetes(return_X_y=True)
    x = np.c_[np.ones(len(x)), x]
    w, value = optimum(LeastSquares().build((11,), None, F64, CPU), examples(x, y, None))
    expected, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-10)
    assert value == pytest.approx(residual[0] / len(y), rel=1e-13)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_least_squares_of_classes_and_collinear_features(l2: float) -> None:
    """A doubled column makes X'X singular; the value is that of the single column, with twice the weight's reach."""
    x, y = load_breast_cancer(return_X_y=True)
    x = standardised(x)[:, :6]
    double = np.c_[x, x[:, -1]]
    w, value = optimum(LeastSquares(l2=l2).build((7,), 2, F64, CPU), examples(double, y, 2))
    signs = 2.0 * y - 1
    gradient = 2 * double.T @ (double @ w.numpy() - signs) / len(y) + l2 * w.numpy()
    assert np.abs(gradient).max() < 1e-12
    assert value == pytest.approx(np.mean((double @ w.numpy() - signs) ** 2) + l2 / 2 * float(w @ w), rel=1e-13)
    if l2 == 0:
        _, single = optimum(LeastSquares().build((6,), 2, F64, CPU), examples(x, y, 2))
        assert value == pytest.approx(single, rel=1e-12)


def test_logistic_value_of_a_constant_feature_is_the_entropy_of_the_labels() -> None:
    y = np.array([1] * 30 + [0] * 70)
    w, value = optimum(Logistic().build((1,), 2, F64, CPU), examples(np.ones((100, 1)), y, 2))
    assert float(w[0]) == pytest.approx(math.log(0.3 / 0.7), rel=1e-12)
    assert value == pytest.approx(entropy(0.3, 0.7), rel=1e-14)


def test_softmax_value_of_zero_features_is_the_entropy_of_the_labels() -> None:
    y = np.repeat(np.arange(3), (20, 30, 50))
    w, value = optimum(Softmax().build((2,), 3, F64, CPU), examples(np.zeros((100, 2)), y, 3))
    assert value == pytest.approx(entropy(0.2, 0.3, 0.5), rel=1e-14)
    np.testing.assert_allclose((w[6:] - w[6]).numpy(), np.log([1, 1.5, 2.5]), rtol=1e-12, atol=1e-14)


def test_a_feature_of_one_class_only_has_its_infimum_reached() -> None:
    """Of 100 samples 10 have a feature that only class 1 has: its weight is infinite, F* is the rest's entropy."""
    feature = np.array([1.0] * 10 + [0.0] * 90)
    y = np.array([1] * 10 + [1] * 30 + [0] * 60)
    _, value = optimum(Logistic().build((2,), 2, F64, CPU), examples(np.c_[np.ones(100), feature], y, 2))
    assert value == pytest.approx(0.9 * entropy(1 / 3, 2 / 3), abs=1e-12)


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_gradient_of_logistic_vanishes(l2: float) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = standardised(x)
    w, value = optimum(Logistic(l2=l2).build((31,), 2, torch.float32, CPU), examples(x, y, 2))
    margins = (2 * y - 1) * (x @ w.numpy())
    gradient = -x.T @ ((2 * y - 1) / (1 + np.exp(margins))) / len(y) + l2 * w.numpy()
    assert w.dtype == F64
    assert np.abs(gradient).max() < 2e-13
    assert value == pytest.approx(np.mean(np.logaddexp(0, -margins)) + l2 / 2 * float(w @ w), rel=1e-13)


@pytest.mark.parametrize("seed", [174, 415, 566])
def test_where_full_newton_steps_overshoot(seed: int) -> None:
    """Data with outliers on which an undamped Newton step from zero or later makes F larger."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(4, 30)), int(rng.integers(1, 4))
    x, y = rng.standard_normal((n, d)) * np.exp(rng.standard_normal((n, 1)) * 2.5), rng.integers(0, 2, n)
    w, _ = optimum(Logistic(l2=1e-6).build((d,), 2, F64, CPU), examples(x, y, 2))
    gradient = x.T @ (expit(x @ w.numpy()) - y) / n + 1e-6 * w.numpy()
    assert np.abs(gradient).max() < 1e-13 * max(1, np.abs(x).mean(axis=0).max())


def test_separable_data_has_infimum_zero() -> None:
    """digits is separable and softmax without l2 has a flat direction: F* is 0 to rounding, and no error."""
    x, y = load_digits(return_X_y=True)
    w, value = optimum(Softmax().build((64,), 10, F64, CPU), examples(x / 16, y, 10))
    assert 0 <= value < 1e-11
    assert torch.isfinite(w).all()


def test_data_that_are_not_finite() -> None:
    x = np.array([[1.0], [np.nan]])
    with pytest.raises(ConfigError, match="the Hessian is not finite"):
        optimum(Logistic().build((1,), 2, F64, CPU), examples(x, np.array([0, 1]), 2))


def test_gradient_of_softmax_vanishes() -> None:
    x, y = load_digits(return_X_y=True)
    x, l2 = standardised(x)[:, 1:], 1e-2
    w, value = optimum(Softmax(l2=l2).build((64,), 10, F64, CPU), examples(x, y, 10))
    weights, bias = w[:640].reshape(10, 64).numpy(), w[640:].numpy()
    scores = x @ weights.T + bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    residual = (shares - np.eye(10)[y]) / len(y)
    assert np.abs(residual.T @ x + l2 * weights).max() < 2e-13
    assert np.abs(residual.sum(axis=0) + l2 * bias).max() < 2e-13
    assert value == pytest.approx(-np.mean(np.log(shares[np.arange(len(y)), y])) + l2 / 2 * float(w @ w), rel=1e-13)


def test_only_convex_tasks_of_moderate_size() -> None:
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(ConfigError, match="needs a convex task"):
        optimum(MLP().build((2,), 2, F64, CPU), examples(x, y, 2))
    with pytest.raises(ConfigError, match=r"7850 coordinates needs a Hessian of 0.5 GiB; .* up to 4096"):
        optimum(Softmax().build((784,), 10, F64, CPU), examples(np.zeros((4, 784)), y, 10))


def test_a_search_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fedsim.tasks.optimum"], "STEPS", 1)
    x, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(
        ConfigError, match=r"no minimum was found: the gradient is still .* after 1 Newton steps; set task"
    ):
        optimum(Logistic().build((31,), 2, F64, CPU), examples(standardised(x), y, 2))


def test_a_search_that_ends_close_by_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps leave a gradient of 1e-11, where F is right to its last digits."""
    x, y = load_breast_cancer(return_X_y=True)
    task, data = Logistic(l2=0.1).build((31,), 2, F64, CPU), examples(standardised(x), y, 2)
    _, value = optimum(task, data)
    monkeypatch.setattr(sys.modules["fedsim.tasks.optimum"], "STEPS", 6)
    w, near = optimum(task, data)
    rows, _ = task.gradients(w[None], full_batch(data.features, data.targets, F64))
    assert 1e-13 < float(rows.abs().amax()) < 1e-9
    assert near == pytest.approx(value, rel=1e-14)
