"""What the theorems allow and promise: admissible steps, linear rate and neighbourhood, from the problem's constants.

a round                                        theorem
several local steps, or passes                 NASTYA
a server with a model of its own               PRESERVED (MCM, Rand-MCM, EF21-P + DIANA)
estimates of registered clients' changes       EF21, MARINA, DASHA
one gradient                                   ARTEMIS (SGD, QSGD, DIANA, Bi-QSGD, with PP1 and PP2)
"""

from __future__ import annotations

from fedsim.algorithms.method import Method
from fedsim.algorithms.theory.artemis import ARTEMIS
from fedsim.algorithms.theory.changes import DASHA, EF21, MARINA
from fedsim.algorithms.theory.facts import Noise, Problem, Promise, Setting, Steps, Theorem
from fedsim.algorithms.theory.nastya import NASTYA
from fedsim.algorithms.theory.preserved import PRESERVED

__all__ = [
    "ARTEMIS",
    "PRESERVED",
    "Noise",
    "Problem",
    "Promise",
    "Setting",
    "Steps",
    "Theorem",
    "theorem_of",
]


def theorem_of(setting: Setting, method: Method) -> Theorem:
    """The theorem whose kind of method this is; its ``reasons`` say whether it covers the experiment."""
    if not setting.single_step:
        return NASTYA
    if method.downlink.memory == "model":
        return PRESERVED
    if method.uplink.correction != 1.0 or method.uplink.synchronise:
        return MARINA if method.uplink.synchronise else DASHA
    if method.uplink.memory and method.server.normalise == "registered":
        return EF21
    return ARTEMIS
