"""The network of MCM's Fashion-MNIST experiment, and one that a core trains ten times as fast."""

from __future__ import annotations

from torch import nn


def published(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions and two linear layers, as far as the published bits tell.

    300 epochs of plain SGD were counted as 1.62e11 bits: 20 workers, both ways, 32 bits a number, one round an epoch,
    which makes 421,875 numbers to the three digits given. This network has 421,642.

    >>> sum(p.numel() for p in published((1, 28, 28), 10).parameters())
    421642
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def small(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions with strides for pooling and norms, which learn in few steps, and a linear layer.

    >>> sum(p.numel() for p in small((1, 28, 28), 10).parameters())
    20842
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=5, padding=2, stride=2),
        nn.GroupNorm(8, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1, stride=2),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * ((height + 3) // 4) * ((width + 3) // 4), classes),
    )
