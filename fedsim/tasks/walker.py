"""One model of any module on its way: what ``fedsim.tasks.stack`` does for many, with the gradient found by autograd.

The module's own parameters are the leaves, each in memory of its own: they are loaded from a row, moved in place, and
read once at the end, so that no step makes a row. dF/ds of the scores comes from the same head as in a stack, and
autograd begins there.

On a CPU a module with convolutions goes through with the channels of a pixel side by side, if it can: ``takes_pixels``.
Its pooling is ten times as fast, its convolutions somewhat, and nothing but rounding changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.flat import ModuleRow
from fedsim.tasks.stack import Head

if TYPE_CHECKING:
    from collections.abc import Callable

    Found = list[Tensor]


class Walker:
    """One model from ``load`` to ``write``: see ``fedsim.tasks.stack.Moving``. summed: whether gradients are summed.

    module: with parameters that are overwritten; layout: of its row; compute: of the forward pass, None: as the rows;
    pixels: whether channels lie side by side.
    """

    room = 1

    def __init__(
        self,
        module: nn.Module,
        layout: ModuleRow,
        head: Head,
        l2: float,
        compute: torch.dtype | None,
        pixels: bool,
        summed: bool,
    ) -> None:
        self.module, self.layout, self.head, self.l2, self.summed = module, layout, head, l2, summed
        self.compute, self.pixels = compute, pixels
        self._leaves = list(module.parameters())
        if pixels:
            for leaf in self._leaves:
                leaf.data = by_pixel(leaf.data)
        self._values = [leaf.detach() for leaf in self._leaves]
        self._start: list[Tensor] = []
        self._sum: list[Tensor] = []

    def prepared(self, features: Tensor) -> Tensor:
        """[R, *shape] as the module takes them."""
        return by_pixel(features) if self.pixels else features

    def load(self, rows: Tensor) -> None:
        """Begin at a row, float[1, d], which must stay as it is until ``write``."""
        self._start = list(self.layout.views(rows[0]).values())
        torch._foreach_copy_(self._values, self._start)

    def keep(self, count: int) -> None:
        """The only one goes on."""

    def errors(
        self, features: Tensor, answers: Tensor, weights: Tensor, balanced: Tensor | None
    ) -> tuple[Found, Tensor | None]:
        """(gradient of each parameter, losses where ``balanced`` weights are given), without penalty."""
        with torch.enable_grad():
            scores = forward(self.module, features[0], self.compute)
        # A copy: the head may overwrite it, and backward may need it.
        given, losses = scores.detach()[None].clone(), None
        if balanced is None:
            delta = self.head.errors(given, answers, weights)
        else:
            delta, losses = self.head.both(given, answers, weights, balanced)
        return list(torch.autograd.grad(product(scores, delta[0]), self._leaves, materialize_grads=True)), losses

    def descend(self, found: Found, eta: float, decay: float | Tensor) -> None:
        """w <- decay w - eta g."""
        if not isinstance(decay, float) or decay != 1:
            torch._foreach_mul_(self._values, float(decay))
        torch._foreach_add_(self._values, found, alpha=-eta)

    def add(self, found: Found, shares: float | Tensor, first: bool) -> None:
        """total <- total + g + shares l2 w."""
        if first:
            self._sum = found
        else:
            torch._foreach_add_(self._sum, found)
        if self.l2:
            torch._foreach_add_(self._sum, self._values, alpha=self.l2 * float(shares))

    def follow(self, count: int, unit: float | Tensor) -> None:
        """w <- w_0 - unit total."""
        torch._foreach_copy_(self._values, self._start)
        torch._foreach_add_(self._values, self._sum, alpha=-float(unit))

    def write(self, rows: Tensor, first: int) -> None:
        """The sum, or w_0 - w_H where there is none, into a row, float[1, d]."""
        views = list(self.layout.views(rows[0]).values())
        if self.summed:
            torch._foreach_copy_(views, self._sum)
            return
        for view, start, value in zip(views, self._start, self._values, strict=True):
            torch.sub(start, value, out=view)


def forward(module: Callable[[Tensor], Tensor], features: Tensor, compute: torch.dtype | None) -> Tensor:
    """Scores, float[b, S] in the type of the features; products and convolutions in ``compute`` where it is given."""
    if compute is None:
        return module(features)
    with torch.autocast(features.device.type, compute):
        scores = module(features)
    return scores.to(features.dtype)


def product(scores: Tensor, delta: Tensor) -> Tensor:
    """A number whose gradient in the scores is delta, to the bit."""
    # Not grad(scores, ..., delta): given a delta, torch imports a computer algebra system to compare two shapes.
    with torch.enable_grad():
        return (scores * delta).sum()


def by_pixel(tensor: Tensor) -> Tensor:
    """The same numbers with the channels of a pixel side by side, where there are channels and pixels."""
    # Not contiguous(...), which leaves strides as they are where there is one channel: what follows goes by them.
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def takes_pixels(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether a module on the CPU has convolutions, and runs with the channels of each pixel side by side."""
    convolves = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    if device.type != "cpu" or len(shape) != 3 or not convolves:
        return False
    parameters = {name: by_pixel(parameter.detach()) for name, parameter in module.named_parameters()}
    samples = by_pixel(torch.zeros(2, *shape, dtype=next(module.parameters()).dtype))
    try:
        with torch.no_grad():
            functional_call(module, parameters, (samples,))
    except RuntimeError:  # such as x.view(len(x), -1), which is possible for one layout alone
        return False
    return True
