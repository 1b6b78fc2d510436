"""Modules that cannot be a row are refused with the layer's name and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import ConfigError
from fedsim.models import check_module, cnn, mlp
from fedsim.tasks.classifier import classifier
from fedsim.tasks.task import full_batch


class Calling(nn.Module):
    """A linear layer with something else after it."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.layer = layer or nn.Identity()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.linear(x))  # type: ignore[no-any-return]


class FunctionalDropout(Calling):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.5, self.training)


class Counting(Calling):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


class Centred(Calling):
    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores - scores.mean(dim=0)


class Pair(Calling):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class Failing(Calling):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError


class Recurrent(Calling):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 3, num_layers=2, dropout=0.25)


def frozen() -> nn.Module:
    module = Calling()
    module.linear.bias.requires_grad_(False)
    return module


def complex_parameter() -> nn.Module:
    module = Calling()
    module.twist = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Calling(nn.BatchNorm1d(3)), r"layer 'layer' \(BatchNorm1d\) keeps running statistics .*; use nn.GroupNorm"),
        (
            Calling(nn.BatchNorm1d(3, track_running_stats=False)),
            r"layer 'layer' \(BatchNorm1d\) .* mixes the samples of a batch; use nn.GroupNorm",
        ),
        (Calling(nn.InstanceNorm1d(3, track_running_stats=True)), r"'layer' \(InstanceNorm1d\) .* use nn.GroupNorm"),
        (Calling(nn.Dropout(0.1)), r"layer 'layer' \(Dropout\) draws random numbers in training"),
        (Calling(nn.AlphaDropout(0.1)), r"layer 'layer' \(AlphaDropout\) draws random"),
        (Calling(nn.RReLU()), r"layer 'layer' \(RReLU\) draws random"),
        (Recurrent(), r"layer 'memory' \(LSTM\) draws random"),
        (nn.MultiheadAttention(4, 2, dropout=0.5), r"layer 'itself' \(MultiheadAttention\) draws random"),
        (FunctionalDropout(), "FunctionalDropout draws random numbers in training, .* take dropout out"),
        (Counting(), "training changes buffer 'seen' of Counting; use nn.GroupNorm"),
        (Centred(), "Centred lets the samples of a batch influence each other; use nn.GroupNorm"),
        (frozen(), "parameter 'linear.bias' is frozen, but a module is trained whole; make it a buffer"),
        (complex_parameter(), "parameter 'twist' is torch.complex64, but a row holds real numbers"),
        (nn.Identity(), "Identity has no parameters, so there is nothing to learn"),
        (nn.LazyLinear(3), "parameter 'weight' is lazy, so the model has no size yet"),
        (nn.Linear(5, 3), r"Linear does not take samples of shape \[4\]: mat1 and mat2 shapes cannot be multiplied"),
        (Failing(), r"Failing does not take samples of shape \[4\]: ValueError"),
        (nn.Linear(4, 2), r"Linear returned \[2, 2\] for 2 samples of shape \[4\], expected \[2, 3\] scores"),
        (Pair(), r"Pair returned tuple for 2 samples"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refused(module: nn.Module, message: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=message) as caught:
        check_module(module, (4,), 3)
    assert "\n" not in str(caught.value)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "module",
    [
        Calling(),
        Calling(nn.Dropout(0.0)),
        Calling(nn.GroupNorm(1, 3)),
        Calling(nn.LayerNorm(3)),
        nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(4, 3)),
        mlp((4,), 3, ()),
        mlp((4,), 3, (5, 6)),
    ],
    ids=repr,
)
def test_accepted(module: nn.Module) -> None:
    module.train(False)
    before = torch.get_rng_state()
    check_module(module, (4,), 3)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(layer.training for layer in module.modules())


@pytest.mark.parametrize("width", [1, 3, 12, 32])
def test_cnn_of_any_width(width: int) -> None:
    check_module(cnn((3, 7, 9), 5, width), (3, 7, 9), 5)


def test_a_constant_buffer_follows_the_model_and_parameters_hold_no_memory() -> None:
    """What is not a parameter must be where the rows are, in their precision."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
            self.register_buffer("order", torch.tensor([2, 1, 0]))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * self.linear(x))[:, self.order]  # type: ignore[no-any-return]

    task = classifier(Scaled, (4,), 3, 0.0, torch.float64, torch.device("cpu"))
    buffers = dict(task.skeleton.named_buffers())
    assert buffers["scale"].dtype == torch.float64
    assert buffers["order"].dtype == torch.int64
    assert all(p.device.type == "meta" for p in task.skeleton.parameters())
    batch = full_batch(torch.ones(2, 4, dtype=torch.float64), torch.tensor([0, 1]), torch.float64)
    rows, _ = task.gradients(task.initial(0)[None], batch)
    assert rows.dtype == torch.float64
    assert torch.isfinite(rows).all()


def test_a_parameter_that_is_not_used_has_gradient_zero() -> None:
    class Spare(Calling):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))

    task = classifier(Spare, (4,), 3, 0.0, torch.float32, torch.device("cpu"))
    rows, _ = task.gradients(task.initial(0)[None], full_batch(torch.ones(2, 4), torch.tensor([0, 1]), torch.float32))
    start = task.layout.offsets[task.layout.names.index("spare")]
    assert (rows[0, start : start + 2] == 0).all()
    assert (rows[0] != 0).any()


def test_tied_weights_are_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))  # type: ignore[no-any-return]

    f64 = torch.float64
    task = classifier(Tied, (3,), 3, 0.0, f64, torch.device("cpu"))
    model = task.initial(0)
    x, y = torch.eye(3, dtype=f64), torch.tensor([0, 1, 2])
    rows, _ = task.gradients(model[None], full_batch(x, y, f64))
    w = model.reshape(3, 3).clone().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(x @ w.T @ w.T, y), w)
    torch.testing.assert_close(rows[0], expected.reshape(-1), rtol=1e-13, atol=1e-15)
