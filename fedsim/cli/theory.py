"""``fedsim theory``: constants, admissible steps, predicted rate and floor of an experiment."""

from __future__ import annotations

from fedsim.cli.options import Assignments, ExperimentFile


def theory(experiment: ExperimentFile = None, assignments: Assignments = None) -> None:
    """Say which theorem covers an experiment, the steps it admits and what it promises; or why none does."""
    from fedsim.algorithms.theory import theorem_of
    from fedsim.data import refuse_absent
    from fedsim.experiment import load
    from fedsim.simulation.constants import noise, problem, setting
    from fedsim.simulation.setup import prepare
    from fedsim.simulation.theory import beyond, promised

    setup = prepare(load(experiment, assignments or ()))
    parsed, federation, task = setup.experiment, setup.federation, setup.task
    refuse_absent(federation)
    constants = problem(parsed, federation, task)
    found = noise(parsed, federation, task)
    for name, value in (
        ("L of F", constants.smoothness),
        ("L_b, of a batch", constants.batch_smoothness),
        ("L_max, of a mini-batch of a pass", constants.sample_smoothness),
        ("mu", constants.convexity),
        ("clients N", constants.clients),
        ("largest weight of a client", constants.share),
        ("probability to take part p", constants.probability),
        ("mini-batches of an epoch n", constants.batches),
        ("omega up", constants.up),
        ("omega down", constants.down),
        ("memory rate alpha", setup.method.alpha),
        ("B^2 (zeta^2), clients at the optimum", found.client),
        ("sigma^2, mini-batches at the optimum", found.batch),
        ("F at the optimum", found.value),
    ):
        print(f"{name:38} {value:.6g}")
    where = setting(parsed, federation, task)
    theorem = theorem_of(where, setup.method)
    reasons = theorem.reasons(where, setup.method)
    print(f"{'step of the server, in use':38} {setup.step:.6g}")
    print(f"{'step of a client, in use':38} {setup.plan.step:.6g}")
    if reasons:
        print("no theorem covers this experiment: " + "; ".join(reasons))
        return
    steps = theorem.admissible(constants, setup.method)
    print(f"covered by {steps.theorem}; {steps.source}")
    print(f"{'  server step at most':38} {steps.server:.6g}   in use: {setup.step / steps.server:.4g} times")
    if constants.batches > 1:
        print(f"{'  client step at most':38} {steps.local:.6g}   in use: {setup.plan.step / steps.local:.4g} times")
    if steps.alpha:
        print(f"{'  memory rate at most':38} {steps.alpha:.6g}   in use: {setup.method.alpha / steps.alpha:.4g} times")
    said = promised(setup)
    inside = not beyond(setup, steps, constants.batches)
    print(f"{'  rate, a round':38} {said.rate:.6g}" + ("" if inside else "   (not promised: steps or rate are larger)"))
    print(f"{'  floor of the ' + said.measure:38} {said.floor:.6g}")
