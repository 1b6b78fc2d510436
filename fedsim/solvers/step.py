"""What a direction is, and what one step of it says."""

from __future__ import annotations

from typing import Protocol

import msgspec
from torch import Tensor

from fedsim.solvers.memory import Notes
from fedsim.solvers.rate import Here


class Step(msgspec.Struct, frozen=True):
    """One direction and what came with it.

    row: d_k, float[1, d], what counts in what the client sends. loss: f(w), float[1]. notes: after the step. gradients:
    sample gradients it cost. length: sum of the coefficients of the gradients in d_k, by which its step counts in the
    division. move: float[1, d], along what the client walks where that is not ``row``.
    """

    row: Tensor
    loss: Tensor
    notes: Notes
    gradients: int
    length: float = 1.0
    move: Tensor | None = None


class Direction(Protocol):
    """A direction. It lives for one round of one client: what shall survive, it puts into its notes."""

    def begin(self, notes: Notes) -> Notes:
        """The notes with which a round begins."""
        ...

    def step(self, here: Here, notes: Notes) -> Step:
        """d_k from where the client is."""
        ...


def samples(here: Here) -> int:
    """Samples of the batch whose gradient counts."""
    return here.batch.weights.shape[1]
