"""``fedsim theory``: constants, admissible steps, predicted rate and floor of an experiment."""

from __future__ import annotations

from math import isinf

from fedsim.cli.options import Assignments, ExperimentFile


def theory(experiment: ExperimentFile = None, assignments: Assignments = None) -> None:
    """Say which theorem covers an experiment, the steps it admits and what it promises; or why none does."""
    from fedsim.data import refuse_absent
    from fedsim.experiment import load
    from fedsim.simulation.constants import noise, problem
    from fedsim.simulation.setup import prepare
    from fedsim.simulation.theory import predicted

    setup = prepare(load(experiment, assignments or ()))
    parsed, federation, task = setup.experiment, setup.federation, setup.task
    refuse_absent(federation)
    constants = problem(parsed, federation, task)
    found, said = noise(parsed, federation, task), predicted(setup)
    _print("L of F", constants.smoothness)
    _print("L_b, of a batch", constants.batch_smoothness)
    _print("L_max, of a mini-batch of a pass", constants.sample_smoothness)
    _print("mu", constants.convexity)
    _print("clients N", constants.clients)
    _print("largest weight of a client", constants.share)
    _print("probability to take part p", constants.probability)
    _print("mini-batches of an epoch n", constants.batches)
    for way, omega, delta in (
        ("up", constants.up, constants.up_delta),
        ("down", constants.down, constants.down_delta),
    ):
        biased = isinf(omega)
        _print(f"{'delta (biased)' if biased else 'omega'} {way}", delta if biased else omega)
    _print("memory rate alpha", setup.method.alpha)
    _print("B^2 (zeta^2), clients at the optimum", found.client)
    _print("sigma^2, mini-batches at the optimum", found.batch)
    _print("F at the optimum", found.value)
    if found.offset:  # where the method's own objective is not the mean over all samples, which runs report
        _print("loss above its minimum there", found.offset)
    _print("step of the server, in use", setup.step)
    _print("step of a client, in use", setup.plan.step)
    if not said.theorem:
        print("no theorem covers this experiment: " + "; ".join(said.reasons))
    else:
        print(f"{'covered by' if said.covered else 'would be covered by'} {said.theorem}; {said.source}")
        for reason in said.reasons:
            print(f"  {reason}")
        _print("  server step at most", said.admissible, setup.step)
        if constants.batches > 1:
            _print("  client step at most", said.local, setup.plan.step)
        if said.alpha:
            _print("  memory rate at most", said.alpha, setup.method.alpha)
        print(f"  of the {said.measure}" + ("" if said.covered else "   (not promised: steps or rate are larger)"))
        _print("    rate, a round", said.rate)
        _print("    floor, at most", said.bound)
    if said.floor_loss is not None:
        print("stationary law (derived, no bound)")
        _print("  loss above its minimum", said.floor_loss)
        if found.offset:
            print("    (over all samples: it counts what the optimum of clients that count alike is above it)")
        _print("    to first order in the step", said.first)
        _print("    share of noise off the optimum", said.gain)
        _print("  squared distance", said.floor_distance)
        _print("    at least", said.least)


def _print(name: str, value: float | None, used: float | None = None) -> None:
    """One line; with ``used``, how large that is beside the value."""
    if value is not None:
        print(f"{name:38} {value:.6g}" + ("" if used is None else f"   in use: {used / value:.4g} times"))
