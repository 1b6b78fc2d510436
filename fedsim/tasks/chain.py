"""One model of common layers in a row on its way: ``fedsim.tasks.walker`` with the backward pass written by hand.

    layer       forward                 backward, of delta = dF/dy
    Linear      y = x W' + b            delta W;   dF/dW = delta' x, which is not made but added to what it changes
    Conv2d      y = W * x + b           torch's own three products, without the one for the input of the first layer
    GroupNorm   y = (x - m) r g + b     torch's own
    ReLU        y = max(x, 0), there    delta where y > 0, there
    MaxPool2d   largest of a window     delta to where it was
    Flatten     y = x, as a row         delta, as an image, with the channels of a pixel side by side if x has them so

Autograd finds the same numbers up to rounding. It makes a matrix for every dF/dW and adds that in a second pass, and it
hands the pooling a gradient in another layout, which then costs several copies: a quarter of a step of a network of two
convolutions and two linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from fedsim.tasks.walker import Walker

if TYPE_CHECKING:
    from fedsim.flat import ModuleRow
    from fedsim.tasks.stack import Head

_aten: Any = torch.ops.aten


class Product(NamedTuple):
    """left' right: the gradient of a matrix, float[S, M], not yet made. left: [B, S]; right: [B, M]."""

    left: Tensor
    right: Tensor


Slope = Tensor | Product
Back = Callable[[Tensor, bool], tuple[Tensor, list[Slope]]]
"""(delta, whether that of the input is asked for) -> (it, slope of each parameter). delta may be overwritten."""

Forward = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Back]]
"""(input, parameters) -> (output, the way back)."""


class Chain(Walker):
    """See ``fedsim.tasks.walker.Walker``. parts: (forward pass of a layer, number of its parameters), in turn."""

    def __init__(self, module: nn.Module, layout: ModuleRow, head: Head, l2: float, pixels: bool, summed: bool) -> None:
        super().__init__(module, layout, head, l2, None, pixels, summed)
        found = parts_of(module)
        assert found is not None
        self.parts = found

    def errors(
        self, features: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor | None
    ) -> tuple[list[Any], Tensor | None]:
        """(slope of each parameter, losses where ``balanced`` weights are given), without penalty."""
        x, way, first = features[0], [], 0
        for forward, count in self.parts:
            x, back = forward(x, self._values[first : first + count])
            way.append((back, first > 0))  # below the first parameter nothing is asked for
            first += count
        given, losses = x[None].clone(), None
        if balanced is None:
            delta = self.head.errors(given, answers, weights)[0]
        else:
            delta, losses = self.head.both(given, answers, weights, balanced)
            delta = delta[0]
        found: list[Slope] = []
        for back, deeper in reversed(way):
            delta, slopes = back(delta, deeper)
            found[:0] = slopes
            if len(found) == len(self._values):
                break
        return found, losses

    def descend(self, found: Sequence[Slope], eta: float, decay: float | Tensor) -> None:
        """w <- decay w - eta g."""
        beta = float(decay)
        for value, slope in zip(self._values, found, strict=True):
            if isinstance(slope, Product):
                value.addmm_(slope.left.t(), slope.right, beta=beta, alpha=-eta)
            else:
                (value if beta == 1 else value.mul_(beta)).sub_(slope, alpha=eta)

    def add(self, found: Sequence[Slope], shares: float | Tensor, first: bool) -> None:
        """total <- total + g + shares l2 w."""
        if first:
            self._sum = [slope.left.t() @ slope.right if isinstance(slope, Product) else slope for slope in found]
        else:
            for total, slope in zip(self._sum, found, strict=True):
                if isinstance(slope, Product):
                    total.addmm_(slope.left.t(), slope.right)
                else:
                    total.add_(slope)
        if self.l2:
            torch._foreach_add_(self._sum, self._values, alpha=self.l2 * float(shares))


def chained(module: nn.Module) -> bool:
    """Whether a module is such a chain: a Sequential, of Sequentials too, each layer and parameter in one place."""
    return parts_of(module) is not None


def parts_of(module: nn.Module) -> list[tuple[Forward, int]] | None:
    """(forward pass, parameters) of each layer of a chain, first to last; None for any other module."""
    layers, found, fresh = list(_layers(module)), [], False
    parameters = [p for layer in layers for p in layer._parameters.values() if p is not None]
    whole = len(parameters) == len(set(parameters)) == len(list(module.parameters()))
    if type(module) is not nn.Sequential or not whole or any(map(_hooked, module.modules())):
        return None
    for layer in layers:
        forward = _relu(fresh) if type(layer) is nn.ReLU else _forward(layer)
        if forward is None:
            return None
        # What a layer with parameters puts out is nobody else's, so that ReLU may overwrite it.
        fresh = bool(layer._parameters)
        found.append((forward, sum(p is not None for p in layer._parameters.values())))
    return found


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What a Sequential calls, in turn."""
    if type(module) is nn.Sequential:
        for part in module:
            yield from _layers(part)
    else:
        yield module


def _hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def _forward(layer: nn.Module) -> Forward | None:
    if type(layer) is nn.Linear:
        return _linear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
        return _convolution(layer)
    if type(layer) is nn.GroupNorm and layer.affine:
        return _group_norm(layer)
    if type(layer) is nn.MaxPool2d and not layer.return_indices:
        return _largest(layer)
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return _flatten
    return None


def _linear(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
    weight, *bias = parameters

    def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
        left = delta.flatten(0, -2)
        slopes: list[Slope] = [Product(left, x.flatten(0, -2)), *(left.sum(0) for _ in bias)]
        return (delta @ weight if deeper else delta), slopes

    return linear(x, weight, *bias), back


def _convolution(layer: nn.Conv2d) -> Forward:
    stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups
    assert not isinstance(padding, str)

    def forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
        weight, *bias = parameters

        def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
            asked, sizes = [deeper, True, bool(bias)], [weight.shape[0]]
            before, *slopes = _aten.convolution_backward(
                delta, x, weight, sizes, stride, padding, dilation, False, [0, 0], groups, asked
            )
            return (before if deeper else delta), slopes[: len(parameters)]

        return conv2d(x, weight, bias[0] if bias else None, stride, padding, dilation, groups), back

    return forward


def _group_norm(layer: nn.GroupNorm) -> Forward:
    groups, epsilon = layer.num_groups, layer.eps

    def forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
        samples, channels = x.shape[:2]
        shape = samples, channels, x[0, 0].numel(), groups
        y, mean, scale = _aten.native_group_norm(x, *parameters, *shape, epsilon)

        def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
            asked = [deeper, True, True]
            before, *slopes = _aten.native_group_norm_backward(delta, x, mean, scale, parameters[0], *shape, asked)
            return (before if deeper else delta), slopes

        return y, back

    return forward


def _relu(fresh: bool) -> Forward:
    """fresh: whether the input may be overwritten."""

    def forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
        y = x.relu_() if fresh else x.relu()

        def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
            return _aten.threshold_backward.grad_input(delta, y, 0, grad_input=delta), []

        return y, back

    return forward


def _largest(layer: nn.MaxPool2d) -> Forward:
    pair = nn.modules.utils._pair
    stride = layer.kernel_size if layer.stride is None else layer.stride
    shape = *map(pair, (layer.kernel_size, stride, layer.padding, layer.dilation)), layer.ceil_mode

    def forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
        y, places = _aten.max_pool2d_with_indices(x, *shape)

        def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
            return _aten.max_pool2d_with_indices_backward(delta, x, *shape, places), []

        return y, back

    return forward


def _flatten(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Back]:
    def back(delta: Tensor, deeper: bool) -> tuple[Tensor, list[Slope]]:
        pixels = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return delta.view(x.shape).contiguous(
            memory_format=torch.channels_last if pixels else torch.contiguous_format
        ), []

    return x.flatten(1), back
