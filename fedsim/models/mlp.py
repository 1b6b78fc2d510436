"""A multilayer perceptron: flatten, then linear layers with ReLU between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (128,)) -> nn.Module:
    """float[b, *shape] -> float[b, classes] through layers of the given widths; none: softmax regression.

    >>> sum(p.numel() for p in mlp((1, 28, 28), 10).parameters())
    101770
    """
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
