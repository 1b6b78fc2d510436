"""What every task offers: rows of models in, rows of gradients out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from fedsim.tasks.layer import Layer
from fedsim.tasks.stack import Moving, Stack

if TYPE_CHECKING:
    from fedsim.data.examples import Examples

Norm = Literal["spectral", "frobenius"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of n clients, b each.

    features: float[n, b, *shape]. targets: int64[n, b] classes or float[n, b] numbers. weights: float[n, b], a row
    sums to 1 (in a pass through a client's samples, on average over its steps); padding has weight 0 and any finite
    features.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor


class Task(Protocol):
    """What is learned: F(w) = mean over samples of loss(w; sample) + l2/2 ||w||^2, w one row of ``dim`` coordinates."""

    @property
    def dim(self) -> int:
        """Coordinates of a model."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each tensor in a row, in order."""
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers in a row; none where there is nothing to whiten."""
        ...

    @property
    def stack(self) -> Stack | None:
        """Its gradient written by hand, for many clients side by side; None where there is none."""
        ...

    @property
    def walker(self) -> Callable[[bool], Moving] | None:
        """Makes room for one model along gradients that autograd finds (True: they are summed); None: rows are as good.

        Then one client's steps go through it.
        """
        ...

    @property
    def mapped(self) -> Callable[[int, bool, Tensor], Moving] | None:
        """Makes room for many models side by side (how many, whether gradients are summed, one of their rows).

        None where there is a ``stack``, or no way to do so: then a group's gradients are found one after another.
        """
        ...

    def moments(self, model: Tensor, batch: Batch, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        """E z z' of what goes into each of ``layers`` (some of the task's), float[A, A]: see ``fedsim.tasks.layer``.

        model: float[1, d]; batch: of one row.
        """
        ...

    def initial(self, seed: int) -> Tensor:
        """The model to start from, float[d]."""
        ...

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """float[n, d] -> (gradient rows float[n, d], losses float[n]) of each model on its row of the batch."""
        ...

    def loss(self, model: Tensor, examples: Examples) -> float:
        """F of one model, float[d], over all examples."""
        ...

    def metrics(self, model: Tensor, examples: Examples) -> dict[str, float]:
        """ "loss" (as ``loss``) and, for classes, "accuracy" in [0, 1]."""
        ...

    def smoothness(self, examples: Examples, norm: Norm) -> float:
        """A Lipschitz constant L of grad F over these examples. Raises ConfigError for a task that is not convex."""
        ...

    def sample_smoothness(self, examples: Examples) -> float:
        """A Lipschitz constant that the gradient of every single sample has. Raises ConfigError like ``smoothness``."""
        ...

    def convexity(self, examples: Examples) -> float:
        """A strong convexity constant mu of F over these examples. Raises ConfigError like ``smoothness``."""
        ...


def full_batch(features: Tensor, targets: Tensor, dtype: torch.dtype) -> Batch:
    """All n_i samples of one client as a batch of one row: views, nothing is copied."""
    weights = full_weights(1, features.shape[0], dtype, features.device)
    return Batch(features[None], targets[None], weights)


def full_weights(n: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / count everywhere, float[n, count], without memory of its own."""
    return torch.full((1, 1), 1.0 / count, dtype=dtype, device=device).expand(n, count)


def portions(examples: Examples, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(features, targets) of at most ``rows`` samples at a time, so that what is computed from them stays small."""
    for start in range(0, examples.features.shape[0], rows):
        yield examples.features[start : start + rows], examples.targets[start : start + rows]


def penalised(models: Tensor, gradients: Tensor, losses: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Add l2/2 ||w||^2 of every coordinate, biases included. models, gradients: float[n, d]; losses: float[n]."""
    if l2 == 0:
        return gradients, losses
    return gradients + l2 * models, losses + l2 / 2 * (models * models).sum(dim=1)


def penalty(model: Tensor, l2: float) -> float:
    """l2/2 ||w||^2 of one model, float[d]."""
    return l2 / 2 * float(model.to(torch.float64).square().sum())
