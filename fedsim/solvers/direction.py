"""Along what a client steps: w <- w - eta_k d_k.

    kind       d_k at the local model w on the batch f
    gradient   g = grad f(w)
    momentum   v <- beta v + g;   d = v          v survives the round ("client") or starts at zero in each ("round")
    sam        grad f(w + rho g / ||g||)
    whitened   g whitened by the moments of each layer's inputs: ``fedsim.solvers.whitening``

Sources: Polyak 1964 (momentum); Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-aware minimization", ICLR 2021 (sam).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import msgspec
import torch

from fedsim.plugins import named
from fedsim.solvers.memory import Notes
from fedsim.solvers.rate import Here
from fedsim.solvers.step import Direction, Step, samples
from fedsim.solvers.whitening import Whitened


class Gradient(msgspec.Struct, frozen=True, tag_field="kind", tag="gradient", forbid_unknown_fields=True):
    """The gradient of the batch."""

    def begin(self, notes: Notes) -> Notes:
        """Nothing to remember."""
        return notes

    def step(self, here: Here, notes: Notes) -> Step:
        """g."""
        row, loss = here.task.gradients(here.model, here.batch)
        return Step(row, loss, notes, samples(here))


class Momentum(msgspec.Struct, frozen=True, tag_field="kind", tag="momentum", forbid_unknown_fields=True):
    """Heavy-ball momentum.

    Args:
        beta: what is kept of the velocity.
        reset: the velocity starts at zero in each "round", or stays with the client ("never").
    """

    beta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    reset: Literal["round", "never"] = "round"

    def begin(self, notes: Notes) -> Notes:
        """No velocity, unless it survives rounds."""
        return notes if self.reset == "never" else {}

    def step(self, here: Here, notes: Notes) -> Step:
        """beta v + g."""
        row, loss = here.task.gradients(here.model, here.batch)
        if "velocity" in notes:
            row = self.beta * notes["velocity"].to(row) + row
        return Step(row, loss, {"velocity": row}, samples(here))


class Sam(msgspec.Struct, frozen=True, tag_field="kind", tag="sam", forbid_unknown_fields=True):
    """The gradient where the loss is locally worst. Args: rho: distance of the ascent."""

    rho: Annotated[float, msgspec.Meta(gt=0)] = 0.05

    def begin(self, notes: Notes) -> Notes:
        """Nothing to remember."""
        return notes

    def step(self, here: Here, notes: Notes) -> Step:
        """The gradient at w + rho g / ||g||."""
        row, loss = here.task.gradients(here.model, here.batch)
        norm = row.norm()
        up = here.model + self.rho * row / torch.where(norm > 0, norm, torch.ones_like(norm))
        return Step(here.task.gradients(up, here.batch)[0], loss, notes, 2 * samples(here))


class OwnDirection(msgspec.Struct, frozen=True, tag_field="kind", tag="own", forbid_unknown_fields=True):
    """Your own direction.

    Args:
        factory: "package.module:name" of a function that takes ``options`` as keywords and returns a Direction.
        options: its keywords.
    """

    factory: Annotated[str, msgspec.Meta(description="'package.module:name' of a function that makes the direction")]
    options: dict[str, Any] = {}

    def begin(self, notes: Notes) -> Notes:
        """What the direction says."""
        return self._direction().begin(notes)

    def step(self, here: Here, notes: Notes) -> Step:
        """What the direction says."""
        return self._direction().step(here, notes)

    def _direction(self) -> Direction:
        factory = cast(Callable[..., Direction], named("direction.factory", self.factory, (), "fedsim.directions"))
        return factory(**self.options)


LocalDirection = Gradient | Momentum | Sam | Whitened | OwnDirection
