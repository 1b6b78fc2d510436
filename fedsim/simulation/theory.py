"""What theory says about an experiment: which theorem covers it, the rate it promises, and where a run levels off."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.algorithms.theory import Promise, Steps, theorem_of
from fedsim.data import refuse_absent
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.simulation.constants import noise, problem, setting
from fedsim.simulation.setup import Setup, prepare


@dataclass(frozen=True, slots=True)
class Prediction:
    """What theory says about one experiment; None where it says nothing, and ``reasons`` why.

    theorem, source: its name and paper, "" where none covers the experiment. covered: a theorem holds at the step in
    use. reasons: why not, or why a figure is missing. rate: of a round: the measure of the theorem falls by 1 - rate.
    floor_distance: predicted E||w - w*||^2 at stationarity. floor_loss: predicted E F(w) - F*. optimum: F*, the
    smallest mean loss over all samples. admissible: the largest step of the server that the theorem admits; step: the
    one in use. bound_distance: what the theorem promises instead of ``floor_distance``.

    The expected course is about F* + (1 - rate)^k (F(w_0) - F*) + floor_loss.
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
    bound_distance: float | None = None


def predict(experiment: Experiment) -> Prediction:
    """Load the data, compute the constants and ask the theorems. Raises ConfigError for an invalid experiment."""
    setup = prepare(experiment)
    try:
        return predicted(setup)
    finally:
        setup.close()


def predicted(setup: Setup) -> Prediction:
    """As ``predict``, of a prepared experiment. Raises ConfigError where the data is elsewhere."""
    refuse_absent(setup.federation)
    experiment, federation, task = setup.experiment, setup.federation, setup.task
    try:
        constants, found = problem(experiment, federation, task), noise(experiment, federation, task)
    except ConfigError as error:
        return Prediction("", "", False, [str(error)], None, None, None, None, None, setup.step)
    where = setting(experiment, federation, task)
    theorem = theorem_of(where, setup.method)
    reasons = theorem.reasons(where, setup.method)
    if reasons:
        return Prediction("", "", False, reasons, None, None, None, found.value, None, setup.step)
    steps = theorem.admissible(constants, setup.method)
    said = theorem.promise(constants, setup.method, setup.step, setup.plan.step, found)
    reasons = beyond(setup, steps, constants.batches)
    return Prediction(
        theorem=steps.theorem,
        source=steps.source,
        covered=not reasons,
        reasons=reasons,
        rate=said.rate,
        floor_distance=said.floor if said.measure == "squared distance" else None,
        floor_loss=None,
        optimum=found.value,
        admissible=steps.server,
        step=setup.step,
        bound_distance=said.floor if said.measure == "squared distance" else None,
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


def promised(setup: Setup) -> Promise:
    """Rate and neighbourhood that the experiment's theorem states at its own steps, admissible or not."""
    experiment, federation, task = setup.experiment, setup.federation, setup.task
    theorem = theorem_of(setting(experiment, federation, task), setup.method)
    found, constants = noise(experiment, federation, task), problem(experiment, federation, task)
    return theorem.promise(constants, setup.method, setup.step, setup.plan.step, found)
