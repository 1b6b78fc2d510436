"""Along what a client steps: w <- w - eta_k d_k.

    kind       d_k at the local model w on the batch f
    gradient   g = grad f(w)
    momentum   v <- beta v + g;   d = v          v survives the round ("client") or starts at zero in each ("round")
    sam        grad f(w + rho g / ||g||)
    whitened   g whitened by the moments of each layer's inputs: ``fedsim.solvers.whitening``

A velocity is a sum of gradients with coefficients 1, beta, beta^2, ...; its step counts by their sum, as in FedNova, so
that a client with fewer steps, and so less momentum, does not weigh less than its share.

Sources: Polyak 1964 (momentum); Wang et al., "FedNova", NeurIPS 2020, section 4 (its length); Foret, Kleiner, Mobahi,
Neyshabur, "Sharpness-aware minimization", ICLR 2021 (sam).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.keys import shown
from fedsim.plugins import NAMES_CODE, blamed, made
from fedsim.solvers.memory import Notes, check_notes
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
        length = torch.ones((), dtype=torch.float64)
        if "velocity" in notes:
            row = self.beta * notes["velocity"].to(row) + row
            length = self.beta * notes["length"] + length
        return Step(row, loss, {"velocity": row, "length": length}, samples(here), float(length))


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
        factory: "package.module:name" of a function that takes ``options`` as keywords and returns a Direction. It is
            called for each client in each round.
        options: its keywords.
    """

    factory: Annotated[
        str, msgspec.Meta(description="'package.module:name' of a function that makes the direction", extra=NAMES_CODE)
    ]
    options: dict[str, Any] = {}


LocalDirection = Gradient | Momentum | Sam | Whitened | OwnDirection


def direction_of(options: LocalDirection | Direction) -> Direction:
    """The direction of an experiment. Raises ConfigError where a user's own cannot be made."""
    if not isinstance(options, OwnDirection):
        return options
    methods = ["begin", "step"]
    own = cast(Direction, made("direction.factory", options.factory, options.options, "fedsim.directions", methods))
    return _Checked(own, options.factory)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A user's direction with its answers checked. place: where it comes from."""

    direction: Direction
    place: str

    def begin(self, notes: Notes) -> Notes:
        """What the direction says. Raises ConfigError when these are no notes."""
        with blamed("direction.factory", self.place):
            found = self.direction.begin(notes)
        check_notes("direction.factory", self.place, found)
        return found

    def step(self, here: Here, notes: Notes) -> Step:
        """What the direction says. Raises ConfigError when that is no Step of this model."""
        with blamed("direction.factory", self.place):
            step: object = self.direction.step(here, notes)
        if not isinstance(step, Step):
            found = type(step).__name__
        elif _said(step.row) != _said(here.model):
            found = f"a row {_said(step.row)}"
        elif not isinstance(step.loss, Tensor) or step.loss.shape != (1,):
            found = f"a loss {_said(step.loss)}"
        elif not isinstance(step.gradients, int) or step.gradients < 0:
            found = f"gradients = {shown(step.gradients)}"
        elif not 0 < step.length < math.inf:
            found = f"length = {step.length}"
        else:
            check_notes("direction.factory", self.place, step.notes)
            return step
        raise ConfigError(
            f"direction.factory = {self.place!r} returned {found}; expected a Step with a row {_said(here.model)}, "
            "a loss float[1], gradients >= 0 and a length > 0"
        )


def _said(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else shown(value)
