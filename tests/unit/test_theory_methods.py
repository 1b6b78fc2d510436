"""The theorems of one gradient a round: their numbers from raw constants, their promises kept, and what none covers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.method import Downlink, Method, ServerOptions, Uplink
from fedsim.algorithms.theory import Problem
from fedsim.algorithms.theory.artemis import ARTEMIS
from fedsim.algorithms.theory.changes import DASHA, EF21, MARINA
from fedsim.algorithms.theory.preserved import PRESERVED
from fedsim.compression import Quantize, TopK
from fedsim.errors import ConfigError
from fedsim.simulation.constants import mean_convexity, noise, problem
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import initial_state
from fedsim.simulation.theory import predicted, promised
from tests.theory_problem import FULL, HALF, NOISE, PROBLEM, small

HALVED = replace(PROBLEM, probability=0.5, sampling=2.0)


def method(memory: bool = True, rate: float | str = "auto", pp: str = "pp2", **down: Any) -> Method:
    """s = 1 on nine coordinates, omega = 3, so alpha = 1/8 and a = 1/2 by default."""
    uplink = Uplink(memory=memory, rate=rate)  # type: ignore[arg-type]
    return Method(uplink, Downlink(**down), ServerOptions(memory=pp), 9)  # type: ignore[arg-type]


def test_artemis_without_memory() -> None:
    step = ARTEMIS.admissible(PROBLEM, method(False)).server
    assert step == pytest.approx(1 / (1.5 * (1 + 0.25 * 1.75 * 2 * 4)))
    said = ARTEMIS.promise(PROBLEM, method(False), 0.02, 0.0, NOISE)
    assert said.rate == pytest.approx(0.02 * 0.1)
    assert said.floor == pytest.approx(2 * 0.02 * 1.5 * 0.25 * (4 * 0.7 + 3 * 0.3) / 0.1)
    exact = replace(PROBLEM, full_gradient=True, up=0.0, down=0.0)
    assert ARTEMIS.admissible(exact, method(False)).server == 1.0, "gradient descent: 1 / L"


@pytest.mark.parametrize(
    ("problem", "pp", "kappa", "q", "e"),
    [(PROBLEM, "pp2", 4, 3, 0), (HALVED, "pp2", 8, 7, 0), (HALVED, "pp1", 8, 6, 1)],
)
def test_artemis_with_memories(problem: Problem, pp: str, kappa: float, q: float, e: float) -> None:
    steps = ARTEMIS.admissible(problem, method(pp=pp))
    assert steps.server == pytest.approx(1 / (1.5 * (1 + 0.25 * 1.75 * (2 * kappa + 4 * q))))
    assert steps.alpha == 0.25
    theta = 0.02 * 0.1 / (problem.probability / 8)
    said = ARTEMIS.promise(problem, method(pp=pp), 0.02, 0.0, NOISE)
    assert said.floor == pytest.approx(2 * 0.02 * 1.5 * 0.25 * ((kappa + q / (1 - theta)) * 0.7 + e * 0.3) / 0.1)


def test_memories_limit_the_step_of_artemis() -> None:
    slow = ARTEMIS.admissible(HALVED, method(rate=1e-3))
    assert slow.server == pytest.approx(1e-3 * 0.5 / (2 * 0.1))
    fast = ARTEMIS.admissible(PROBLEM, method(rate=0.25))
    assert fast.server == pytest.approx(1 / (1.5 * (1 + 0.25 * 1.75 * (8 + 4 * 3 * 2)))), "a = 1, r = 2"
    exact = ARTEMIS.admissible(replace(PROBLEM, full_gradient=True), method(rate=0.25))
    assert exact.server == pytest.approx(1 / (1.5 * (1 + 0.25 * 1.75 * (6 + 4 * 3)))), "full gradients: r = 1"


@pytest.mark.parametrize("each", [False, True])
def test_a_preserved_model(each: bool) -> None:
    """MCM: gamma (L + K) + gamma^2 (8 b / rho) (L (1 + 2 / rho) + K) = 1, with omega_dwn = 3 and beta = 1/8."""
    found, constants = method(memory=False, each=each), replace(PROBLEM, down=3.0)
    found = replace_downlink(found, memory="model", each=each)
    step = PRESERVED.admissible(constants, found).server
    smooth, noisy = 1.5 if each else 1.0, 0.25 * 1.75 * 8
    rho = 2 / 8 - 4 / 64
    square = 8 * 3 * smooth / rho * (smooth * (1 + 2 / rho) + noisy)
    assert step * (smooth + noisy) + step**2 * square == pytest.approx(1)
    said = PRESERVED.promise(constants, found, step, 0.0, NOISE)
    assert said.rate == pytest.approx(0.1 * step)
    weight = 8 * step * 3 * smooth / rho
    assert said.floor == pytest.approx(2 * step * 0.25 * (1 + weight) * (4 * 0.7 + 3 * 0.3) / 0.1)


def test_a_preserved_model_by_a_contraction() -> None:
    """EF21-P: rho = delta, b = (3/2) L, half the budget and half the rate."""
    found = replace_downlink(method(), compressor=TopK(fraction=0.5), memory="model")
    constants = replace(PROBLEM, down=math.inf)
    step = PRESERVED.admissible(constants, found).server
    noisy = 0.25 * 1.75 * (8 + 12)
    assert step * (1 + noisy) + step**2 * 8 * 1.5 / 0.5 * (1 + 4 + noisy) == pytest.approx(0.5)
    said = PRESERVED.promise(constants, found, step, 0.0, NOISE)
    assert said.rate == pytest.approx(0.1 * step / 2)
    weight = 8 * step * 1.5 / 0.5
    assert said.floor == pytest.approx(2 * step * 0.25 * (1 + weight) * (4 + 4 * 0.5 * 3) * 0.7 / 0.05)


def replace_downlink(found: Method, **down: Any) -> Method:
    return Method(found.uplink, Downlink(**{"compressor": Quantize(), **down}), found.server, found.d)


def test_estimates_that_follow_changes() -> None:
    theta = 1 - 0.9
    assert EF21.admissible(PROBLEM, method()).server == pytest.approx(1 / (1 + 1.25 * (2 * 0.81 / theta**2) ** 0.5))
    marina = Method(Uplink(memory=True, correction=0.0, synchronise="auto"), Downlink(), ServerOptions(), 9)
    assert MARINA.admissible(PROBLEM, marina).server == pytest.approx(1 / (1 + 1.25 * (2 * 0.75 * 3 / 4 / 0.25) ** 0.5))
    assert DASHA.admissible(PROBLEM, method()).server == pytest.approx(1 / (1 + 1.25 * (4 * 3 * 19 / 4) ** 0.5))
    steep = replace(PROBLEM, convexity=0.9)
    assert EF21.admissible(steep, method()).server == pytest.approx(0.05 / 0.9), "gamma mu <= theta / 2"
    said = EF21.promise(PROBLEM, method(), 0.02, 0.0, NOISE)
    assert (said.rate, said.floor, said.measure) == (pytest.approx(0.002), 0.0, "excess loss")


def test_constants_of_partial_participation_and_batches() -> None:
    """sampling of k of n, L_b against the definition on the worst pair of models, mu of F."""
    setup = prepare(small("diana", participation={"scheme": "k-of-n", "k": 2}, server={"weights": "uniform"}))
    found = problem(setup.experiment, setup.federation, setup.task)
    assert (found.probability, found.share) == (pytest.approx(1 / 3), pytest.approx(1 / 6))
    assert found.sampling == pytest.approx(1 + 2 * 6 / 5)
    rows = setup.federation.features.reshape(6, 20, 5).numpy()
    mean = np.mean([2 * part.T @ part / 20 for part in rows], axis=0)
    assert found.convexity == pytest.approx(0.5 + np.linalg.eigvalsh(mean)[0])
    assert found.convexity == pytest.approx(mean_convexity(setup.experiment.server, setup.federation, setup.task))
    assert found.smoothness >= np.linalg.eigvalsh(mean)[-1] + 0.5
    random = np.random.default_rng(0)
    worst = 0.0
    for part in rows:
        hessians = 2 * part[:, :, None] * part[:, None, :] + 0.5 * np.eye(5)
        whole = hessians.mean(0)
        for u in random.standard_normal((50, 5)):
            moved = hessians @ u
            share = (20 - 5) / (5 * 19)
            second = share * (moved**2).sum(1).mean() + (1 - share) * ((whole @ u) ** 2).sum()
            worst = max(worst, second / (u @ whole @ u))
    assert 0.3 * found.batch_smoothness < worst <= found.batch_smoothness


COVERED: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "sgd-mem": ("sgd-mem", HALF),
    "qsgd": ("qsgd", {}),
    "diana": ("diana", {}),
    "bi-qsgd": ("bi-qsgd", {}),
    "artemis": ("artemis", {}),
    "pp1": ("artemis", {"server": {"memory": "pp1"}} | HALF),
    "pp2": ("artemis", HALF),
    "k-of-n": ("artemis", {"participation": {"scheme": "k-of-n", "k": 3}}),
    "mcm": ("mcm", HALF),
    "rand-mcm": ("rand-mcm", {}),
    "ef21-p-diana": ("ef21-p-diana", {"downlink": {"fraction": 0.4}}),
}


@pytest.mark.parametrize("name", COVERED)
def test_the_bound_on_the_distance_is_kept(name: str) -> None:
    """At the largest admissible step: ||w_k - w*||^2 of one run against (1 - rate)^k V_0 + floor, in 300 rounds.

    V_0 is taken to be the distance alone, which makes the test stricter.
    """
    algorithm, tables = COVERED[name]
    setup = prepare(small(algorithm, **tables))
    said = promised(setup)
    assert said.covered, said.reasons
    assert said.admissible == pytest.approx(setup.step)
    assert said.bound is not None
    assert said.rate is not None
    found = distances(setup, 300)
    assert (found <= (1 - said.rate) ** np.arange(300) * found[0] + said.bound).all()


def distances(setup: Setup, rounds: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    best, state, found = noise(setup.experiment, setup.federation, setup.task).optimum, initial_state(setup), []
    for _ in range(rounds):
        found.append(float((state.server.model - best).square().sum()))
        play(setup, state)
    return np.array(found)


@pytest.mark.parametrize("algorithm", ["ef21", "marina", "dasha"])
def test_the_bound_on_the_excess_is_kept(algorithm: str) -> None:
    """F - F* against (1 - gamma mu)^k Psi_0, Psi_0 with the first errors -grad F_i(w_0); and it falls by the rate."""
    uplink = {"uplink": {"fraction": 0.4}} if algorithm == "ef21" else {}
    setup = prepare(small(algorithm, **FULL, **uplink))
    said, constants = promised(setup), problem(setup.experiment, setup.federation, setup.task)
    assert said.covered
    assert said.floor_loss == said.floor_distance == 0.0
    assert said.rate is not None
    everything, state = setup.federation.all(), initial_state(setup)
    best = noise(setup.experiment, setup.federation, setup.task)
    rows = [setup.federation.shard(i) for i in range(6)]
    slopes = [torch.autograd.functional.jacobian(lambda w, s=s: loss(setup, w, s), state.server.model) for s in rows]
    each, mean = np.mean([float(s.square().sum()) for s in slopes]), float(torch.stack(slopes).mean(0).square().sum())
    if algorithm == "ef21":
        error = each / (1 - math.sqrt(1 - constants.up_delta))
    elif algorithm == "marina":
        error = mean * (1 + constants.up)
    else:
        error = mean * (1 + 2 * constants.up) + 4 * constants.up / 6 * each
    start = setup.task.loss(state.server.model, everything) - best.value + setup.step * error
    for k in range(400):
        if k % 10 == 0:
            excess = setup.task.loss(state.server.model, everything) - best.value
            assert excess <= (1 - said.rate) ** k * start
        play(setup, state)


def loss(setup: Setup, model: torch.Tensor, shard: Any) -> torch.Tensor:
    return (shard.features @ model - shard.targets).square().mean() + 0.25 * model.square().sum()


def test_far_beyond_the_admissible_step_nothing_is_promised_and_runs_diverge() -> None:
    """EF21 and gradient descent at 2.1 / max lambda, and a step of artemis whose noise feeds itself."""
    setup = prepare(small("sgd", **FULL))
    curvature = setup.task.hessian(setup.task.initial(0), setup.federation.all())  # type: ignore[union-attr]
    beyond = 2.1 / float(torch.linalg.eigvalsh(curvature)[-1])
    for algorithm, tables in (("sgd", FULL), ("ef21", FULL | {"uplink": {"fraction": 1.0}})):
        setup = prepare(small(algorithm, beyond, **tables))
        assert not predicted(setup).covered
        found = distances(setup, 400)
        assert found[-1] > 100 * found[0]
    wild = predicted(prepare(small("sgd", beyond)))
    assert any("no run stays there" in reason for reason in wild.reasons)
    noisy = prepare(small("artemis", 0.9 * beyond))
    said = predicted(noisy)
    assert any("no stationary law" in reason for reason in said.reasons)
    assert said.floor_loss is None
    assert distances(noisy, 300)[-1] > 100


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("artemis", HALF | {"server": {"paper_compat": True}}, "is not divided"),
    ("artemis", HALF | {"server": {"normalise": "present"}}, "is not divided"),
    ("artemis", {"local": {"batch": 5, "order": "reshuffle"}}, "nor one gradient of a fresh batch"),
    ("artemis", {"downlink": {"memory": "update"}}, "the downlink remembers updates"),
    ("artemis", {"server": {"clip": 1.0, "memory": "pp1", "weights": "uniform"}}, "directions are not averaged"),
    ("rand-mcm", HALF, "not every client takes part"),
    ("mcm", {"uplink": {"correction": "auto"}}, "messages are corrected"),
    ("ef21-p-diana", {"downlink": {"rate": 0.5}}, "biased and its memory slow"),
    ("ef21", {}, "a round is not one full gradient"),
    ("ef21", FULL | HALF, "not every client takes part"),
    ("ef21-bc", FULL, "the downlink is compressed"),
    ("ef21", FULL | {"uplink": {"compressor": "quantize", "rate": 0.1}}, "do not take over all"),
    ("ef21", FULL | {"uplink": {"compressor": "quantize", "rate": 0.6, "levels": 2}}, "no contraction"),
    ("marina", FULL | {"uplink": {"correction": 0.1}}, "neither those of MARINA"),
    ("dasha", FULL | {"uplink": {"correction": 0.3}}, "not corrected as in DASHA"),
    ("stc", {}, "the uplink's compressor is biased"),
    ("dore", {"server": {"step": 0.01}}, "the downlink has error feedback"),
]


@pytest.mark.parametrize(("algorithm", "tables", "reason"), REFUSED)
def test_what_no_theorem_covers_says_why(algorithm: str, tables: dict[str, Any], reason: str) -> None:
    said = predicted(prepare(small(algorithm, 0.01, **tables)))
    assert not said.covered
    assert any(reason in found for found in said.reasons), said.reasons
    assert said.rate is said.floor_loss is None


def test_theory_steps_of_new_methods_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"theory.*a round is not one full gradient"):
        prepare(small("ef21"))
    with pytest.raises(ConfigError, match="learn at most at"):
        prepare(small("diana", uplink={"rate": 0.9, "levels": 4}))


def test_k_of_n_is_expected_whatever_the_normaliser() -> None:
    """With k of n clients of equal weight the weight of those present is what is expected."""
    tables = {"participation": {"scheme": "k-of-n", "k": 3}, "server": {"normalise": "present"}}
    assert promised(prepare(small("qsgd", 0.001, **tables))).covered


def test_a_network_has_no_theory() -> None:
    network = fedsim.Experiment.of(task={"kind": "mlp"}, server={"step": 0.1})
    said = predicted(prepare(network))
    assert (said.covered, said.optimum, said.step) == (False, None, 0.1)
    assert "convex" in said.reasons[0]
