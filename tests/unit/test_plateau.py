"""The stationary law: its noise against closed forms, its level against runs, and where there is none."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import fedsim
from fedsim.simulation.constants import noise
from fedsim.simulation.engine import play
from fedsim.simulation.plateau import Plateau, Probe, plateau, survey
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import initial_state
from fedsim.simulation.theory import predict, predicted
from tests.replication.saturation import measured
from tests.theory_problem import FULL, HALF, small

SIX: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "qsgd": ("qsgd", {}),
    "diana": ("diana", {}),
    "artemis": ("artemis", {}),
    "pp1": ("artemis", HALF | {"server": {"memory": "pp1"}}),
    "pp2": ("artemis", HALF),
}


def first_order(setup: Setup, covariance: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The excess tr(H S) / 2 with this Sigma in closed form, and how far 256 rounds of residuals are off, in sigmas."""
    valley = survey(setup)
    values, vectors = valley.values.numpy(), valley.vectors.numpy()
    spread = np.einsum("ja,jk,ka->a", vectors, covariance, vectors)
    weights = setup.step / (2 * (2 - setup.step * values))  # curvature times S_aa over Sigma_aa, halved
    exact = float(weights @ spread)
    samples = Probe(setup, valley).residuals(None, None).square().numpy() @ weights
    return exact, float((samples.mean() - exact) / (samples.std() / len(samples) ** 0.5))


def test_the_noise_of_mini_batches_in_closed_form() -> None:
    """sgd: Sigma = sum_i v_i^2 Cov(g_i), for 5 of 20 samples. Within 4 deviations; the noise is nearly Gaussian."""
    setup = prepare(small("sgd", 0.01))
    best = survey(setup).best.numpy()
    covariance = np.zeros((5, 5))
    for i in range(6):
        shard = setup.federation.shard(i)
        x, y = shard.features.numpy(), shard.targets.numpy()
        rows = 2 * (x @ best - y)[:, None] * x
        rows -= rows.mean(0)
        covariance += rows.T @ rows / 20 * (20 - 5) / (5 * 19) / 36
    exact, off = first_order(setup, covariance)
    assert exact > 0
    assert abs(off) < 4


def test_the_noise_of_a_quantizer_in_closed_form() -> None:
    """qsgd with full gradients: coordinate j of g_i has the variance (||g_i|| / s)^2 f (1 - f)."""
    setup = prepare(small("qsgd", 0.01, **FULL))
    best = survey(setup).best.numpy()
    covariance = np.zeros((5, 5))
    for i in range(6):
        shard = setup.federation.shard(i)
        x, y = shard.features.numpy(), shard.targets.numpy()
        row = 2 * x.T @ (x @ best - y) / 20 + 0.5 * best
        unit = np.linalg.norm(row)
        fraction = np.abs(row) / unit % 1
        covariance += np.diag(unit**2 * fraction * (1 - fraction)) / 36
    assert abs(first_order(setup, covariance)[1]) < 4


def test_memories_fluctuate_as_derived() -> None:
    """E||m||^2 = alpha (1 + omega) / (2 - alpha (1 + omega)) sigma*^2, exactly for rand-k of variance omega ||x||^2.

    2000 rounds of 6 clients, correlated over some 2 / alpha = 20: 600 independent rows, so 4 deviations are below 20 %.
    """
    setup = prepare(small("diana", 0.01, uplink={"compressor": "rand-k", "fraction": 0.2}))
    omega, alpha = setup.method.uplink.compressor.omega(5), setup.method.alpha
    assert (omega, alpha) == (4.0, 0.1)
    valley = survey(setup)
    probe, found = Probe(setup, valley), []
    assert probe.state.store.memory is not None
    rest = probe.state.store.memory.dense.clone()
    for t in range(2000):
        probe.round(torch.zeros(5, dtype=torch.float64))
        if t >= 50:
            found.append(float((probe.state.store.memory.dense - rest).square().sum(1).mean()))
    sigma = noise(setup.experiment, setup.federation, setup.task).batch
    assert np.mean(found) == pytest.approx(alpha * 5 / (2 - alpha * 5) * sigma, rel=0.2)


@pytest.mark.parametrize("name", SIX)
def test_runs_level_off_where_predicted(name: str) -> None:
    """Within a factor of 2; see ``tests.replication.saturation`` for larger problems. Step 0.02, 1200 rounds."""
    algorithm, tables = SIX[name]
    setup = prepare(small(algorithm, 0.02, **tables))
    found = plateau(setup)
    assert isinstance(found, Plateau)
    ratio = measured(setup, 1200) / found.loss
    print(f"{name}: {found}, measured / predicted {ratio:.2f}")
    assert 0.5 <= ratio <= 2
    assert found.least <= found.distance


def test_a_prediction_has_all_that_theory_says() -> None:
    said = predict(small("diana"))
    assert said.covered
    assert said.reasons == []
    assert said.floor_loss is not None
    assert said.floor_distance is not None
    assert said.bound is not None
    assert said.least is not None
    assert said.admissible == pytest.approx(said.step)
    assert 0 < said.least <= said.floor_distance <= said.bound
    assert said.first == pytest.approx(said.floor_loss, rel=0.3)


def test_the_course_of_gradient_descent_is_exact() -> None:
    """Least squares without noise: each direction falls by (1 - gamma lambda)^2; messages are rounded to float32."""
    setup = prepare(small("sgd", **FULL))
    said = predicted(setup)
    assert (said.covered, said.floor_loss, said.floor_distance) == (True, 0.0, 0.0)
    assert said.course[-1][0] == 2000
    expected, state = dict(said.course), initial_state(setup)
    for k in range(60):
        if k in expected:
            found = setup.task.loss(state.server.model, setup.federation.all())
            assert found == pytest.approx(expected[k], rel=1e-6)
        play(setup, state)


@pytest.mark.parametrize(("algorithm", "tables"), [("diana", FULL), ("artemis", FULL | HALF), ("mcm", FULL)])
def test_without_noise_at_the_optimum_there_is_no_floor(algorithm: str, tables: dict[str, Any]) -> None:
    """At a step that no theorem admits: noise put there dies out, and so does the excess of a run."""
    setup = prepare(small(algorithm, 0.1, **tables))
    said = predicted(setup)
    assert not said.covered
    assert said.floor_loss == said.floor_distance == 0.0
    assert said.gain is not None
    assert 0 < said.gain < 0.5
    state = initial_state(setup)
    for _ in range(300):
        play(setup, state)
    assert setup.task.loss(state.server.model, setup.federation.all()) - (said.optimum or 0) < 1e-9


def test_without_noise_at_the_optimum_noise_can_still_grow() -> None:
    said = predicted(prepare(small("artemis", 0.2, **FULL, **HALF)))
    assert said.floor_loss is None
    assert "in the mean square, noise grows" in said.reasons[-1]


def test_a_course_ends_at_the_floor() -> None:
    said = predicted(prepare(small("artemis", 0.02)))
    assert said.optimum is not None
    assert said.floor_loss is not None
    assert said.course[-1][1] == pytest.approx(said.optimum + said.floor_loss)
    assert said.course[0][1] > said.optimum + said.floor_loss


def test_clients_that_count_alike_rest_above_the_smallest_mean_loss() -> None:
    """Uniform weights and unequal clients: the objective's minimum is not that of the loss that is measured."""
    tables: dict[str, Any] = {
        "data": {"source": "breast-cancer"},
        "partition": {"scheme": "dirichlet", "alpha": 0.5, "clients": 5},
        "task": {"kind": "logistic", "l2": 0.1},
        "local": {"batch": 4},
    }
    alike = predicted(prepare(small("sgd", 0.01, **tables, server={"weights": "uniform"})))
    pooled = predicted(prepare(small("sgd", 0.01, **tables)))
    assert alike.optimum == pooled.optimum
    assert alike.floor_loss is not None
    assert pooled.floor_loss is not None
    assert alike.floor_loss > 1.2 * pooled.floor_loss


def test_flat_directions_have_a_loss_but_no_distance() -> None:
    """Softmax without l2 has as many equal models as there are classes' shifts; no theorem covers it."""
    flat = fedsim.Experiment.of(
        algorithm="qsgd",
        rounds=10,
        data={"source": "synthetic-logistic"},
        task={"kind": "softmax"},
        local={"batch": 8},
        server={"step": 0.01},
    )
    said = predicted(prepare(flat))
    assert (said.theorem, said.covered, said.floor_distance, said.bound) == ("", False, None, None)
    assert "not strongly convex" in said.reasons[0]
    assert said.floor_loss is not None
    assert said.floor_loss > 0
    assert said.rate is not None
    assert 0 < said.rate < 1


def test_a_noise_that_mostly_feeds_itself_is_called_rough() -> None:
    said = predicted(prepare(small("artemis", 0.16)))
    assert said.gain is not None
    assert said.gain > 0.5
    assert "the floor is rough" in said.reasons[-1]


def test_what_has_no_stationary_law() -> None:
    network = fedsim.Experiment.of(task={"kind": "mlp"}, server={"step": 0.1})
    assert "is computed for convex tasks" in str(plateau(prepare(network)))
    separated = small("sgd", 0.01, data={"source": "breast-cancer"}, task={"kind": "logistic"})
    assert "the classes are separated" in str(plateau(prepare(separated)))
    large = small("sgd", 0.01)
    large = msgspec.structs.replace(large, data=msgspec.structs.replace(large.data, features=1024))
    assert "up to 1024 coordinates, not for 1025" in str(plateau(prepare(large)))
