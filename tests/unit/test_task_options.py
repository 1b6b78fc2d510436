"""From options to a task: what is refused, and what the messages say."""

from __future__ import annotations

import pickle

import msgspec
import pytest
import torch
from torch import nn

from fedsim.data.examples import Examples
from fedsim.errors import ConfigError
from fedsim.tasks import CNN, MLP, Batch, LeastSquares, Logistic, Module, Softmax, TaskOptions

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64


def two_layers(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 3), nn.Tanh(), nn.Linear(3, classes))


def no_module(shape: tuple[int, ...], classes: int) -> str:
    return "a string"


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        (
            Logistic(),
            10,
            "'logistic' needs data with 2 classes, but the data has 10 classes; use task.kind = 'softmax'",
        ),
        (Logistic(), None, "has numbers to predict; use task.kind = 'least-squares'"),
        (Logistic(), 1, "has 1 class; use data with more classes"),
        (Softmax(), None, "'softmax' needs data with at least 2 classes, but the data has numbers to predict; use"),
        (Softmax(), 1, "has 1 class; use data with more classes"),
        (
            LeastSquares(),
            10,
            "needs numbers to predict or 2 classes, but the data has 10 classes; use task.kind = 'soft",
        ),
        (LeastSquares(), 1, "has 1 class; use data with more classes"),
        (MLP(), None, "task.kind = 'mlp' needs classes, but the data has numbers to predict; use 'least-squares'"),
        (CNN(), None, "task.kind = 'cnn' needs classes"),
        (Module("a:b"), None, "task.kind = 'module' needs classes"),
        (
            CNN(),
            10,
            r"'cnn' needs images \[channels, height, width\] .* but a sample has shape \[5\]; use task.kind = 'mlp'",
        ),
    ],
)
def test_impossible_combinations(options: TaskOptions, classes: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        options.build((5,), classes, F32, CPU)
    assert "\n" not in str(caught.value)


def test_images_can_be_too_small() -> None:
    with pytest.raises(ConfigError, match=r"at least 4 x 4 pixels, but a sample has shape \[1, 3, 28\]"):
        CNN().build((1, 3, 28), 10, F32, CPU)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("models", "expected 'package.module:function', for example"),
        (":f", "expected 'package.module:function'"),
        ("models:", "expected 'package.module:function'"),
        ("no_such_package.models:f", "cannot import 'no_such_package.models' .*; install it or set PYTHONPATH"),
        ("math:no_such_function", "module 'math' has no function 'no_such_function'; check the name"),
        ("math:pi", "module 'math' has no function 'pi'"),
        (f"{__name__}:no_module", "returned str, expected a torch.nn.Module"),
    ],
)
def test_factories_that_cannot_be_used(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Module(factory).build((5,), 3, F32, CPU)


def test_tasks_travel_to_other_processes() -> None:
    """Workers receive a task by pickle."""
    for options in (Softmax(), MLP(), Module(f"{two_layers.__module__}:two_layers")):
        task = options.build((5,), 3, F32, CPU)
        x, y = torch.ones(1, 2, 5), torch.tensor([[0, 1]])
        batch = Batch(x, y, torch.full((1, 2), 0.5))
        models = task.initial(1)[None]
        there = pickle.loads(pickle.dumps(task))
        assert torch.equal(there.initial(1), task.initial(1))
        assert torch.equal(there.gradients(models, batch)[0], task.gradients(models, batch)[0])


def test_a_users_module_is_a_task() -> None:
    task = Module(f"{__name__}:two_layers", l2=0.5).build((5,), 4, F64, CPU)
    assert task.dim == 5 * 3 + 3 + 3 * 4 + 4
    assert task.initial(0).dtype == F64
    model, x, y = task.initial(3), torch.ones(2, 5, dtype=F64), torch.tensor([1, 3])
    module = two_layers((5,), 4).to(F64)
    nn.utils.vector_to_parameters(model, module.parameters())
    expected = nn.functional.cross_entropy(module(x), y) + 0.25 * model @ model
    assert task.loss(model, Examples(x, y, 4)) == pytest.approx(float(expected.detach()), rel=1e-14)


@pytest.mark.parametrize("norm", ["spectral", "frobenius"])
def test_a_network_has_no_smoothness(norm: str) -> None:
    task = MLP().build((5,), 3, F32, CPU)
    with pytest.raises(ConfigError, match=r"a step such as '4/L' or 'theory' needs a convex task, .* give a number"):
        task.smoothness(Examples(torch.ones(2, 5), torch.tensor([0, 1]), 3), norm)  # type: ignore[arg-type]
    for constant in (task.sample_smoothness, task.convexity):
        with pytest.raises(ConfigError, match="needs a convex task"):
            constant(Examples(torch.ones(2, 5), torch.tensor([0, 1]), 3))


def test_convex_tasks_start_at_zero() -> None:
    assert torch.equal(LeastSquares().build((2, 3), None, F64, CPU).initial(7), torch.zeros(6, dtype=F64))
    assert torch.equal(Softmax().build((2, 3), 4, F32, CPU).initial(7), torch.zeros(28))


@pytest.mark.parametrize("options", [MLP(hidden=(7,)), CNN(width=4)], ids=["mlp", "cnn"])
def test_initial_models_depend_on_the_seed_alone(options: MLP | CNN) -> None:
    before = torch.get_rng_state()
    task = options.build((1, 4, 4), 3, F32, CPU)
    first = task.initial(2**63 - 1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(options.build((1, 4, 4), 3, F32, CPU).initial(2**63 - 1), first)
    assert not torch.equal(task.initial(1), first)
    assert torch.equal(options.build((1, 4, 4), 3, F64, CPU).initial(1), task.initial(1).to(F64))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ('{"kind": "least-squares", "l2": 0.5}', LeastSquares(l2=0.5)),
        ('{"kind": "logistic"}', Logistic()),
        ('{"kind": "softmax"}', Softmax()),
        ('{"kind": "mlp", "hidden": [64, 32]}', MLP(hidden=(64, 32))),
        ('{"kind": "cnn", "width": 8}', CNN(width=8)),
        ('{"kind": "module", "factory": "a.b:c"}', Module("a.b:c")),
    ],
)
def test_options_are_told_apart_by_kind(text: str, options: TaskOptions) -> None:
    assert msgspec.json.decode(text, type=TaskOptions) == options


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "softmax", "l2": -1.0}',
        '{"kind": "softmax", "hidden": [3]}',
        '{"kind": "mlp", "hidden": [0]}',
        '{"kind": "cnn", "width": 0}',
        '{"kind": "module"}',
        '{"kind": "perceptron"}',
    ],
)
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=TaskOptions)
