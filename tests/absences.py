"""What the simulator comes to when clients miss rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch

from fedsim.algorithms.artemis import Cohort
from fedsim.experiment import Experiment
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import State, initial_state


def simulated(experiment: Experiment, misses: Callable[[int, int], bool]) -> State:
    """After all rounds; misses: whether in this round this client takes no part although it was called."""

    class Absences(Setup):
        def cohort(self, round: int) -> Cohort:
            all = super().cohort(round)
            kept = torch.tensor([not misses(round, i) for i in all.clients.tolist()], dtype=torch.bool)
            return Cohort(all.clients[kept], all.weights[kept], all.probability)

    setup = prepare(experiment)
    absences = Absences(**{field.name: getattr(setup, field.name) for field in fields(setup)})
    state = initial_state(setup)
    for _ in range(experiment.rounds):
        play(absences, state)
    return state
