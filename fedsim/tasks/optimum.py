"""The smallest value of a convex task, to measure the excess loss F(w) - F* of a run. Computed in float64 on the CPU.

Least squares is solved in closed form. The logistic losses are minimised by Newton's method: the step solves
(H + m I) s = grad F with a damping m at the level of rounding (H is singular for collinear features, and for softmax
always), halved until F falls. A feature that occurs in one class only drives its weight to infinity; there F is still
reached to rounding, because each step divides the gradient by e.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.tasks.linear import Linear, SoftmaxRegression, Squares
from fedsim.tasks.task import Batch, Task

if TYPE_CHECKING:
    from fedsim.data.examples import Examples

LARGEST = 4096
"""Largest d whose Hessian (128 MiB) is formed."""

GRADIENT = 1e-13
"""Largest coordinate of grad F at which the search ends, relative to the scale of the features."""

ACCEPTED = 1e-9
"""The same where rounding stops the search earlier; F - F* is of the order of its square."""

STEPS = 200

SUFFICIENT = 1e-4
"""Share of the first-order decrease that a step must achieve (Armijo)."""

SHORTEST = 1e-9
"""Fraction of a Newton step below which it is taken as it is."""


def optimum(task: Task, examples: Examples, weights: Tensor | None = None) -> tuple[Tensor, float]:
    """(a minimiser of F over the examples, float64[d] on their device; F* = its value).

    weights: of the samples in F, float[n], that sum to 1; None: 1 / n each.

    Raises ConfigError for a task that is not convex, for more than 4096 coordinates, and when no minimum is found.
    """
    if not isinstance(task, Linear | SoftmaxRegression):
        raise ConfigError(
            "the excess loss needs a convex task (least-squares, logistic or softmax); measure the loss instead"
        )
    device = examples.features.device
    task = replace(task, dtype=torch.float64, device=torch.device("cpu"))
    features, targets = examples.features.to("cpu", torch.float64), examples.targets.to("cpu")
    if isinstance(task, Linear):
        targets = task.target_numbers(targets).to(torch.float64)
        task = replace(task, signed=False)
    examples = replace(examples, features=features.flatten(1), targets=targets)
    least_squares = isinstance(task, Linear) and task.loss_of_score is Squares
    count = len(targets)
    shares = (
        torch.full((count,), 1 / count, dtype=torch.float64) if weights is None else weights.to("cpu", torch.float64)
    )
    model = _least_squares(examples, shares, task.l2) if least_squares else _newton(task, examples, shares)
    value = task.gradients(model[None], Batch(features.flatten(1)[None], targets[None], shares[None]))[1]
    return model.to(device), float(value)


def _least_squares(examples: Examples, shares: Tensor, l2: float) -> Tensor:
    """argmin sum shares_j (<x_j, w> - y_j)^2 + l2/2 ||w||^2, the shortest one when there are many."""
    d = examples.features.shape[1]
    features, targets = shares.sqrt()[:, None] * examples.features, shares.sqrt() * examples.targets
    if l2 > 0:
        root = (l2 / 2) ** 0.5
        features = torch.cat([features, root * torch.eye(d, dtype=torch.float64)])
        targets = torch.cat([targets, targets.new_zeros(d)])
    solution: Tensor = torch.linalg.lstsq(features, targets[:, None], driver="gelsd").solution
    return solution[:, 0]


def _newton(task: Linear | SoftmaxRegression, examples: Examples, shares: Tensor) -> Tensor:
    if task.dim > LARGEST:
        raise ConfigError(
            f"the minimum of a task with {task.dim} coordinates needs a Hessian of {8 * task.dim**2 / 2**30:.1f} GiB; "
            f"excess loss is computed up to {LARGEST} coordinates: measure the loss instead"
        )
    batch = Batch(examples.features[None], examples.targets[None], shares[None])
    scale = max(1.0, float(examples.features.abs().mean(dim=0).amax()))
    model = task.initial(0)

    def value(candidate: Tensor) -> tuple[Tensor, Tensor]:
        rows, losses = task.gradients(candidate[None], batch)
        return rows[0], losses[0]

    gradient, loss = value(model)
    for _ in range(STEPS):
        if _largest(gradient) <= GRADIENT * scale:
            return model
        direction = _solve(task.hessian(model, examples, shares), gradient)
        slope, size = torch.dot(gradient, direction), 1.0
        while True:
            candidate = model - size * direction
            new_gradient, new_loss = value(candidate)
            falls = bool(new_loss <= loss - SUFFICIENT * size * slope)
            # Near the minimum F no longer shows progress in float64, but its gradient still does.
            flattens = bool(new_loss <= loss * (1 + 1e-14)) and _largest(new_gradient) < _largest(gradient)
            if falls or flattens or size < SHORTEST:
                break
            size /= 2
        model, gradient, loss = candidate, new_gradient, new_loss
    if _largest(gradient) > ACCEPTED * scale:
        raise ConfigError(
            f"no minimum was found: the gradient is still {_largest(gradient):.1e} after {STEPS} Newton steps; "
            "set task.l2 > 0 or scale the features"
        )
    return model


def _largest(gradient: Tensor) -> float:
    return float(gradient.abs().amax())


def _solve(hessian: Tensor, gradient: Tensor) -> Tensor:
    """(H + m I)^-1 gradient with the smallest m, from the level of rounding, at which H + m I is positive definite."""
    identity = torch.eye(hessian.shape[0], dtype=hessian.dtype)
    largest = float(hessian.diagonal().amax())
    for exponent in range(-15, 0):
        factor, failed = torch.linalg.cholesky_ex(hessian + largest * 10.0**exponent * identity)
        if not int(failed):
            return torch.cholesky_solve(gradient[:, None], factor)[:, 0]
    raise ConfigError(
        "no minimum was found: the Hessian is not finite; scale the features or remove what is not a number"
    )
