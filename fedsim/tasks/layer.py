"""Linear layers inside a model's row, and the second moments of what goes into them.

    symbol   here              meaning
    W        weight            [S, M]: S outputs, M inputs; of a convolution M = channels x kernel height x kernel width
    b        bias              [S]
    x        what goes in      float[M]; a convolution sees one x for each place of its output, a patch of its input
    z        (x, 1)            with a bias; x itself without
    A        moment            E z z', float[A, A] with A = M + 1 or M: the mean over samples and places

A holds everything that whitening needs: its last column is the mean of x, and A - mean mean' its covariance. Means of
A over clients, with the clients' weights, are the A of all their samples: nothing else has to be known to pool them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from fedsim.flat import ModuleRow


@dataclass(frozen=True, slots=True)
class Layer:
    """Where a linear layer lies in a row.

    name: of the module, or of the task. outputs, inputs: S and M. weight: first coordinate of W, row by row. bias: the
    same of b, or None without one (then the features hold whatever constant there is).
    """

    name: str
    outputs: int
    inputs: int
    weight: int
    bias: int | None = None

    @property
    def width(self) -> int:
        """Coordinates of z: M + 1 with a bias, M without."""
        return self.inputs + (self.bias is not None)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """float[n, d] -> (float[n, S, M], float[n, S] or None), views."""
        block = rows[:, self.weight : self.weight + self.outputs * self.inputs]
        weight = block.reshape(-1, self.outputs, self.inputs)
        return weight, None if self.bias is None else rows[:, self.bias : self.bias + self.outputs]

    def put(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write what ``take`` reads, into ``rows`` itself."""
        rows[:, self.weight : self.weight + self.outputs * self.inputs] = weight.flatten(1)
        if self.bias is not None and bias is not None:
            rows[:, self.bias : self.bias + self.outputs] = bias


def second_moment(inputs: Tensor, weights: Tensor, bias: bool) -> Tensor:
    """A of inputs float[b, places, M]. weights: float[b], of any sum; only their proportions count."""
    if bias:
        inputs = torch.cat([inputs, inputs.new_ones((*inputs.shape[:2], 1))], dim=2)
    shares = weights / (weights.sum() * inputs.shape[1])
    return (inputs * shares[:, None, None]).flatten(0, 1).T @ inputs.flatten(0, 1)


def module_layers(module: nn.Module, layout: ModuleRow) -> dict[str, Layer]:
    """The layers of a module by name: every Linear and every ungrouped Conv2d that owns its parameters alone.

    Subclasses are left out, because their forward may be anything, and so are layers that share a parameter.
    """
    owners: dict[nn.Parameter, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    places = dict(zip(layout.names, layout.offsets, strict=False))
    found = {}
    for name, part in module.named_modules():
        if type(part) not in (nn.Linear, nn.Conv2d) or getattr(part, "groups", 1) != 1:
            continue
        if any(owners[parameter] > 1 for parameter in part.parameters(recurse=False)):
            continue
        prefix = f"{name}." if name else ""
        outputs, inputs = part.weight.flatten(1).shape
        found[name] = Layer(name, outputs, inputs, places[f"{prefix}weight"], places.get(f"{prefix}bias"))
    return found


def layer_inputs(part: nn.Module, given: Tensor) -> Tensor:
    """What a Linear or Conv2d multiplies its weight with: float[b, places, M] from what it was called with."""
    if not isinstance(part, nn.Conv2d):
        return given.reshape(given.shape[0], -1, given.shape[-1])
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    padded = pad(given, _edges(part), mode=mode)
    return unfold(padded, part.kernel_size, dilation=part.dilation, stride=part.stride).transpose(1, 2)


def chosen(layers: Iterable[Layer], max_features: int) -> tuple[Layer, ...]:
    """The layers of at most ``max_features`` inputs; the others keep their plain gradient."""
    return tuple(layer for layer in layers if layer.inputs <= max_features)


def pack(moments: Sequence[Tensor]) -> Tensor:
    """Symmetric float[A, A] of several layers -> one row of their lower triangles, float[k]."""
    parts = []
    for moment in moments:
        rows, columns = torch.tril_indices(*moment.shape, device=moment.device)
        parts.append(moment[rows, columns])
    return torch.cat(parts)


def unpack(row: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """Inverse of ``pack``."""
    moments, start = [], 0
    for layer in layers:
        rows, columns = torch.tril_indices(layer.width, layer.width, device=row.device)
        part = row[start : start + len(rows)]
        moment = row.new_zeros((layer.width, layer.width))
        moment[rows, columns] = part
        moment[columns, rows] = part
        moments.append(moment)
        start += len(rows)
    return tuple(moments)


def packed(layers: Iterable[Layer]) -> int:
    """Numbers in the row of ``pack``: A (A + 1) / 2 for each layer."""
    return sum(layer.width * (layer.width + 1) // 2 for layer in layers)


def _edges(part: nn.Conv2d) -> list[int]:
    """Padding in the order of torch's ``pad``: left, right, top, bottom."""
    edges: list[int] = []
    for axis in (1, 0):
        if part.padding == "same":
            total = part.dilation[axis] * (part.kernel_size[axis] - 1)
            edges += [total // 2, total - total // 2]
        else:
            edges += [0, 0] if part.padding == "valid" else [int(part.padding[axis])] * 2
    return edges
