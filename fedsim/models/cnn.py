"""A small network for images: two blocks of convolution, GroupNorm, ReLU and pooling, then a linear layer.

GroupNorm, because it normalises each sample by itself: nothing depends on who else is in the batch, and there are no
running statistics that would have to cross the wire.
"""

from __future__ import annotations

import math

from torch import nn

from fedsim.errors import ConfigError

GROUPS = 8


def cnn(shape: tuple[int, ...], classes: int, width: int = 32) -> nn.Module:
    """float[b, channels, height, width] -> float[b, classes]; ``width`` and then 2 ``width`` channels.

    Raises ConfigError unless the samples are images of at least 4 x 4 pixels.

    >>> sum(p.numel() for p in cnn((1, 28, 28), 10).parameters())
    50378
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ConfigError(
            f"task.kind = 'cnn' needs images [channels, height, width] of at least 4 x 4 pixels, but a sample has "
            f"shape {list(shape)}; use task.kind = 'mlp'"
        )
    channels, height, breadth = shape
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width)):
        norm = nn.GroupNorm(math.gcd(GROUPS, outputs), outputs)
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * (height // 4) * (breadth // 4), classes))
