"""Models of many clients side by side, of any module: what ``fedsim.tasks.stack`` does, with the gradient by autograd.

The module runs once for all clients, under vmap, and autograd goes back through it once. It stops short at the linear
layers: the gradient of a weight is a product delta' x of what is at hand there anyway, and is added straight to what it
changes, as in a stack. So the largest part of a step makes no gradient, and the rest costs its few calls once a step,
not once a client.

    symbol   here      meaning
    x        inputs    [a, R, M]: what goes into a linear layer; R = samples, times places (such as words) in each
    delta    errors    [a, R, S]: dF/ds of what comes out

Source: Horace He and Richard Zou, torch.func (vmap); He et al., "HFTA", MLSys 2021, for models fused side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fedsim.flat import ModuleRow
from fedsim.tasks.stack import Head, Moving
from fedsim.tasks.walker import Walker, product

CLOSE = 1e-3
"""Relative distance of gradients that are equal but for rounding."""

Product = tuple[int, Tensor, Tensor]
"""(number of a parameter, delta, x): delta' x is a part of its gradient."""

Found = tuple[list[Tensor | None], list[Product]]
"""Gradients of each parameter [a, *shape], and those that are products."""


class Mapped:
    """Up to ``room`` models from ``load`` to ``write``: see ``fedsim.tasks.stack.Moving``.

    module: whose own parameters are never read; layout: of its row; summed: whether gradients are summed; like: of a
    row's type and device.
    """

    def __init__(
        self, module: nn.Module, layout: ModuleRow, head: Head, l2: float, room: int, summed: bool, like: Tensor
    ) -> None:
        self.module, self.layout, self.head, self.l2, self.room, self.summed = module, layout, head, l2, room, summed
        self._values = [like.new_empty((room, *shape)) for shape in layout.shapes]
        self._sum = [torch.empty_like(value) for value in self._values] if summed else []
        self._start: list[Tensor] = []
        self._now: list[Tensor] = []
        self._leaves: list[Tensor] = []
        numbers = {parameter: i for i, parameter in enumerate(module.parameters())}
        self._places = [
            (layer._parameters, name, numbers[parameter])
            for layer in module.modules()
            for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False)
        ]

    def prepared(self, features: Tensor) -> Tensor:
        """[R, *shape], as they are."""
        return features

    def load(self, rows: Tensor) -> None:
        """Begin at rows, float[c, d], which must stay as they are until ``write``."""
        self._start = self.layout.blocks(rows)
        self.keep(rows.shape[0])
        torch._foreach_copy_(self._now, self._start)

    def keep(self, count: int) -> None:
        """Only the first ``count`` go on."""
        self._now = [value[:count] for value in self._values]
        self._leaves = [value.detach().requires_grad_() for value in self._now]

    def errors(
        self, features: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor | None
    ) -> tuple[Found, Tensor | None]:
        """(what each parameter changes by, losses where ``balanced`` weights are given), without penalty."""
        leaves = self._leaves
        called: list[int] = []
        with torch.enable_grad():
            scores, inputs, outputs = vmap(partial(self._forward, called))(leaves, features)
        # A copy: the head may overwrite it, and backward may need it.
        given, losses = scores.detach().clone(), None
        if balanced is None:
            delta = self.head.errors(given, answers, weights)
        else:
            delta, losses = self.head.both(given, answers, weights, balanced)
        slopes = torch.autograd.grad(product(scores, delta), [*leaves, *outputs], allow_unused=True)
        ends = zip(called, slopes[len(leaves) :], inputs, strict=True)
        products = [(i, end.flatten(1, -2), x.detach().flatten(1, -2)) for i, end, x in ends if end is not None]
        return (list(slopes[: len(leaves)]), products), losses

    def descend(self, found: Found, eta: float, decay: float | Tensor) -> None:
        """w <- decay w - eta g. decay: 1 - eta l2; a tensor [a, 1, 1] if they differ."""
        if isinstance(decay, Tensor) or decay != 1:
            for value in self._now:
                value.mul_(_beside(decay, value))
        _add(self._now, found, -eta)

    def add(self, found: Found, shares: float | Tensor, first: bool) -> None:
        """total <- total + g + shares l2 w. The shares of g are in the weights: [a, 1, 1] where they differ."""
        sums = self._first(self._sum)
        if first:
            torch._foreach_zero_(sums)
        _add(sums, found, 1.0)
        if self.l2:
            for total, value in zip(sums, self._now, strict=True):
                total.add_(value * _beside(shares, value), alpha=self.l2)

    def follow(self, count: int, unit: float | Tensor) -> None:
        """w <- w_0 - unit total for the first ``count``. unit: [count, 1, 1] where they differ."""
        self.keep(count)
        for value, start, total in zip(self._now, self._first(self._start), self._first(self._sum), strict=True):
            torch.sub(start, total * _beside(unit, total), out=value)

    def write(self, rows: Tensor, first: int) -> None:
        """The sum, or w_0 - w_H where there is none, of model ``first`` and those after it, into rows, float[k, d]."""
        some, views = slice(first, first + rows.shape[0]), self.layout.blocks(rows)
        if self.summed:
            torch._foreach_copy_(views, [total[some] for total in self._sum])
            return
        for view, start, value in zip(views, self._start, self._values, strict=True):
            torch.sub(start[some], value[some], out=view)

    def _first(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Those of the models that go on."""
        count = self._now[0].shape[0]
        return [block[:count] for block in blocks]

    def _forward(self, called: list[int], leaves: list[Tensor], features: Tensor) -> tuple[Any, ...]:
        """(scores float[B, S] of one client, what goes into linear layers, what comes out), under vmap."""
        before = [parameters[name] for parameters, name, _ in self._places]
        try:
            # What functional_call does, which looks for the places anew in every step.
            for parameters, name, i in self._places:
                parameters[name] = leaves[i]  # type: ignore[assignment]
            with _Linear(leaves) as noted, _plain_attention():
                scores = self.module(features)
        finally:
            for (parameters, name, _), parameter in zip(self._places, before, strict=True):
                parameters[name] = parameter
        called[:] = noted.called
        return scores, noted.inputs, noted.scores


def maps(module: nn.Module, layout: ModuleRow, head: Head, shape: tuple[int, ...]) -> bool:
    """Whether a module on the CPU can go through ``Mapped``, and gains by it.

    False for convolutions: beside each other they are slower than one after another, on a CPU. False where vmap has no
    rule for what the module does, or where it branches on numbers. And false where the gradient of two models is not
    that of each alone: what goes into a linear layer and is changed afterwards, in place, would be noticed here.
    """
    if any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules()):
        return False
    first = layout.flatten(dict(module.named_parameters()))
    rows = torch.stack([first, first + 0.01 * torch.linspace(-1, 1, layout.dim, dtype=first.dtype)])
    features = torch.linspace(-1, 1, 4 * torch.Size(shape).numel(), dtype=first.dtype).reshape(2, 2, *shape)
    answers, weights = head.answers(torch.zeros(2, 2, dtype=torch.int64), first.dtype), rows.new_full((2, 2, 1), 0.5)
    mapped = Mapped(module, layout, head, 0.0, 2, True, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one of them says that there is no rule, so a loop is run instead
        try:
            together = _gradients(mapped, rows, features, answers, weights)
        except Exception:  # whatever a user's module and vmap say to each other
            return False
    walker = Walker(deepcopy(module), layout, head, 0.0, None, False, True)
    each = [_gradients(walker, *(part[i : i + 1] for part in (rows, features, answers, weights))) for i in (0, 1)]
    alone = torch.cat(each)
    return bool((together - alone).norm() <= CLOSE * alone.norm())


def _gradients(moving: Moving, rows: Tensor, features: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
    """Gradient rows, float[c, d]."""
    moving.load(rows)
    found, _ = moving.errors(features, answers, weights, None)
    moving.add(found, 1.0, first=True)
    out = torch.empty_like(rows)
    moving.write(out, 0)
    return out


def _beside(factor: float | Tensor, block: Tensor) -> float | Tensor:
    """[a, 1, 1] -> [a, 1, ...] for a block [a, *shape]."""
    return factor.view(-1, *[1] * (block.dim() - 1)) if isinstance(factor, Tensor) else factor


def _add(blocks: list[Tensor], found: Found, factor: float) -> None:
    """blocks <- blocks + factor gradients."""
    gradients, products = found
    for block, gradient in zip(blocks, gradients, strict=True):
        if gradient is not None:
            block.add_(gradient, alpha=factor)
    for i, delta, x in products:
        blocks[i].baddbmm_(delta.transpose(1, 2), x, alpha=factor)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention layer by layer: the fused ones have no rule for vmap, or no gradient under it."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Linear(TorchFunctionMode):
    """Notes what goes into the linear layers with a bias, and what comes out, and keeps autograd from their weights."""

    def __init__(self, leaves: list[Tensor]) -> None:
        super().__init__()
        self.numbers = {id(leaf): i for i, leaf in enumerate(leaves)}
        self.called: list[int] = []
        self.inputs: list[Tensor] = []
        self.scores: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (scaled_dot_product_attention, multi_head_attention_forward):
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
                return func(*args, **kwargs)
        # Without a bias there might be nothing behind the scores that autograd asks for, so they would not count.
        if func is linear and len(args) == 3 and id(args[1]) in self.numbers and id(args[2]) in self.numbers:
            x, weight, bias = args
            scores = func(x, weight.detach(), bias)
            self.called.append(self.numbers[id(weight)])
            self.inputs.append(x)
            self.scores.append(scores)
            return scores.clone()  # which the module may change in place
        return func(*args, **kwargs)
