"""The whitened gradient against training on whitened samples, and what it does to the steps a loss takes."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, unfold

import fedsim
from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.errors import ConfigError
from fedsim.randomness import Purpose, Stream
from fedsim.solvers import Local, Plan, solve
from fedsim.solvers.direction import Gradient
from fedsim.solvers.metric import metric, split
from fedsim.solvers.whitening import Whitened, recursion
from fedsim.tasks import LeastSquares, Softmax, optimum
from fedsim.tasks.classifier import Classifier, classifier
from fedsim.tasks.layer import Layer
from fedsim.tasks.task import Batch, full_batch

CPU, F64 = torch.device("cpu"), torch.float64


def convolutional() -> nn.Module:
    """A convolution with padding, stride and dilation, and a layer behind it."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=(1, 2), dilation=(1, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)
    )


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 3, bias=False), nn.Tanh(), nn.Linear(3, 4))


def world(shape: tuple[int, ...] = (2, 5, 5), n: int = 40, classes: int = 4) -> Federation:
    rng = np.random.default_rng(5)
    features = torch.from_numpy(
        rng.standard_normal((n, *shape)) * rng.uniform(0.1, 2, shape) + rng.standard_normal(shape)
    )
    targets = torch.from_numpy(rng.integers(0, classes, n))
    return federate(Dataset(Examples(features, targets, classes), None, "whitening"), torch.zeros(n, dtype=torch.int64))


def roots(covariance: Tensor) -> dict[str, Tensor]:
    """Whitening matrices T with T'T = R^-1: x~ = T (x - mu)."""
    values, vectors = torch.linalg.eigh(covariance)
    pca = torch.diag(values.rsqrt()) @ vectors.T
    return {"pca": pca, "zca": vectors @ pca, "cholesky": torch.linalg.inv(torch.linalg.cholesky(covariance))}


@pytest.mark.parametrize("route", ["cholesky", "evd"])
@pytest.mark.parametrize("kind", ["pca", "zca", "cholesky"])
@pytest.mark.parametrize("make", [convolutional, narrow])
def test_equals_training_on_whitened_samples(make: object, kind: str, route: str) -> None:
    """W~, b~ learn by autograd from samples (patches, activations) that T (x - mu) whitened: 1e-10 after six steps."""
    federation, eta, damping = world(), 0.3, 1e-3
    task: Classifier = classifier(make, (2, 5, 5), 4, 0.0, F64, CPU)  # type: ignore[arg-type]
    batch = full_batch(federation.features, federation.targets, F64)
    start = task.initial(3)[None]
    layers = task.layers
    found = task.moments(start, batch, layers)
    split_up = [split(moment, layer, damping) for moment, layer in zip(found, layers, strict=True)]
    transforms = [roots(covariance)[kind] for _, covariance in split_up]

    parameters: list[Tensor] = []
    for layer, (mean, _), transform in zip(layers, split_up, transforms, strict=True):
        weight, bias = layer.take(start)
        parameters.append((weight[0] @ torch.linalg.inv(transform)).clone().requires_grad_())
        if bias is not None:
            assert mean is not None
            parameters.append((bias[0] + weight[0] @ mean).clone().requires_grad_())

    def scores() -> Tensor:
        queue, at = list(parameters), 0
        value = federation.features
        for part in task.make():
            if isinstance(part, nn.Linear | nn.Conv2d):
                (mean, _), transform = split_up[at], transforms[at]
                weight, bias = queue.pop(0), queue.pop(0) if part.bias is not None else 0.0
                size = None
                if isinstance(part, nn.Conv2d):
                    size = part(value.to(torch.float32)).shape
                    places = unfold(
                        value, part.kernel_size, dilation=part.dilation, padding=part.padding, stride=part.stride
                    ).transpose(1, 2)
                else:
                    places = value[:, None]
                white = (places - (0.0 if mean is None else mean)) @ transform.T
                value = (white @ weight.T + bias).transpose(1, 2)
                value = value.reshape(size) if size else value[..., 0]
                at += 1
            else:
                value = part(value)
        return value

    for _ in range(6):
        grads = torch.autograd.grad(cross_entropy(scores(), federation.targets), parameters)
        parameters = [(p - eta * g).detach().requires_grad_() for p, g in zip(parameters, grads, strict=True)]

    direction = Whitened(damping=damping, refresh=100, route=route)  # type: ignore[arg-type]
    local = Local(steps=6, step=eta, send="difference")
    plan = Plan(local, eta, direction=direction)
    solution = solve(task, federation, start, torch.tensor([0]), plan, Stream(0, Purpose.BATCH))
    ended = start - solution.direction
    queue = [p.detach() for p in parameters]
    for layer, (mean, _), transform in zip(layers, split_up, transforms, strict=True):
        weight, bias = layer.take(ended)
        expected = queue.pop(0) @ transform
        torch.testing.assert_close(weight[0], expected, rtol=1e-10, atol=1e-10)
        if bias is not None:
            torch.testing.assert_close(bias[0], queue.pop(0) - expected @ mean, rtol=1e-10, atol=1e-10)
    assert float(solution.direction.abs().max()) > 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_inverse_of_the_augmented_second_moment(bias: bool) -> None:
    """[G g] inv([[R + mu mu', mu], [mu', 1]]), and the round trips between gradients, steps and whitened ones."""
    rng = np.random.default_rng(1)
    layer = Layer("l", 3, 5, 2, 20 if bias else None)
    x = torch.from_numpy(rng.standard_normal((50, 5)) + 2)
    z = torch.cat([x, torch.ones(50, 1, dtype=F64)], dim=1) if bias else x
    moment = z.T @ z / 50
    damped = moment + torch.diag(torch.tensor([1.0] * 5 + [0.0] * bias, dtype=F64)) * 0.02 * x.square().sum() / 250
    rows = torch.from_numpy(rng.standard_normal((4, 25)))
    for route in ("cholesky", "evd"):
        maps = metric([moment], [layer], 0.02, route)  # type: ignore[arg-type]
        stepped = maps.precondition(rows)
        weight, shift = layer.take(rows)
        block = weight if shift is None else torch.cat([weight, shift[:, :, None]], dim=2)
        expected = block @ torch.linalg.inv(damped)
        found, found_shift = layer.take(stepped)
        torch.testing.assert_close(found, expected[:, :, :5], rtol=1e-10, atol=1e-11)
        if found_shift is not None:
            torch.testing.assert_close(found_shift, expected[:, :, 5], rtol=1e-10, atol=1e-11)
        untouched = [0, 1, 17, 18, 19, 23, 24] + ([] if bias else [20, 21, 22])
        for mapped, back in (
            (maps.whiten(rows), maps.unwhiten),
            (maps.whiten_step(rows), maps.unwhiten_step),
            (stepped, maps.restore),
        ):
            assert torch.equal(mapped[:, untouched], rows[:, untouched])
            torch.testing.assert_close(back(mapped), rows, rtol=1e-10, atol=1e-10)
        # a step along the whitened gradient, seen in the model's coordinates
        torch.testing.assert_close(maps.unwhiten_step(maps.whiten(rows)), stepped, rtol=1e-10, atol=1e-11)
        for row in range(4):
            assert torch.equal(maps.whiten(rows[row : row + 1])[0], maps.whiten(rows)[row])


@pytest.mark.parametrize(
    "part",
    [
        nn.Conv2d(2, 1, 3, bias=False),
        nn.Conv2d(2, 1, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), bias=False),
        nn.Conv2d(2, 1, (4, 3), padding="same", dilation=(1, 2), bias=False),
        nn.Conv2d(2, 1, 2, padding="valid", bias=False),
        nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own convolution, with an even kernel
def test_moments_of_a_convolution_are_those_of_its_jacobian(part: nn.Conv2d) -> None:
    """With one output channel each output is <w, patch>, so J'J / (samples places) is the moment."""
    module = nn.Sequential(part, nn.Flatten(), nn.LazyLinear(2, bias=False))
    module(torch.zeros(1, 2, 6, 6))
    task = classifier(lambda: deepcopy(module), (2, 6, 6), 2, 0.0, F64, CPU)
    rng = np.random.default_rng(2)
    features = torch.from_numpy(rng.standard_normal((1, 7, 2, 6, 6)))
    weights = torch.from_numpy(rng.uniform(0, 1, (1, 7)))
    batch = Batch(features, torch.zeros(1, 7, dtype=torch.int64), weights)
    layer = task.layers[0]
    (found,) = task.moments(task.initial(0)[None], batch, (layer,))

    def outputs(weight: Tensor) -> Tensor:

        return functional_call(part, {"weight": weight.view(part.weight.shape)}, (features[0],)).flatten(1)

    jacobian = torch.autograd.functional.jacobian(outputs, part.weight.detach().to(F64).flatten())
    shares = weights[0] / weights.sum() / jacobian.shape[1]
    expected = torch.einsum("b,bpm,bpk->mk", shares, jacobian, jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    again = task.moments(task.initial(0)[None], batch, (layer,))
    assert torch.equal(found, again[0])  # and no hook stays behind
    assert not any(part._forward_pre_hooks for part in task.skeleton.modules())


def test_moments_of_linear_tasks_and_of_hidden_layers() -> None:
    rng = np.random.default_rng(4)
    features, weights = torch.from_numpy(rng.standard_normal((1, 9, 50))), torch.from_numpy(rng.uniform(0, 1, (1, 9)))
    batch = Batch(features, torch.zeros(1, 9, dtype=torch.int64), weights)
    shares = (weights / weights.sum())[0].numpy()
    x = features[0].numpy()
    z = np.concatenate([x, np.ones((9, 1))], axis=1)
    linear, softmax = LeastSquares().build((50,), None, F64, CPU), Softmax().build((50,), 3, F64, CPU)
    for task, inputs in ((linear, x), (softmax, z)):
        (found,) = task.moments(task.initial(0)[None], batch, task.layers)
        np.testing.assert_allclose(found.numpy(), (inputs * shares[:, None]).T @ inputs, rtol=1e-12, atol=1e-14)
    task = classifier(narrow, (50,), 4, 0.0, F64, CPU)
    model = task.initial(1)[None]
    first, second = task.moments(model, batch, task.layers)
    weight, _ = task.layers[0].take(model)
    hidden = np.tanh(x @ weight[0].numpy().T)
    z = np.concatenate([hidden, np.ones((9, 1))], axis=1)
    np.testing.assert_allclose(first.numpy(), (x * shares[:, None]).T @ x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(second.numpy(), (z * shares[:, None]).T @ z, rtol=1e-12, atol=1e-14)


def digits() -> Examples:
    x, y = load_digits(return_X_y=True)
    return Examples(torch.from_numpy(x / 16), torch.from_numpy(y), 10)


def test_the_recursion_lowers_the_condition_number_of_the_digits() -> None:
    """700 -> 203, 34 and 4.7 after 10, 50 and 200 recursions; the trace that it carries is the true one."""
    x = digits().features
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x) + 1e-3 * torch.eye(64, dtype=F64)
    transform, trace, found = torch.eye(64, dtype=F64), torch.trace(covariance), {}
    assert float(torch.linalg.cond(covariance)) == pytest.approx(700, rel=1e-3)
    largest = np.inf
    for k in range(200):
        transform, trace = recursion(transform, covariance, trace, k, 2)
        now = transform @ covariance @ transform.T
        top = float(torch.linalg.eigvalsh(now)[-1])
        assert top <= largest * (1 + 1e-12)  # only ever shrinks
        largest = top
        found[k + 1] = float(torch.linalg.cond(now))
    assert float(trace) == pytest.approx(float(torch.trace(now)), rel=1e-10)
    assert found[10] < 250
    assert found[50] < 35
    assert found[200] < 6


def gap(plan_direction: object, eta: float, steps: int = 100) -> float:
    """F - F* of softmax regression on the digits (l2 = 1e-3) after full-batch steps."""
    examples = digits()
    task = Softmax(l2=1e-3).build((64,), 10, F64, CPU)
    federation = federate(Dataset(examples, None, "digits"), torch.zeros(len(examples), dtype=torch.int64))
    plan = Plan(Local(steps=steps, step=eta, send="difference"), eta, direction=plan_direction)  # type: ignore[arg-type]
    solution = solve(task, federation, task.initial(0)[None], torch.tensor([0]), plan, Stream(0, Purpose.BATCH))
    return task.loss(-solution.direction[0], examples) - optimum(task, examples)[1]


def test_whitening_takes_fewer_steps_on_the_digits() -> None:
    """Best steps of each: 7.0e-3 for the gradient, 8.0e-4 whitened with damping 0.01, 5e-6 with 0.1 (100 steps)."""
    assert gap(Gradient(), 4.0) == pytest.approx(7.0e-3, rel=0.02)
    assert gap(Whitened(damping=0.01, refresh=1000), 4.0) == pytest.approx(8.0e-4, rel=0.02)
    assert gap(Whitened(damping=0.1, refresh=1000), 12.0) < 1e-5
    assert gap(Whitened(damping=0.1, refresh=1000), 12.0, steps=25) < gap(Gradient(), 4.0)
    assert gap(Whitened(damping=0.1, refresh=1000, route="recursive"), 4.0) < 1e-3


@pytest.mark.parametrize("route", ["cholesky", "evd"])
def test_a_damping_below_the_rounding_of_the_moments_is_refused(route: str) -> None:
    """float32 moments of small batches of digits, whose pixels are often constant: no positive definite covariance."""
    experiment = fedsim.Experiment.of(
        rounds=8,
        local={"epochs": 1, "batch": 8, "order": "reshuffle", "step": 0.01},
        direction={"kind": "whitened", "damping": 1e-7, "route": route},
        server={"step": 0.01},
    )
    with pytest.raises(ConfigError, match=r"damping = 1e-07 is too small for .* 'scores'.*; use a larger direction"):
        fedsim.run(experiment)
