"""Sharpness of a minimum as Keskar et al. measure it.

    phi = 100 (max over |z_i| <= eps (|w_i| + 1) of f(w + z) - f(w)) / (1 + f(w)),     eps = 5e-4

The maximum is sought by ten iterations of L-BFGS-B from z = 0, so phi is a lower bound; where the gradient is zero the
search does not leave w, and phi is 0.

Source: Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, "On large-batch training for deep learning: generalization gap
and sharp minima", ICLR 2017, Metric 2.1 in the whole space.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
from torch import Tensor

from fedsim import Experiment
from fedsim.simulation.setup import prepare
from fedsim.tasks.task import full_batch

Vector = NDArray[np.float64]
Function = Callable[[Vector], tuple[float, Vector]]
"""w, float64[d] -> (f(w), its gradient)."""

EPSILON, ITERATIONS = 5e-4, 10


def sharpness(f: Function, w: Vector, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> float:
    """phi at w, in percent."""
    here, reach = f(w)[0], epsilon * (np.abs(w) + 1)

    def below(point: Vector) -> tuple[float, Vector]:
        value, gradient = f(point)
        return -value, -gradient

    found = minimize(
        below,
        w,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(w - reach, w + reach),
        # No tolerance ends the search early: models that are compared get the same number of iterations.
        options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0},
    )
    return 100 * max(0.0, -float(found.fun) - here) / (1 + here)


def sharpness_of(experiment: Experiment, model: Tensor) -> float:
    """phi of a model, float[d], on the training loss of its experiment, in float64."""
    setup = prepare(
        msgspec.structs.replace(experiment, run=msgspec.structs.replace(experiment.run, precision="float64"))
    )
    data = setup.federation.all()
    batch = full_batch(data.features, data.targets, data.features.dtype)

    def f(w: Vector) -> tuple[float, Vector]:
        gradients, losses = setup.task.gradients(data.features.new_tensor(w)[None], batch)
        return float(losses[0]), gradients[0].numpy()

    return sharpness(f, model.double().numpy())
