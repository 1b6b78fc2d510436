"""Hostile clients in the simulator: what they upload is made from honest directions, and sent by the real codecs.

No part of the product knows of them: a prepared experiment whose ``solve`` answers, for some clients, what an attack
says instead of their direction. They keep to the protocol after that, memories included, and know everything.

    attack        direction of each attacker                                             source
    flip(c)       -c times its own, so h_i + D_i comes to -c times the true one           -
    collude(c)    -c times the mean of the honest clients of the round                    Xie, Koyejo, Gupta, UAI 2019
    alie(z)       that mean + z standard deviations of the honest, coordinate-wise        Baruch, Baruch, Goldberg, 2019
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.randomness import Stream
from fedsim.simulation.setup import Setup
from fedsim.solvers.local import Plan, Solution
from fedsim.solvers.memory import Memory

Attack = Callable[[Tensor, Tensor], Tensor]
"""Directions of the attackers, float[b, d], and of the honest clients, float[n - b, d], n > b -> float[b, d]."""


def flip(times: float) -> Attack:
    return lambda own, honest: -times * own


def collude(times: float) -> Attack:
    return lambda own, honest: (-times * honest.mean(dim=0)).expand_as(own)


def alie(deviations: float) -> Attack:
    return lambda own, honest: (honest.mean(dim=0) + deviations * honest.std(dim=0, correction=0)).expand_as(own)


@dataclass(frozen=True)
class Hostile(Setup):
    """A prepared experiment in which ``liars``, int64[b], are hostile."""

    liars: Tensor = field(kw_only=True)
    attack: Attack = field(kw_only=True)

    def solve(
        self, plan: Plan, models: Tensor, clients: Tensor, stream: Stream, memories: Mapping[int, Memory]
    ) -> Solution:
        solution = super().solve(plan, models, clients, stream, memories)
        bad = torch.isin(clients, self.liars)
        if not bool(bad.any()) or bool(bad.all()):
            return solution
        direction = solution.direction.clone()
        direction[bad] = self.attack(direction[bad], direction[~bad])
        return replace(solution, direction=direction)


def infiltrated(setup: Setup, attack: Attack, share: float, seed: int) -> Hostile:
    """The experiment with so many of its clients, drawn by ``seed``, hostile."""
    liars = np.random.default_rng([seed, 7]).permutation(setup.clients)[: round(share * setup.clients)]
    own = {each.name: getattr(setup, each.name) for each in fields(Setup)}
    return Hostile(**own, liars=torch.from_numpy(liars), attack=attack)
