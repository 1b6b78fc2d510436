"""What only a run in which no message is lost can do: those of one process are not, those of a deployment may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.algorithms.whitening import Off
from fedsim.experiment import Experiment
from fedsim.solvers.rate import Salr


@dataclass(frozen=True, slots=True)
class Choice:
    """A key, its value, and the value that can lose messages."""

    key: str
    value: Any
    instead: Any


def needs_all(experiment: Experiment) -> Choice | None:
    """The first choice of an experiment for which every message must arrive; None where any may be lost."""
    rate = experiment.rate
    choices = (
        Choice("whitening.mode", experiment.whitening.__struct_config__.tag, Off.__struct_config__.tag),
        Choice("downlink.memory", experiment.downlink.memory, "none"),
        Choice("uplink.correction", experiment.uplink.correction, 1.0),
        Choice("uplink.synchronise", experiment.uplink.synchronise, 0.0),
        Choice("rate.level", rate.level if isinstance(rate, Salr) else "client", "client"),
    )
    return next((one for one in choices if one.value != one.instead), None)
