"""Gradients, losses, Hessians and constants of the tasks against independent formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.data.examples import Examples
from fedsim.tasks import CNN, MLP, Batch, LeastSquares, Linear, Logistic, Softmax, SoftmaxRegression, classifier, linear
from fedsim.tasks.task import full_batch

CPU, F64 = torch.device("cpu"), torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def labels(*shape: int, classes: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, shape))


def some_weights(n: int, b: int) -> Tensor:
    weights = numbers(n, b, seed=2).abs()
    weights[0, -1] = 0.0
    return weights / weights.sum(dim=1, keepdim=True)


def naive_loss(kind: str, w: Tensor, x: Tensor, y: Tensor, weights: Tensor, l2: float) -> Tensor:
    """One client's weighted loss, written without the tricks of the library."""
    if kind == "softmax":
        c = int(w.numel() / (x.shape[1] + 1))
        scores = x @ w[: c * x.shape[1]].reshape(c, -1).T + w[c * x.shape[1] :]
        each = -torch.log(torch.exp(scores[torch.arange(len(y)), y]) / torch.exp(scores).sum(1))
    elif kind == "logistic":
        each = torch.log(1 + torch.exp(-(2.0 * y - 1) * (x @ w)))
    else:
        each = (x @ w - (2.0 * y - 1 if kind == "signed" else y)) ** 2
    return (weights * each).sum() + l2 / 2 * (w @ w)


def convex(kind: str, l2: float) -> tuple[Linear | SoftmaxRegression, Tensor]:
    """The task for 5 features and targets int64[3, 7] or float64[3, 7]."""
    if kind == "softmax":
        return Softmax(l2=l2).build((5,), 4, F64, CPU), labels(3, 7, classes=4)
    if kind == "logistic":
        return Logistic(l2=l2).build((5,), 2, F64, CPU), labels(3, 7, classes=2)
    if kind == "signed":
        return LeastSquares(l2=l2).build((5,), 2, F64, CPU), labels(3, 7, classes=2)
    return LeastSquares(l2=l2).build((5,), None, F64, CPU), numbers(3, 7, seed=3)


KINDS = ["least-squares", "signed", "logistic", "softmax"]


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_equal_autograd_of_the_naive_loss(kind: str, l2: float) -> None:
    task, targets = convex(kind, l2)
    features, weights, models = numbers(3, 7, 5), some_weights(3, 7), numbers(3, task.dim, seed=4)
    rows, losses = task.gradients(models, Batch(features, targets, weights))
    assert rows.shape == models.shape
    for i in range(3):
        w = models[i].clone().requires_grad_()
        loss = naive_loss(kind, w, features[i], targets[i], weights[i], l2)
        (expected,) = torch.autograd.grad(loss, w)
        torch.testing.assert_close(rows[i], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_is_the_second_derivative(kind: str) -> None:
    task, targets = convex(kind, 0.3)
    features, w = numbers(7, 5), numbers(task.dim, seed=4)
    weights = torch.full((7,), 1 / 7, dtype=F64)
    expected = torch.autograd.functional.hessian(lambda v: naive_loss(kind, v, features, targets[0], weights, 0.3), w)
    numeric = targets[0] if isinstance(task, SoftmaxRegression) else task.target_numbers(targets[0])
    torch.testing.assert_close(task.hessian(w, Examples(features, numeric, None)), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_accuracy_over_all_examples(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, targets = convex(kind, 0.3)
    features, w = numbers(7, 5), numbers(task.dim, seed=4)
    examples = Examples(features, targets[0], None if kind == "least-squares" else 2 + 2 * (kind == "softmax"))
    _, losses = task.gradients(w[None], full_batch(features, targets[0], F64))
    whole = task.metrics(w, examples)
    monkeypatch.setattr(linear, "PORTION", 3)
    parts = task.metrics(w, examples)
    assert whole["loss"] == task.loss(w, examples) == pytest.approx(float(losses), rel=1e-14)
    assert parts == pytest.approx(whole, rel=1e-14)
    if kind == "least-squares":
        assert whole.keys() == {"loss"}
        return
    if kind == "softmax":
        guesses = np.argmax(features.numpy() @ w[:20].reshape(4, 5).numpy().T + w[20:].numpy(), axis=1)
    else:
        guesses = (features.numpy() @ w.numpy() > 0).astype(int)
    assert whole["accuracy"] == np.mean(guesses == targets[0].numpy())


@pytest.mark.parametrize(("score", "label"), [(1e3, 1), (1e3, 0), (-1e3, 1), (-1e3, 0), (40.0, 1), (21.0, 0), (0.0, 1)])
def test_logistic_loss_keeps_its_digits_at_any_score(score: float, label: int) -> None:
    task = Logistic().build((1,), 2, F64, CPU)
    batch = full_batch(torch.tensor([[1.0]], dtype=F64), torch.tensor([label]), F64)
    rows, losses = task.gradients(torch.tensor([[score]], dtype=F64), batch)
    sign = 2 * label - 1
    margin, tail = sign * score, math.exp(-abs(score))
    assert float(losses) == pytest.approx(max(0, -margin) + math.log1p(tail), rel=1e-15)
    assert float(rows) == pytest.approx(-sign * (1 if margin < 0 else tail) / (1 + tail), rel=1e-15)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_smoothness_is_the_published_formula_and_bounds_the_hessian(kind: str, rows: int) -> None:
    task, _ = convex(kind, 0.3)
    features = numbers(rows, 5, seed=7)
    x = features.numpy() if kind != "softmax" else np.c_[features.numpy(), np.ones(rows)]
    factor = {"least-squares": 2.0, "signed": 2.0, "logistic": 0.25, "softmax": 0.5}[kind]
    targets = labels(rows, classes=2) if kind != "least-squares" else numbers(rows)
    examples = Examples(features, targets, None)
    frobenius, spectral = task.smoothness(examples, "frobenius"), task.smoothness(examples, "spectral")
    assert frobenius == pytest.approx(factor * np.linalg.norm(x.T @ x) / rows + 0.3, rel=1e-12)
    assert spectral == pytest.approx(factor * np.linalg.norm(x, 2) ** 2 / rows + 0.3, rel=1e-12)
    numeric = targets if isinstance(task, SoftmaxRegression) else task.target_numbers(targets)
    for w in (task.initial(0), numbers(task.dim, seed=8)):
        steepest = float(torch.linalg.eigvalsh(task.hessian(w, Examples(features, numeric, None)))[-1])
        assert steepest <= spectral * (1 + 1e-12) <= frobenius * (1 + 1e-12)


def test_smoothness_of_two_classes_is_attained() -> None:
    """With two equally likely classes diag p - p p' has the eigenvalue 1/2: the constant is tight."""
    task = Softmax().build((5,), 2, F64, CPU)
    examples = Examples(numbers(40, 5), labels(40, classes=2), 2)
    steepest = float(torch.linalg.eigvalsh(task.hessian(task.initial(0), examples))[-1])
    assert steepest == pytest.approx(task.smoothness(examples, "spectral"), rel=1e-12)


def test_images_are_flattened() -> None:
    task = Softmax().build((1, 4, 4), 3, F64, CPU)
    images, targets, models = numbers(2, 6, 1, 4, 4), labels(2, 6, classes=3), numbers(2, task.dim, seed=5)
    rows, losses = task.gradients(models, Batch(images, targets, some_weights(2, 6)))
    flat_rows, flat_losses = task.gradients(models, Batch(images.reshape(2, 6, 16), targets, some_weights(2, 6)))
    assert torch.equal(rows, flat_rows)
    assert torch.equal(losses, flat_losses)
    flat, image = (Examples(features[0], targets[0], 3) for features in (images.reshape(2, 6, 16), images))
    assert task.loss(models[0], image) == task.loss(models[0], flat)
    assert task.smoothness(image, "spectral") == task.smoothness(flat, "spectral")


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_a_network_without_hidden_layers_is_softmax_regression(l2: float) -> None:
    """Two implementations of one task: autograd through a module and the closed form, on the same rows."""
    network = MLP(hidden=(), l2=l2).build((5,), 4, F64, CPU)
    softmax = Softmax(l2=l2).build((5,), 4, F64, CPU)
    assert network.dim == softmax.dim
    models, batch = numbers(3, 24, seed=4), Batch(numbers(3, 7, 5), labels(3, 7, classes=4), some_weights(3, 7))
    for ours, theirs in zip(network.gradients(models, batch), softmax.gradients(models, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    examples = Examples(batch.features[0], batch.targets[0], 4)
    assert network.metrics(models[0], examples) == pytest.approx(softmax.metrics(models[0], examples), rel=1e-14)


@pytest.mark.parametrize("options", [MLP(hidden=(6,), l2=0.1), CNN(width=3, l2=0.1)], ids=["mlp", "cnn"])
def test_gradients_of_networks_equal_finite_differences(options: MLP | CNN) -> None:
    task = options.build((1, 5, 6), 3, F64, CPU)
    batch = Batch(numbers(2, 4, 1, 5, 6), labels(2, 4, classes=3), some_weights(2, 4))
    models = task.initial(0) + 0.1 * numbers(2, task.dim, seed=5)
    rows, _ = task.gradients(models, batch)
    for seed in range(5):
        direction = numbers(2, task.dim, seed=10 + seed)
        h = 1e-6
        above, below = (task.gradients(models + sign * h * direction, batch)[1] for sign in (1, -1))
        torch.testing.assert_close((above - below) / (2 * h), (rows * direction).sum(dim=1), rtol=1e-6, atol=1e-7)


def test_loss_of_a_network_over_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    task = CNN(width=2, l2=0.1).build((1, 5, 6), 3, F64, CPU)
    examples = Examples(numbers(10, 1, 5, 6), labels(10, classes=3), 3)
    model = task.initial(0)
    whole = task.metrics(model, examples)
    _, losses = task.gradients(model[None], full_batch(examples.features, examples.targets, F64))
    monkeypatch.setattr(classifier, "PORTION", 3)
    assert whole["loss"] == pytest.approx(float(losses), rel=1e-14)
    assert task.metrics(model, examples) == pytest.approx(whole, rel=1e-14)
    assert task.loss(model, examples) == pytest.approx(whole["loss"], rel=1e-14)
