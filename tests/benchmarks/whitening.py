"""A step of a whitened linear layer: its gradient transformed once, or its samples there and their errors back.

S outputs, M inputs, B samples. The sample form makes X K and brings the errors of the inputs back through K', 2 B M^2
products; the gradient form multiplies G by R^-1, S M^2. So the gradient form should be the faster from B = S / 2 on.
Both forms give the same step of W, which is checked.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fedsim.solvers.metric import precondition, whitener
from fedsim.tasks.layer import Layer, second_moment

INPUTS, OUTPUTS, REPEATS = 512, 512, 30
TOLERANCE = 1e-8


def table() -> None:
    """Print a line for each B."""
    print(f"S = {OUTPUTS}, M = {INPUTS}; ms of a step beside the plain gradient, best of {REPEATS}")
    print(f"{'B':>6} {'B / (S/2)':>10} {'samples':>9} {'gradient':>9} {'samples / gradient':>19}")
    for b in (32, 64, 128, 256, 512, 1024, 2048):
        samples, gradient = line(b)
        print(f"{b:6d} {2 * b / OUTPUTS:10.3g} {1e3 * samples:9.3f} {1e3 * gradient:9.3f} {samples / gradient:19.2f}")


def line(b: int) -> tuple[float, float]:
    """Seconds that each form takes beside X -> Y, dY -> G, dX of the plain layer."""
    generator = torch.Generator().manual_seed(b)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, errors = draw(b, INPUTS) @ draw(INPUTS, INPUTS) / INPUTS, draw(b, OUTPUTS)
    moment = second_moment(features[:, None], torch.ones(b, dtype=torch.float64), bias=False)
    made = whitener(moment, Layer("layer", OUTPUTS, INPUTS, 0), 0.1, "cholesky")
    root, inverse, backward = made.root, made.inverse, draw(b, INPUTS)
    gradient = errors.T @ features

    def by_samples() -> tuple[Tensor, Tensor]:
        return features @ root, backward @ root.T

    def by_gradient() -> Tensor:
        return precondition(gradient, None, None, inverse)[0]

    step = (errors.T @ by_samples()[0]) @ root.T
    assert float((step - by_gradient()).abs().max()) <= TOLERANCE * float(step.abs().max())
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for i, form in enumerate((by_samples, by_gradient)):
            began = time.perf_counter()
            form()
            best[i] = min(best[i], time.perf_counter() - began)
    return best[0], best[1]
