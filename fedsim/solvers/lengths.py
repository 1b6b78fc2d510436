"""How long the steps of a group's clients are: eta_h and eta_h / eta_0, for all of them at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.solvers.course import Course, Ints
from fedsim.solvers.rate import Constant, Harmonic
from fedsim.solvers.transfer import sent

Floats = NDArray[np.float64]


class Steps:
    """Lengths of the steps of a group. same: eta of every step of everybody, or None; unit: eta_0, float64[c]."""

    def __init__(self, course: Course) -> None:
        self.course, self.rate, self.base = course, course.plan.rate, course.plan.step
        self.same = self.base if isinstance(self.rate, Constant) else None
        self.unit = self.at(0)

    def at(self, h: int) -> Floats:
        """eta_h of each client, float64[c]."""
        if not isinstance(self.rate, Harmonic):
            return np.full(len(self.course.clients), self.base)
        late = np.maximum(0, self.course.done + h - self.rate.hold)
        etas: Floats = np.minimum(self.base, 1.0 / (self.rate.mu * (1.0 + self.rate.factor * late.astype(np.float64))))
        return etas

    def shares(self, h: int, a: int, like: Tensor) -> Tensor | None:
        """eta_h / eta_0 of the first ``a`` clients, [a, 1, 1]; None where all are 1."""
        return None if self.same is not None else column((self.at(h) / self.unit)[:a], like)

    def lengths(self) -> Floats:
        """Sum over the steps of eta_h / eta_0, float64[c]."""
        if self.same is not None:
            return self.course.steps.astype(np.float64)
        steps = self.course.steps
        found: Floats = np.sum([(steps > h) * self.at(h) / self.unit for h in range(int(steps[0]))], axis=0)
        return found


def column(numbers: Floats | Ints, like: Tensor) -> Tensor:
    """[a, 1, 1]."""
    return sent(np.ascontiguousarray(numbers), like.device, like.dtype)[:, None, None]
