"""What theory says about an experiment: which theorem covers it, the rate it promises, and where a run levels off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedsim.algorithms.theory import ARTEMIS, PRESERVED, Promise, Steps, theorem_of
from fedsim.algorithms.theory.facts import REASONS
from fedsim.data import refuse_absent
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.simulation.constants import noise, problem, setting
from fedsim.simulation.plateau import Plateau, plateau
from fedsim.simulation.setup import Setup, prepare

NO_NOISE = "no noise is left at the optimum: there is no floor if the run converges"

ROUGH = 0.5
"""From this gain on most of the noise comes from gradients away from the optimum, with tails that 256 rounds miss."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What theory says about one experiment; None where it says nothing, and ``reasons`` why.

    theorem, source: its name and paper, "" where none covers the experiment. covered: it holds at the steps in use.
    reasons: why not, or why a figure is missing or rough.
    rate: of a round: what the theorem measures falls by 1 - rate; without a theorem that of F - F* near the optimum.
    floor_distance, floor_loss: E||w - w*||^2 and E F(w) - F* of the stationary law (``plateau``), not bounds.
    optimum: F*, the smallest mean loss over all samples. admissible: the largest step of the server that the theorem
    admits; step: the one in use. local, alpha: the theorem's largest step of a client, and memory rate.
    bound: the theorem's floor, of ``measure``. first: floor_loss to first order in the step. least: E||w - w*||^2 is at
    least this. gain: share of the noise that comes from gradients away from the optimum.
    course: (k, expected F after k rounds), in the quadratic that touches F at the optimum; a theorem's own rate would
    give F* + (1 - rate)^k (F(w_0) - F*) + floor_loss, which is far above it where the problem is ill-conditioned.
    """

    theorem: str
    source: str
    covered: bool
    reasons: list[str]
    rate: float | None
    floor_distance: float | None
    floor_loss: float | None
    optimum: float | None
    admissible: float | None
    step: float
    local: float | None = None
    alpha: float | None = None
    bound: float | None = None
    measure: str = ""
    first: float | None = None
    least: float | None = None
    gain: float | None = None
    course: tuple[tuple[int, float], ...] = ()


def predict(experiment: Experiment) -> Prediction:
    """Load the data, compute the constants, ask the theorems, and play the method around the optimum for its noise.

    Seconds. Raises ConfigError or DataError for an invalid experiment.
    """
    setup = prepare(experiment)
    try:
        return predicted(setup)
    finally:
        setup.close()


def predicted(setup: Setup) -> Prediction:
    """As ``predict``, of a prepared experiment."""
    said = promised(setup)
    if said.optimum is None or not (said.theorem or said.reasons == [REASONS["convex"]]):
        return said
    theorem = theorem_of(setting(setup.experiment, setup.federation, setup.task), setup.method)
    if theorem not in (ARTEMIS, PRESERVED):
        return said
    return _levelled(said, said.optimum, plateau(setup, still=said.bound == 0))


def promised(setup: Setup) -> Prediction:
    """What a theorem alone says: without the stationary law, and so at once."""
    experiment, federation, task = setup.experiment, setup.federation, setup.task
    try:
        refuse_absent(federation)
        constants, found = problem(experiment, federation, task), noise(experiment, federation, task)
    except ConfigError as error:
        return Prediction("", "", False, [str(error)], None, None, None, None, None, setup.step)
    where = setting(experiment, federation, task)
    theorem = theorem_of(where, setup.method)
    reasons = theorem.reasons(where, setup.method)
    blank = Prediction("", "", False, reasons, None, None, None, found.lowest, None, setup.step)
    if reasons:
        return blank
    steps = theorem.admissible(constants, setup.method)
    said = theorem.promise(constants, setup.method, setup.step, setup.plan.step, found)
    return _promised(blank, beyond(setup, steps, constants.batches), steps, said, found.offset)


def _promised(blank: Prediction, reasons: list[str], steps: Steps, said: Promise, offset: float) -> Prediction:
    """With what the theorem admits and promises. Without noise at the optimum a run that converges has no floor."""
    covered, still = not reasons, said.floor == 0
    if still and not covered:
        reasons = [*reasons, NO_NOISE]
    return replace(
        blank,
        theorem=steps.theorem,
        source=steps.source,
        covered=covered,
        reasons=reasons,
        rate=said.rate,
        floor_distance=0.0 if covered and still else None,
        floor_loss=offset if covered and still else None,
        admissible=steps.server,
        local=steps.local,
        alpha=steps.alpha,
        bound=said.floor,
        measure=said.measure,
    )


def _levelled(blank: Prediction, optimum: float, level: Plateau | str) -> Prediction:
    """With the stationary law, or why there is none."""
    if isinstance(level, str):
        return replace(blank, reasons=[*blank.reasons, level])
    reasons = [reason for reason in blank.reasons if reason != NO_NOISE]
    rough = f"{level.gain:.0%} of the noise comes from gradients away from the optimum: the floor is rough"
    return replace(
        blank,
        reasons=reasons + [rough] * (level.gain > ROUGH and level.first > 0),
        rate=blank.rate or level.rate,
        floor_distance=level.distance if math.isfinite(level.distance) else None,
        floor_loss=level.loss,
        first=level.first,
        least=level.least,
        gain=level.gain,
        course=tuple((k, optimum + excess) for k, excess in level.course),
    )


def beyond(setup: Setup, steps: Steps, batches: int) -> list[str]:
    """What is larger than the theorem admits."""
    found = []
    if setup.step > steps.server * (1 + 1e-9):
        found.append(f"the server's step is {setup.step / steps.server:.3g} times the largest of {steps.theorem}")
    if batches > 1 and setup.plan.step > steps.local * (1 + 1e-9):
        found.append(f"the clients' step is {setup.plan.step / steps.local:.3g} times the largest of {steps.theorem}")
    if not steps.admit_rate(setup.method.alpha):
        found.append(f"uplink.rate = {setup.method.alpha:.3g} is above the largest, {steps.alpha:.3g}")
    return found
