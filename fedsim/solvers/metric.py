"""The matrices of whitening: from the second moments of a layer's inputs to maps of gradients and steps.

    symbol   here          meaning
    A        moment        E z z' with z = (x, 1), float[M + 1, M + 1]; without a bias z = x
    mu       mean          E x; absent without a bias
    R        covariance    E x x' - mu mu' + damping trace(E x x') / M I
    K        root          K K' = R^-1
    G, g     gradient      of W [S, M] and of b [S]
    V, v     step          a change of W and of b

With whitened inputs x~ = K'(x - mu) the layer is W~ x~ + b~, where W~ = W K^-T and b~ = b + W mu. Then

    gradient, whitened     G~ = (G - g mu') K         g~ = g              ``whiten``, inverse ``unwhiten``
    step, whitened         V~ = V K^-T                v~ = v + V mu       ``whiten_step``, inverse ``unwhiten_step``
    a step along G~, g~    V = (G - g mu') R^-1       v = g - V mu        ``precondition``, inverse ``restore``

The last line is [G g] times the inverse of A with its damping, whatever K. Damping relative to E x x', not to the
covariance, makes the damped A linear in A: the mean of clients' damped moments is the damped mean of their moments.
Factors are computed in float64. Each row is mapped by itself, so it has the same bits in every cohort.

Source: Markovich-Golan, Battash, Bleiweiss, "Feature whitening via gradient transformation for improved convergence",
arXiv 2010.01546 (the transformation of gradients instead of samples). It is also FOOF (Benzing, ICML 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import ConfigError, DivergedError
from fedsim.tasks.layer import Layer

Route = Literal["cholesky", "evd"]
LayerMap = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class Whitener:
    """One layer's matrices. mean: float[M] or None; covariance, root, inverse (R^-1): float[M, M]."""

    layer: Layer
    mean: Tensor | None
    covariance: Tensor
    root: Tensor
    inverse: Tensor

    def whiten(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """G, g -> G~, g."""
        return self._centred(weight, bias) @ self.root, bias

    def unwhiten(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """G~, g -> G, g. K^-1 = K'R."""
        weight = weight @ self.root.T @ self.covariance
        return (weight if self.mean is None or bias is None else weight + torch.outer(bias, self.mean)), bias

    def whiten_step(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """V, v -> V~, v~. K^-T = R K."""
        return weight @ self.covariance @ self.root, None if bias is None else bias + weight @ self._mean(weight)

    def unwhiten_step(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """V~, v~ -> V, v."""
        weight = weight @ self.root.T
        return weight, None if bias is None else bias - weight @ self._mean(weight)

    def precondition(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """G, g -> V, v."""
        return precondition(weight, bias, self.mean, self.inverse)

    def restore(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """V, v -> G, g: [V v] times the damped A."""
        gradient = weight @ self.covariance
        if self.mean is None or bias is None:
            return gradient, bias
        bias = bias + weight @ self.mean
        return gradient + torch.outer(bias, self.mean), bias

    def _centred(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weight if self.mean is None or bias is None else weight - torch.outer(bias, self.mean)

    def _mean(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[1]) if self.mean is None else self.mean


def precondition(
    weight: Tensor, bias: Tensor | None, mean: Tensor | None, inverse: Tensor
) -> tuple[Tensor, Tensor | None]:
    """V = (G - g mu') R^-1, v = g - V mu. weight: float[S, M]; bias: float[S]; mean: float[M]; inverse: float[M, M]."""
    if mean is None or bias is None:
        return weight @ inverse, bias
    weight = (weight - torch.outer(bias, mean)) @ inverse
    return weight, bias - weight @ mean


@dataclass(frozen=True, slots=True)
class Metric:
    """The whitened layers of a row; what belongs to none of them stays as it is. Maps float[n, d] -> float[n, d]."""

    parts: tuple[Whitener, ...]

    def whiten(self, rows: Tensor) -> Tensor:
        """Gradients -> gradients in whitened coordinates."""
        return self._map(rows, [part.whiten for part in self.parts])

    def unwhiten(self, rows: Tensor) -> Tensor:
        """Back."""
        return self._map(rows, [part.unwhiten for part in self.parts])

    def whiten_step(self, rows: Tensor) -> Tensor:
        """Changes of a model -> the same in whitened coordinates."""
        return self._map(rows, [part.whiten_step for part in self.parts])

    def unwhiten_step(self, rows: Tensor) -> Tensor:
        """Back."""
        return self._map(rows, [part.unwhiten_step for part in self.parts])

    def precondition(self, rows: Tensor) -> Tensor:
        """Gradients -> the change of a model that a step along the whitened gradient makes."""
        return self._map(rows, [part.precondition for part in self.parts])

    def restore(self, rows: Tensor) -> Tensor:
        """Back."""
        return self._map(rows, [part.restore for part in self.parts])

    def _map(self, rows: Tensor, maps: Sequence[LayerMap]) -> Tensor:
        rows = rows.to(self.parts[0].inverse.device)
        return torch.stack([apply_by_layer(row, self.layers, maps) for row in rows]) if len(rows) else rows

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of ``parts``."""
        return tuple(part.layer for part in self.parts)


def apply_by_layer(row: Tensor, layers: Sequence[Layer], maps: Sequence[LayerMap]) -> Tensor:
    """A copy of float[d] with each layer's W and b mapped."""
    row = row[None].clone()
    for layer, change in zip(layers, maps, strict=True):
        weight, bias = layer.take(row)
        new, shift = change(weight[0].clone(), None if bias is None else bias[0].clone())
        layer.put(row, new[None], None if shift is None else shift[None])
    return row[0]


def split(moment: Tensor, layer: Layer, damping: float) -> tuple[Tensor | None, Tensor]:
    """(mu or None, R), float64, from A. R is the identity where nothing went into the layer."""
    moment, m = moment.to(torch.float64), layer.inputs
    if not bool(torch.isfinite(moment).all()):
        raise DivergedError(f"the inputs of layer {layer.name!r} are not finite; use a smaller step size")
    second, mean = moment[:m, :m], None if layer.bias is None else moment[:m, m]
    scale = torch.trace(second) / m
    identity = torch.eye(m, dtype=torch.float64, device=moment.device)
    if not bool(scale > 0):
        return mean, identity
    covariance = second if mean is None else second - torch.outer(mean, mean)
    return mean, (covariance + covariance.T) / 2 + damping * scale * identity


def whitener(moment: Tensor, layer: Layer, damping: float, route: Route) -> Whitener:
    """A, float[A, A] -> the layer's matrices in its dtype. "cholesky": K is upper triangular; "evd": the PCA's K."""
    mean, covariance = split(moment, layer, damping)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise ConfigError(
            f"damping = {damping:g} is too small for the features of layer {layer.name!r}: their damped covariance is "
            "not positive definite; use a larger direction.damping (whitening.damping), or run.precision = 'float64'"
        )
    if route == "cholesky":
        identity = torch.eye(layer.inputs, dtype=torch.float64, device=moment.device)
        root = torch.linalg.solve_triangular(factor, identity, upper=False).T
    else:
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors / values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    kind = moment.dtype
    return Whitener(
        layer,
        None if mean is None else mean.to(kind),
        covariance.to(kind),
        root.contiguous().to(kind),
        (root @ root.T).to(kind),
    )


def metric(moments: Sequence[Tensor], layers: Sequence[Layer], damping: float, route: Route) -> Metric:
    """The maps of several layers."""
    return Metric(tuple(whitener(moment, layer, damping, route) for moment, layer in zip(moments, layers, strict=True)))
