"""Rows: sums that give the same bits whatever the batch, the thread count or the device, and a module as a row.

A library's ``sum`` may split its work by shape and by thread, so the sum over one row of a cohort can differ in the
last bit from the sum over that row alone. Halving uses only elementwise additions, which are exact IEEE operations
everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def tree_sum(values: Tensor, dim: int) -> Tensor:
    """Sum along ``dim`` by halving: a + b of the two halves until one is left. An empty sum is zero.

    >>> import torch
    >>> tree_sum(torch.arange(10.0).reshape(2, 5), dim=1)
    tensor([10., 35.])
    """
    if values.ndim == 1 and len(values) and values.device.type == "cpu" and type(values) is Tensor:
        return torch.from_numpy(_halved(values.numpy()))[0]
    values = values.movedim(dim, 0)
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    while (length := values.shape[0]) > 1:
        half = length // 2
        folded = values[:half] + values[half : 2 * half]
        if length % 2:
            folded[0] += values[-1]
        values = folded
    return values[0]


def _halved(values: NDArray[Any]) -> NDArray[Any]:
    """``tree_sum`` of a few numbers, [n] -> [1]: the same additions, without what a call of torch costs."""
    while (length := len(values)) > 1:
        half = length // 2
        folded = values[:half] + values[half : 2 * half]
        if length % 2:
            folded[0] += values[-1]
        values = folded
    return values


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """Where each parameter of a torch module lies in one row, in the order of ``named_parameters``.

    names, shapes: one for each parameter. offsets: first coordinate of each, and the total last (one more than names).

    >>> from torch import nn
    >>> layout = ModuleRow.of(nn.Linear(3, 2))
    >>> layout.names, layout.offsets
    (('weight', 'bias'), (0, 6, 8))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]

    @staticmethod
    def of(module: nn.Module) -> ModuleRow:
        """The layout of a module. A parameter that is shared appears once, under its first name."""
        named = dict(module.named_parameters())
        sizes = [parameter.numel() for parameter in named.values()]
        return ModuleRow(
            names=tuple(named),
            shapes=tuple(tuple(parameter.shape) for parameter in named.values()),
            offsets=(0, *accumulate(sizes)),
        )

    @property
    def dim(self) -> int:
        """Number of coordinates of the row."""
        return self.offsets[-1]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors of the layout's shapes -> one row, float[d]; the inverse of ``views``."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """float[d] -> the named parameters, as views of the row: nothing is copied."""
        parts = zip(self.names, self.shapes, self.offsets[:-1], self.offsets[1:], strict=True)
        return {name: row[start:stop].view(shape) for name, shape, start, stop in parts}

    def blocks(self, rows: Tensor) -> list[Tensor]:
        """float[n, d] -> each parameter of n models, [n, *shape], in the order of ``names``; views as well."""
        parts = zip(self.shapes, self.offsets[:-1], self.offsets[1:], strict=True)
        return [rows[:, start:stop].view(-1, *shape) for shape, start, stop in parts]
