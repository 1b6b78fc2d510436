"""Models of many clients side by side: linear layers with ReLU between them, with the gradient written by hand.

    symbol   here      meaning, at layer l of client i
    W, b     weights   [c, S, M] and [c, 1, S]: one block of memory for each layer, a client after the other
    x        inputs    [a, B, M]: what goes into the layer; the features into the first, ReLU of scores into the others
    s        scores    x W' + b
    delta    errors    dF/ds, [a, B, S]:   at the last layer from the head,   before it   (delta W) * [x > 0]
                       dF/dW = delta' x,   dF/db = sum of delta over the samples

Autograd over batched products makes a graph, a gradient row and a step row in every step; here the product delta' x is
added straight to what it changes. The heads give F and dF/ds: softmax (p - one-hot) or one number a sample.

Where the a clients that still have a batch are the first of c, everything works on that prefix, without copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from fedsim.tasks.layer import Layer

_masked: Any = torch.ops.aten.threshold_backward
"""(delta, x, 0) -> delta where x > 0, else 0, in one pass."""


VECTOR = 16
"""Classes from which torch's own softmax is the quickest: below, it goes through the scores one by one."""


class Head(Protocol):
    """What comes after the last layer."""

    def answers(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets [..., B] as numbers beside the scores, [..., B, S]."""
        ...

    def errors(self, scores: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
        """weights * d loss / d scores, [a, B, S]; ``scores`` may be overwritten. weights: [a, B, 1]."""
        ...

    def both(self, scores: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor) -> tuple[Tensor, Tensor]:
        """(``errors``, losses summed over the samples with the weights ``balanced``, [a]), as above."""
        ...


class ScalarLoss(Protocol):
    """A loss of one score: see ``fedsim.tasks.linear``."""

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Elementwise loss."""
        ...

    def slopes(self, scores: Tensor, targets: Tensor) -> Tensor:
        """First derivative in the score."""
        ...


@dataclass(frozen=True, slots=True)
class Classes:
    """Cross-entropy of ``count`` scores."""

    count: int

    def answers(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """One-hot."""
        return (targets[..., None] == torch.arange(self.count, device=targets.device)).to(dtype)

    def errors(self, scores: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
        """weights (p - one-hot)."""
        if self.count >= VECTOR:
            return torch.softmax(scores, dim=2).sub_(answers).mul_(weights)
        powers = scores.sub_(scores.amax(dim=2, keepdim=True)).exp_()
        return powers.div_(powers.sum(dim=2, keepdim=True)).sub_(answers).mul_(weights)

    def both(self, scores: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor) -> tuple[Tensor, Tensor]:
        """And - sum of weights ln p of the right class."""
        if self.count >= VECTOR:
            logs = log_softmax(scores, dim=2)
        else:
            logs = scores.sub_(scores.amax(dim=2, keepdim=True))
            logs = logs - logs.exp().sum(dim=2, keepdim=True).log_()
        losses = (logs * answers).mul_(balanced).sum(dim=(1, 2)).neg_()
        return logs.exp_().sub_(answers).mul_(weights), losses


@dataclass(frozen=True, slots=True)
class Number:
    """A loss of one score. signed: targets are the classes 0 and 1, meaning -1 and +1."""

    loss: ScalarLoss
    signed: bool

    def answers(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers."""
        return ((2 * targets - 1) if self.signed else targets).to(dtype)[..., None]

    def errors(self, scores: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
        """weights times the slope."""
        return self.loss.slopes(scores, answers).mul_(weights)

    def both(self, scores: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor) -> tuple[Tensor, Tensor]:
        """And the sum of weights times the loss."""
        losses = (self.loss.losses(scores, answers) * balanced).sum(dim=(1, 2))
        return self.errors(scores, answers, weights), losses


@dataclass(frozen=True, slots=True)
class Stack:
    """What a task with such a gradient is made of. layers: first to last, of a row of dim coordinates; l2: of F."""

    layers: tuple[Layer, ...]
    head: Head
    l2: float

    def gradients(self, rows: Tensor, features: Tensor, answers: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient rows float[a, d], losses float[a]) at rows float[a, d]. weights: [a, B, 1]; may be of any sum."""
        parts = [layer.take(rows) for layer in self.layers]
        inputs, scores = _forward(((w, None if b is None else b[:, None]) for w, b in parts), features)
        last, losses = self.head.both(scores, answers, weights, weights)
        errors = _backward([w for w, _ in parts], inputs, last)
        found = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for layer, x, delta in zip(self.layers, inputs, errors, strict=True):
            bias = None if layer.bias is None else delta.sum(dim=1)
            layer.put(found, torch.bmm(delta.transpose(1, 2), x), bias)
        return (found.add_(rows, alpha=self.l2) if self.l2 else found), losses + self.penalty(rows)

    def penalty(self, rows: Tensor) -> Tensor | float:
        """l2/2 ||w||^2 of each row, [a]; 0.0 without."""
        return penalties(rows, self.l2)


def penalties(rows: Tensor, l2: float) -> Tensor | float:
    """l2/2 ||w||^2 of each row, [a]; 0.0 without."""
    return l2 / 2 * (rows * rows).sum(dim=1) if l2 else 0.0


@dataclass(slots=True)
class Blocks:
    """One number for each coordinate of c models, layer by layer: [c, S, M] and [c, 1, S] or None."""

    weights: list[Tensor]
    biases: list[Tensor | None]

    @staticmethod
    def empty(stack: Stack, count: int, like: Tensor) -> Blocks:
        """Room for ``count`` models."""
        return Blocks(
            [like.new_empty((count, layer.outputs, layer.inputs)) for layer in stack.layers],
            [None if layer.bias is None else like.new_empty((count, 1, layer.outputs)) for layer in stack.layers],
        )

    @staticmethod
    def views(stack: Stack, rows: Tensor) -> Blocks:
        """The same coordinates where they lie in rows, float[c, d]; nothing is copied."""
        parts = [layer.take(rows) for layer in stack.layers]
        return Blocks([w for w, _ in parts], [None if b is None else b[:, None] for _, b in parts])

    def prefix(self, count: int) -> Blocks:
        """Those of the first ``count`` models."""
        return Blocks([w[:count] for w in self.weights], [None if b is None else b[:count] for b in self.biases])

    def all(self) -> list[Tensor]:
        """Every block."""
        return [*self.weights, *(b for b in self.biases if b is not None)]


Found = tuple[list[Tensor], list[Tensor]]
"""(inputs, errors) of each layer."""


class Moving(Protocol):
    """Models on their way from ``load`` to ``write``: those of a ``Stack`` together, or one of any module."""

    summed: bool
    head: Head
    l2: float

    @property
    def room(self) -> int:
        """Models that there is room for."""
        ...

    def prepared(self, features: Tensor) -> Tensor:
        """[R, *shape] as ``errors`` takes them, [a, B, ...] then."""
        ...

    def load(self, rows: Tensor) -> None:
        """Begin at rows, float[c, d], which must stay as they are until ``write``."""
        ...

    def keep(self, count: int) -> None:
        """Only the first ``count`` go on."""
        ...

    def errors(
        self, features: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        """(what ``descend`` and ``add`` take, losses where ``balanced`` weights are given, without penalty)."""
        ...

    def descend(self, found: Any, eta: float, decay: float | Tensor) -> None:
        """w <- decay w - eta g. decay: 1 - eta l2; a tensor [a, 1, 1] if they differ."""
        ...

    def add(self, found: Any, shares: float | Tensor, first: bool) -> None:
        """total <- total + g + shares l2 w."""
        ...

    def follow(self, count: int, unit: float | Tensor) -> None:
        """w <- w_0 - unit total for the first ``count``. unit: [count, 1, 1] where they differ."""
        ...

    def write(self, rows: Tensor, first: int) -> None:
        """The sum, or w_0 - w_H where there is none, of model ``first`` and those after it, into rows, float[k, d]."""
        ...


@dataclass(slots=True)
class Walkers:
    """c models on their way, from ``load`` to ``write``. ``clients`` says how many are still going.

    Either each step moves the models themselves (``descend``), or the gradients are summed and the models follow from
    the sum (``add`` and ``follow``): then what is sent is a sum of gradients, in which nothing cancels.
    """

    stack: Stack
    models: Blocks
    total: Blocks | None
    summed: bool
    head: Head
    l2: float
    _start: Blocks = field(init=False)
    _moved: bool = field(init=False)
    _now: Blocks = field(init=False)
    _sum: Blocks | None = field(init=False)

    @staticmethod
    def of(stack: Stack, count: int, summed: bool, like: Tensor) -> Walkers:
        """For up to ``count`` models at once. summed: whether gradients are summed."""
        total = Blocks.empty(stack, count, like) if summed else None
        return Walkers(stack, Blocks.empty(stack, count, like), total, summed, stack.head, stack.l2)

    @property
    def room(self) -> int:
        """Models that there is room for."""
        return self.models.weights[0].shape[0]

    def prepared(self, features: Tensor) -> Tensor:
        """[R, M]."""
        return features.flatten(1)

    def load(self, rows: Tensor) -> None:
        """Begin at rows, float[c, d], which must stay as they are until ``write``."""
        self._start, self._moved = Blocks.views(self.stack, rows), False
        self.keep(rows.shape[0])

    def keep(self, count: int) -> None:
        """Only the first ``count`` go on."""
        # Until the first step the models are where they began, which often is one place for all of them.
        self._now = (self.models if self._moved else self._start).prefix(count)
        self._sum = None if self.total is None else self.total.prefix(count)

    def errors(
        self, features: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor | None
    ) -> tuple[Found, Tensor | None]:
        """((inputs, errors) of each layer, losses where ``balanced`` weights are given, without penalty)."""
        now = self._now
        inputs, scores = _forward(zip(now.weights, now.biases, strict=True), features)
        if balanced is None:
            return (inputs, _backward(now.weights, inputs, self.head.errors(scores, answers, weights))), None
        last, losses = self.head.both(scores, answers, weights, balanced)
        return (inputs, _backward(now.weights, inputs, last)), losses

    def descend(self, found: Found, eta: float, decay: float | Tensor) -> None:
        """w <- decay w - eta g, gradient and step in one product. decay: 1 - eta l2; a tensor [a, 1, 1] if they differ.

        Where each client has its own eta, it is in the weights, and ``eta`` is 1.
        """
        before, self._moved = self._now, True
        self.keep(before.weights[0].shape[0])
        after, each = self._now, isinstance(decay, Tensor)
        beta = 1.0 if isinstance(decay, Tensor) else decay
        for i, (x, delta) in enumerate(zip(*found, strict=True)):
            w = before.weights[i] * decay if each else before.weights[i]
            torch.baddbmm(w, delta.transpose(1, 2), x, beta=beta, alpha=-eta, out=after.weights[i])
            bias, moved = before.biases[i], after.biases[i]
            if bias is not None and moved is not None:
                bias = bias * decay if each or beta != 1 else bias
                torch.sub(bias, delta.sum(dim=1, keepdim=True), alpha=eta, out=moved)

    def add(self, found: Found, shares: float | Tensor, first: bool) -> None:
        """total <- total + g + shares l2 w. The shares of g are in the weights: [a, 1, 1] where they differ."""
        assert self._sum is not None
        parts = zip(self._sum.weights, self._sum.biases, *found, strict=True)
        for w, b, x, delta in parts:
            if first:
                torch.bmm(delta.transpose(1, 2), x, out=w)
            else:
                w.baddbmm_(delta.transpose(1, 2), x)
            if b is not None:
                slope = delta.sum(dim=1, keepdim=True)
                b.copy_(slope) if first else b.add_(slope)
        if self.l2:
            for total, model in zip(self._sum.all(), self._now.all(), strict=True):
                total.add_(model * shares, alpha=self.l2)

    def follow(self, count: int, unit: float | Tensor) -> None:
        """w <- w_0 - unit total for the first ``count``. unit: [count, 1, 1] where they differ."""
        assert self._sum is not None
        self._moved = True
        self.keep(count)
        start = self._start.prefix(count)
        for mine, origin, total in zip(self._now.all(), start.all(), self._sum.all(), strict=True):
            if isinstance(unit, Tensor):
                torch.addcmul(origin, total, unit, value=-1, out=mine)
            else:
                torch.sub(origin, total, alpha=unit, out=mine)

    def write(self, rows: Tensor, first: int) -> None:
        """The sum, or w_0 - w_H where there is none, of model ``first`` and those after it, into rows, float[k, d]."""
        some = slice(first, first + rows.shape[0])
        start, models = self._start.all(), self.models.all()
        summed = None if self.total is None else self.total.all()
        for i, target in enumerate(Blocks.views(self.stack, rows).all()):
            if summed is not None:
                target.copy_(summed[i][some])
            else:
                torch.sub(start[i][some], models[i][some], out=target)


def _forward(parts: Iterable[tuple[Tensor, Tensor | None]], features: Tensor) -> tuple[list[Tensor], Tensor]:
    """(what goes into each layer, scores)."""
    inputs: list[Tensor] = []
    x = features
    for weight, bias in parts:
        if inputs:
            x = x.relu_()
        inputs.append(x)
        if weight.stride(0) == 0:  # one model for all: one product
            x = linear(x, weight[0], None if bias is None else bias[0, 0])
            continue
        turned = weight.transpose(1, 2)
        x = torch.bmm(x, turned) if bias is None else torch.baddbmm(bias, x, turned)
    return inputs, x


def _backward(weights: Sequence[Tensor], inputs: Sequence[Tensor], delta: Tensor) -> list[Tensor]:
    """dF/ds of each layer, first to last, from that of the last."""
    errors = [delta]
    for weight, x in zip(reversed(weights[1:]), reversed(inputs[1:]), strict=True):
        errors.append(_masked(torch.bmm(errors[-1], weight), x, 0))
    return errors[::-1]


def stack_of(module: nn.Module, layers: dict[str, Layer], classes: int, l2: float) -> Stack | None:
    """The stack of a module that is nothing but an optional Flatten and Linear layers with ReLU between them.

    layers: of the module, by name. None for any other module, whose gradients autograd finds.
    """
    if type(module) is not nn.Sequential:
        return None
    parts = list(module._modules.items())  # named_children would leave out a part that is there twice
    if parts and type(parts[0][1]) is nn.Flatten and (parts[0][1].start_dim, parts[0][1].end_dim) == (1, -1):
        parts = parts[1:]
    kinds = [type(part) for _, part in parts]
    expected = [nn.Linear if i % 2 == 0 else nn.ReLU for i in range(len(kinds))]
    linear = [name for name, part in parts if type(part) is nn.Linear]
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    if kinds != expected or len(kinds) % 2 == 0 or hooked or any(name not in layers for name in linear):
        return None
    return Stack(tuple(layers[name] for name in linear), Classes(classes), l2)
