"""Which theorem covers an experiment, the steps it admits, what it promises; and that the promise is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.method import Downlink, Method, ServerOptions, Uplink
from fedsim.algorithms.theory.nastya import admissible, promise
from fedsim.cli.theory import theory
from fedsim.errors import ConfigError
from fedsim.simulation.constants import noise, problem, setting, theory_steps
from fedsim.simulation.setup import prepare
from fedsim.simulation.theory import promised
from fedsim.solvers.order import reshuffle
from fedsim.tasks import Batch
from fedsim.tasks.task import full_batch
from tests.theory_problem import NOISE, PROBLEM

EPOCHS = replace(PROBLEM, batches=5)


def method(memory: bool, rate: float | str = "auto", **server: object) -> Method:
    return Method(
        Uplink(memory=memory, rate=rate if memory else "auto"),
        Downlink(),
        ServerOptions(**server),
        9,  # type: ignore[arg-type]
    )


def nastya(**changes: object) -> fedsim.Experiment:
    """DIANA-NASTYA on breast_cancer sorted by label, 8 clients of equal size, 8 mini-batches each."""
    tables: dict[str, object] = {
        "algorithm": "diana",
        "rounds": 1,
        "data": {"source": "breast-cancer", "test_fraction": 57 / 569},
        "partition": {"scheme": "shards", "clients": 8, "per_client": 1},
        "participation": {"scheme": "full"},
        "task": {"kind": "logistic", "l2": 0.1},
        "local": {"order": "reshuffle", "epochs": 1, "batch": 8, "step": "theory"},
        "server": {"step": "theory", "weights": "uniform"},
        "uplink": {"bucket": 8},
        "run": {"precision": "float64"},
    }
    for name, table in changes.items():
        old = tables.get(name)
        tables[name] = {**old, **table} if isinstance(old, dict) and isinstance(table, dict) else table
    return fedsim.Experiment.of(**tables)


def test_the_steps_are_those_of_the_theorems() -> None:
    with_memory = admissible(EPOCHS, method(True, 0.125))
    assert with_memory.server == 1 / (16 * 2 * (1 + 9 * 3 / 4) * 1.5)
    assert with_memory.local == 1 / (16 * 5 * 2)
    assert with_memory.alpha == 1 / 4
    assert "extended to a compressed downlink" in with_memory.theorem
    assert admissible(EPOCHS, method(True, 1e-6)).server == 1e-6 / (2 * 0.1)
    without = admissible(EPOCHS, method(False))
    assert (without.server, without.local, without.alpha) == (1 / (16 * 2 * (1 + 3 / 4)), 1 / (5 * 5 * 2), 0.0)


def test_the_promise_is_that_of_the_theorems() -> None:
    drift = 4.5 * 0.01**2 * 5 * 2 / 0.1 * (6 * 0.3 + 0.7)
    assert promise(EPOCHS, method(True), 0.2, 0.01, NOISE).floor == pytest.approx(drift, rel=1e-12)
    noisy = promise(EPOCHS, method(False), 0.2, 0.01, NOISE)
    assert noisy.rate == 0.2 * 0.1 / 2
    assert noisy.floor == pytest.approx(drift + 8 * 0.2 * 3 * 0.3 / (0.1 * 4), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": {"l2": 0.0}}, "not strongly convex"),
        ({"participation": {"scheme": "bernoulli", "p": 0.5}}, "not every client takes part"),
        ({"rate": {"rule": "salr"}}, "step sizes vary"),
        ({"server": {"schedule": "inverse-sqrt"}}, "step sizes vary"),
        ({"direction": {"kind": "momentum"}}, "the local direction is not the gradient"),
        ({"local": {"order": "incremental"}}, "neither one full gradient nor one epoch of reshuffling"),
        ({"local": {"order": "with-replacement", "epochs": 0, "batch": 0}}, "nor one gradient of a fresh batch"),
        ({"local": {"order": "tests.plugins_example:there_and_back", "batch": 0}}, "neither one full gradient nor"),
        ({"local": {"send": "difference"}}, "clients send the difference"),
        ({"uplink": {"memory": False}, "downlink": {"compressor": "quantize"}}, "there are no memories"),
        ({"uplink": {"feedback": "step"}, "server": {"step": 0.01}}, "the uplink has error feedback"),
        ({"downlink": {"compressor": "quantize", "feedback": 0.1}}, "the downlink has error feedback"),
        ({"downlink": {"compressor": "half"}}, "the downlink's compressor is biased"),
        ({"downlink": {"compressor": "quantize", "memory": "model"}}, "the downlink has a memory"),
        ({"uplink": {"correction": "auto"}}, "messages are corrected"),
        ({"uplink": {"synchronise": 0.5}}, "messages are corrected, or now and then in full"),
        ({"server": {"memory": "pp1", "weights": "uniform", "clip": 1.0}}, "directions are not averaged"),
        ({"partition": {"scheme": "dirichlet", "alpha": 1.0, "clients": 8, "per_client": 1}}, None),
    ],
)
def test_an_experiment_that_no_theorem_covers_says_why(changes: dict[str, object], reason: str | None) -> None:
    if reason is None:
        changes = {"partition": {"scheme": "quantity", "alpha": 1.0, "clients": 8}}
        tables = nastya().table() | changes
        with pytest.raises(ConfigError, match="different numbers of mini-batches"):
            prepare(fedsim.Experiment.of(**tables))
        return
    with pytest.raises(ConfigError, match=rf"= 'theory': 'theory': no theorem covers this experiment: .*{reason}"):
        prepare(nastya(**changes))


def test_constants_of_a_problem() -> None:
    """Sample smoothness against the Hessian of every single sample; zeta^2 and sigma^2 against their definitions."""
    setup = prepare(nastya())
    task, federation, experiment = setup.task, setup.federation, setup.experiment
    constants = problem(experiment, federation, task)
    assert (constants.clients, constants.batches, constants.convexity) == (8, 8, 0.1)
    largest = (federation.features.square().sum(1) / 4).max() + 0.1
    assert constants.sample_smoothness == pytest.approx(float(largest), rel=1e-12)
    found = noise(experiment, federation, task)
    rows = []
    for i in range(8):
        shard = federation.shard(i)
        single = Batch(shard.features[:, None], shard.targets[:, None], torch.ones(64, 1, dtype=torch.float64))
        rows.append(task.gradients(found.optimum.expand(64, -1), single)[0])
    gradients = torch.stack(rows)
    means = gradients.mean(1)
    assert float(means.mean(0).norm()) < 1e-10
    assert found.client == pytest.approx(float(means.square().sum(1).mean()), rel=1e-9)
    variance = float((gradients - means[:, None]).square().sum(2).mean())
    assert found.batch == pytest.approx(variance * (64 - 8) / (8 * 63), rel=1e-9)


@pytest.mark.parametrize(("batch", "heaviest"), [(8, 1.0), (40, 2 * 40 / 64), (24, 3 * 24 / 64)])
def test_a_short_last_batch_counts_in_the_constants(batch: int, heaviest: float) -> None:
    """sigma^2 against its definition on 4000 of fedsim's passes (their mean is off by 1 % or so), and L_max."""
    experiment = nastya(local={"batch": batch})
    setup = prepare(experiment)
    task, federation = setup.task, setup.federation
    found, steps, passes = noise(experiment, federation, task), -(-64 // batch), 4000
    l2, best = 0.1, found.optimum
    total = 0.0
    for i in range(8):
        shard = federation.shard(i)
        single = Batch(shard.features[:, None], shard.targets[:, None], torch.ones(64, 1, dtype=torch.float64))
        data = task.gradients(best.expand(64, -1), single)[0] - l2 * best
        for epoch in range(passes // 8):
            pieces = data[reshuffle(7, i, 64, epoch, 8)].split(batch)
            rows = torch.stack([steps / 64 * piece.sum(0) for piece in pieces])
            total += float((rows - data.mean(0)).square().sum(1).mean()) / passes
    assert found.batch == pytest.approx(total, rel=0.05)
    single_sample = task.sample_smoothness(federation.all())
    assert problem(experiment, federation, task).sample_smoothness == pytest.approx(heaviest * single_sample)


def test_the_optimum_is_that_of_clients_that_count_alike() -> None:
    """Clients of unequal size with uniform weights: their gradients at x* have mean zero."""
    experiment = nastya(local={"batch": 0, "epochs": 0, "order": "fresh", "step": 0.1})
    partition = {"scheme": "quantity", "alpha": 0.3, "clients": 5}
    setup = prepare(fedsim.Experiment.of(**experiment.table() | {"partition": partition}))
    task, federation = setup.task, setup.federation
    assert len(set(federation.sizes.tolist())) > 1
    found = noise(setup.experiment, federation, task)
    shards = [federation.shard(i) for i in range(federation.clients)]
    rows = [task.gradients(found.optimum[None], full_batch(s.features, s.targets, torch.float64))[0] for s in shards]
    assert float(torch.cat(rows).mean(0).norm()) < 1e-10
    losses = [task.loss(found.optimum, shard) for shard in shards]
    assert found.value == pytest.approx(sum(losses) / len(losses))


def test_memories_that_learn_too_fast_are_outside_the_theorem(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"learn at most at 0\..*, but uplink.rate = 1; use uplink.rate = 'auto'"):
        prepare(nastya(uplink={"rate": 1.0}))
    fast = nastya(uplink={"rate": 0.4}, server={"step": 1e-6}, local={"step": 1e-6})
    theory(None, [f"{key}={value}" for key, value in flat(fast.table())])
    assert "(not promised: steps or rate are larger)" in capsys.readouterr().out


def squared_distances(experiment: fedsim.Experiment, rounds: int) -> list[float]:
    from fedsim.simulation.engine import play
    from fedsim.simulation.state import initial_state

    setup = prepare(experiment)
    best = noise(experiment, setup.federation, setup.task).optimum
    state, distances = initial_state(setup), []
    for _ in range(rounds):
        distances.append(float((state.server.model - best).square().sum()))
        play(setup, state)
    return distances


@pytest.mark.parametrize("down", ["identity", "quantize"])
def test_the_bound_holds_at_the_largest_admissible_steps(down: str) -> None:
    """Theorem 2.4 and its extension to a compressed downlink: Psi_0 bounds r_0; 40 rounds, one run."""
    experiment = nastya(downlink={"compressor": down, **({"bucket": 8} if down == "quantize" else {})})
    setup = prepare(experiment)
    assert setup.step == theory_steps(experiment, setup.federation, setup.task).server
    said = promised(setup)
    found = noise(experiment, setup.federation, setup.task)
    omega, alpha = experiment.uplink.compressor.omega(setup.task.dim), setup.method.alpha
    distances = squared_distances(experiment, 40)
    start = distances[0] + 8 * omega * setup.step**2 / (alpha * 8) * found.client
    for t, distance in enumerate(distances):
        assert distance <= (1 - said.rate) ** t * start + said.bound


def bidirectional(rate: float | str = "auto", seed: int = 0) -> fedsim.Experiment:
    """Least squares, 4 clients of 4 mini-batches of 5 samples, other compressors up and down."""
    return fedsim.Experiment.of(
        algorithm="artemis",
        seed=seed,
        data={"source": "synthetic-linear", "clients": 4, "per_client": 20, "features": 3},
        task={"l2": 1.0},
        local={"order": "reshuffle", "epochs": 1, "batch": 5, "step": "theory"},
        server={"step": "theory"},
        uplink={"levels": 4, "rate": rate},
        downlink={"levels": 8},
        run={"precision": "float64"},
    )


@pytest.mark.parametrize("rate", ["auto", 1e-3])
def test_the_steps_of_a_bidirectional_run_from_raw_numbers(rate: float | str) -> None:
    """min(alpha / (2 mu), 1 / (16 L_max (1 + 9 up / M) (1 + down))) in numpy; the small rate makes the first bind."""
    setup = prepare(bidirectional(rate))
    rows = setup.federation.features.numpy().reshape(4, 20, 4)
    mu = 1 + min(2 * np.linalg.eigvalsh(a.T @ a / 20)[0] for a in rows)
    l_max = 1 + max(2 * np.linalg.eigvalsh(np.outer(row, row))[-1] for row in rows.reshape(80, 4))
    up, down = min(4 / 4**2, 4**0.5 / 4), min(4 / 8**2, 4**0.5 / 8)
    alpha = 1 / (2 * (up + 1)) if rate == "auto" else float(rate)
    limits = alpha / (2 * mu), 1 / (16 * l_max * (1 + 9 * up / 4) * (1 + down))
    assert min(limits) == limits[0 if rate == 1e-3 else 1]
    assert setup.step == pytest.approx(min(limits), rel=1e-12)
    assert setup.plan.step == pytest.approx(1 / (16 * 4 * l_max), rel=1e-12)


@pytest.mark.slow
def test_the_lyapunov_function_of_a_bidirectional_run_stays_below_its_bound() -> None:
    """Theorem 2.4, extended, at the largest admissible steps: E Psi_t <= (1 - eta mu / 2)^t Psi_0 + floor.

    Psi = ||x - x*||^2 + (1 + down) 8 up eta^2 / (alpha M^2) sum_m ||h_m - grad f_m(x*)||^2; the mean of 4 runs.
    """
    from fedsim.simulation.engine import play
    from fedsim.simulation.state import initial_state

    rounds, seeds = 1200, range(4)
    values, bounds = np.zeros(rounds), np.zeros(rounds)
    for seed in seeds:
        setup = prepare(bidirectional(seed=seed))
        task, federation, constants = (
            setup.task,
            setup.federation,
            problem(setup.experiment, setup.federation, setup.task),
        )
        best = noise(setup.experiment, federation, task).optimum
        shards = [federation.shard(i) for i in range(4)]
        at_best = torch.cat(
            [task.gradients(best[None], full_batch(s.features, s.targets, torch.float64))[0] for s in shards]
        )
        weight = (1 + constants.down) * 8 * constants.up * setup.step**2 / (setup.method.alpha * 4**2)
        state, psi = initial_state(setup), []
        for _ in range(rounds):
            assert state.store.memory is not None
            memories = state.store.memory.dense
            distance = (state.server.model - best).square().sum()
            psi.append(float(distance + weight * (memories - at_best).square().sum()))
            play(setup, state)
        said = promised(setup)
        values += np.array(psi) / len(seeds)
        bounds += ((1 - said.rate) ** np.arange(rounds) * psi[0] + said.bound) / len(seeds)
    marks = range(0, rounds, 300)
    print("Psi / bound", {t: f"{values[t]:.2e} / {bounds[t]:.2e}" for t in [*marks, rounds - 1]})
    assert (values <= bounds).all()
    assert bounds[-1] < bounds[0] / 2


@pytest.mark.slow
def test_the_floor_of_diana_nastya_falls_with_the_square_of_the_local_step() -> None:
    """The gamma^2 law: the floor of ||x - x*||^2 grows by 3.9 +- 0.4 for each doubling of gamma."""
    floors = []
    for times in (0.5, 1.0, 2.0):
        steps = {"local": {"step": times / (8 * 10)}, "server": {"step": 0.05}}
        distances = squared_distances(nastya(**steps), 1500)
        floors.append(sum(distances[-300:]) / 300)
    ratios = [b / a for a, b in pairwise(floors)]
    print("floors", floors, "ratios", ratios)
    assert all(3.5 <= ratio <= 4.3 for ratio in ratios), ratios


def test_the_command_prints_what_covers_the_default_of_diana(capsys: pytest.CaptureFixture[str]) -> None:
    theory(None, [f"{key}={value}" for key, value in flat(nastya().table())])
    printed = capsys.readouterr().out
    assert "covered by Theorem 2.4 (DIANA-NASTYA); Sadiev et al., NeurIPS 2024" in printed
    assert "in use: 1 times" in printed
    theory(None, ["data.source=breast-cancer", "server.step=0.1", "task.l2=0.1", "algorithm=artemis-rr"])
    assert "no theorem covers this experiment: clients weigh differently" in capsys.readouterr().out
    theory(None, ["data.source=breast-cancer", "server.step=0.1", "task.l2=0.1", "algorithm=bi-qsgd"])
    printed = capsys.readouterr().out
    assert "would be covered by Theorem 1 (Artemis); Philippenko & Dieuleveut, arXiv 2006.14591" in printed
    assert "the server's step is 21.3 times" in printed
    assert "stationary law (derived, no bound)" in printed
    theory(
        None,
        ["data.source=breast-cancer", "server.step=100.0", "task.l2=0.1", "server.weights=uniform", "algorithm=sgd"],
    )
    assert "(not promised: steps or rate are larger)" in capsys.readouterr().out
    theory(None, ["data.source=breast-cancer", "task.l2=0.1", "algorithm=artemis-whitened"])
    assert "features are whitened" in capsys.readouterr().out


def flat(table: dict[str, object]) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            pairs += [(f"{key}.{name}", json.dumps(part)) for name, part in value.items()]
        else:
            pairs.append((key, value))
    return pairs


def test_setting_of_full_gradients() -> None:
    experiment = nastya(local={"order": "fresh", "epochs": 0, "batch": 0})
    setup = prepare(experiment)
    assert setting(experiment, setup.federation, setup.task).epoch_of_reshuffling
    assert problem(experiment, setup.federation, setup.task).batches == 1
    said = promised(setup)
    assert said.bound == 0
    assert math.isfinite(said.rate)
