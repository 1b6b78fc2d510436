"""Whitening in a federation, over real frames: whose moments, in which coordinates, at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.errors import ConfigError, DivergedError, StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry
from fedsim.randomness import SERVER, Purpose
from fedsim.simulation.engine import Round, play
from fedsim.simulation.forecast import forecast
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import State, initial_state
from fedsim.simulation.whitening import method_of
from fedsim.solvers import solve
from fedsim.solvers.metric import metric, split
from fedsim.tasks import optimum
from fedsim.tasks.layer import unpack
from fedsim.tasks.task import full_batch
from fedsim.wire.frame import HEADER_BYTES
from tests.conftest import Refused

ALONE: dict[str, Any] = {"direction": {"kind": "whitened", "damping": 0.1, "refresh": 1, "ema": 0.0}}
MODES: dict[str, dict[str, Any]] = {
    "shared": {"whitening": {"mode": "shared", "damping": 0.1}},
    "mixing": {"whitening": {"mode": "mixing"}, **ALONE},
    "alone": ALONE,
}
TRIANGLE = 65 * 66 // 2


def experiment(mode: str, **changes: Any) -> Experiment:
    tables: dict[str, Any] = {
        "algorithm": "sgd",
        "rounds": 20,
        "data": {"source": "digits", "test_fraction": 0.0},
        "partition": {"scheme": "iid", "clients": 10},
        "task": {"kind": "softmax", "l2": 1e-3},
        "participation": {"scheme": "full"},
        "server": {"step": 4.0},
        "uplink": {"values": "float64"},
        "downlink": {"values": "float64"},
        "run": {"precision": "float64"},
    }
    for name, table in {**MODES.get(mode, {}), **changes}.items():
        tables[name] = {**tables[name], **table} if name in ("server", "run") else table
    return Experiment.of(**tables)


def by_class(setup: Setup) -> Setup:
    """The same samples, each client holding one class."""
    targets = setup.federation.targets
    order, counts = torch.argsort(targets, stable=True), torch.bincount(targets)
    federation = replace(
        setup.federation,
        features=setup.federation.features[order],
        targets=targets[order],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )
    return replace(setup, federation=federation, weights=counts.to(setup.weights.dtype) / len(targets))


def rounds(setup: Setup, count: int) -> Iterator[tuple[State, Round]]:
    state = initial_state(setup)
    for _ in range(count):
        yield state, play(setup, state)


def final(setup: Setup, count: int) -> Tensor:
    *_, (state, _) = rounds(setup, count)
    return state.server.model


def test_one_worker_is_ten_workers() -> None:
    """Pooled moments of ten clients, and the model that they whiten, are those of one that holds all samples."""
    one, ten = (
        prepare(experiment("shared", partition={"scheme": "iid", "clients": n, "shuffle": False})) for n in (1, 10)
    )
    ten = by_class(ten)
    *_, (first, _) = rounds(one, 8)
    *_, (second, _) = rounds(ten, 8)
    assert first.pooled is not None
    assert second.pooled is not None
    torch.testing.assert_close(second.pooled.row, first.pooled.row, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(second.server.model, first.server.model, rtol=1e-10, atol=1e-10)
    assert float(first.server.model.abs().max()) > 1


def test_single_class_clients() -> None:
    """Ten clients of one class each, one step a round, 100 rounds: F - F* and accuracy (the minimum has .979).

    shared     5.5e-5   .979   the minimum of the pooled problem
    mixing     5.5e-5   .979   the same
    gradient   7.0e-3   .971
    alone      2.04     .102   another point, the same for every step size: sum G_m A_m^-1 = 0
    """

    def played(mode: str, step: float) -> tuple[float, float]:
        setup = by_class(prepare(experiment(mode, server={"step": step})))
        examples = setup.federation.all()
        metrics = setup.task.metrics(final(setup, 100), examples)
        return metrics["loss"] - optimum(setup.task, examples)[1], metrics["accuracy"]

    for mode in ("shared", "mixing"):
        gap, accuracy = played(mode, 8.0)
        assert gap < 1e-4
        assert accuracy > 0.975
    assert played("gradient", 4.0)[0] == pytest.approx(7.0e-3, rel=0.02)
    assert played("alone", 1.0)[0] == pytest.approx(2.03868, abs=1e-5)
    assert played("alone", 0.5)[0] == pytest.approx(2.03868, abs=1e-5)


def test_mixing_after_one_step_is_shared() -> None:
    """FedPM with one local step and "shared" with a refresh in every round: 1e-10 after 15 rounds."""
    shared = {"mode": "shared", "refresh": 1, "damping": 0.1}
    for changes in ({"task": {"kind": "softmax", "l2": 1e-3}}, {"task": {"kind": "mlp", "hidden": [7], "l2": 1e-3}}):
        first = final(by_class(prepare(experiment("shared", whitening=shared, **changes))), 15)
        second = final(by_class(prepare(experiment("mixing", **changes))), 15)
        torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-10)


def test_mixing_is_the_preconditioned_mean_of_models() -> None:
    """W_{t+1} = [sum v_m W_m A_m] [sum v_m A_m]^-1 with local steps of a mini-batch, transcribed."""
    local = {"steps": 3, "batch": 20, "order": "reshuffle", "step": 0.3, "send": "difference"}
    setup = by_class(prepare(experiment("mixing", local=local, server={"step": 1.0, "normalise": "present"})))
    (layer,) = setup.whitened
    state = initial_state(setup)
    for _ in range(3):
        start, before = state.server.model.clone(), dict(state.store.solvers)
        solution = solve(
            setup.task,
            setup.federation,
            start.expand(10, -1),
            torch.arange(10),
            setup.plan,
            setup.stream(Purpose.BATCH, state.server.round),
            before,
        )
        play(setup, state)
        numerator, denominator = torch.zeros(10, 65, dtype=torch.float64), torch.zeros(65, 65, dtype=torch.float64)
        for v, sent, memory in zip(setup.weights, solution.direction, solution.memories, strict=True):
            weight, bias = layer.take((start - sent)[None])
            assert bias is not None
            a = memory.direction["moment.0"].clone()
            a[:64, :64] += 0.1 * torch.trace(a[:64, :64]) / 64 * torch.eye(64, dtype=torch.float64)
            numerator += v * torch.cat([weight[0], bias[0][:, None]], dim=1) @ a
            denominator += v * a
        expected = numerator @ torch.linalg.inv(denominator)
        found, shift = layer.take(state.server.model[None])
        torch.testing.assert_close(found[0], expected[:, :64], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(shift[0] if shift is not None else None, expected[:, 64], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("feedback", [0.0, 0.2])
def test_shared_is_artemis_in_whitened_coordinates(feedback: float) -> None:
    """Artemis on W~ = W K^-T, b~ = b + W mu, transcribed: memories are mapped by K_old^-1 K_new at every refresh.

    Quantized both ways (s = 4), cohorts of 4 of 10 whose moments differ, a refresh in every second round; the same
    draws. 1e-8 after 9 rounds.
    """
    setup = by_class(
        prepare(
            experiment(
                "shared",
                algorithm="artemis",
                participation={"scheme": "k-of-n", "k": 4},
                whitening={"mode": "shared", "refresh": 2, "ema": 0.3, "damping": 0.05},
                uplink={"compressor": "quantize", "levels": 4, "feedback": 0.0},
                downlink={"compressor": "quantize", "levels": 4, "feedback": feedback},
                server={"step": 0.5},
            )
        )
    )
    (layer,), task = setup.whitened, setup.task
    state, alpha = initial_state(setup), setup.method.alpha
    d, clients = task.dim, setup.clients
    model, memories, mean_memory = task.initial(0), torch.zeros(clients, d, dtype=torch.float64), None
    error = torch.zeros(d, dtype=torch.float64)
    pooled, old = None, None
    up, down = setup.experiment.uplink.compressor, setup.experiment.downlink.compressor

    def blocks(row: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = layer.take(row[None])
        assert bias is not None
        return weight[0], bias[0]

    def row(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([weight.reshape(-1), bias])

    for t in range(9):
        cohort = setup.cohort(t)
        shards = [setup.federation.shard(i) for i in cohort.clients.tolist()]
        batches = [full_batch(shard.features, shard.targets, torch.float64) for shard in shards]
        if t % 2 == 0:
            shares = cohort.weights / cohort.weights.sum()
            new = sum(v * task.moments(model[None], b, (layer,))[0] for v, b in zip(shares, batches, strict=True))
            assert isinstance(new, Tensor)
            pooled = new if pooled is None else 0.3 * pooled + 0.7 * new
            mu, covariance = split(pooled, layer, 0.05)
            assert mu is not None
            k = torch.linalg.inv(torch.linalg.cholesky(covariance)).T

            def forth(gradient: Tensor, k: Tensor = k, mu: Tensor = mu) -> Tensor:
                weight, bias = blocks(gradient)
                return row((weight - torch.outer(bias, mu)) @ k, bias)

            if old is not None:
                old_k, old_mu = old

                def across(whitened: Tensor, k: Tensor = k, mu: Tensor = mu, a: Any = old_k, m: Any = old_mu) -> Tensor:
                    weight, bias = blocks(whitened)
                    gradient = weight @ torch.linalg.inv(a) + torch.outer(bias, m)
                    return row((gradient - torch.outer(bias, mu)) @ k, bias)

                def step_across(
                    whitened: Tensor, k: Tensor = k, mu: Tensor = mu, a: Any = old_k, m: Any = old_mu
                ) -> Tensor:
                    weight, bias = blocks(whitened)
                    v = weight @ a.T
                    return row(v @ torch.linalg.inv(k).T, bias - v @ m + v @ mu)

                memories = torch.stack([across(h) for h in memories])
                mean_memory = across(mean_memory)
                error = step_across(error)
            else:
                mean_memory = torch.zeros(d, dtype=torch.float64)
            old = (k, mu)
        directions = torch.stack([forth(task.gradients(model[None], b)[0][0]) for b in batches])
        assert mean_memory is not None
        rows = memories[cohort.clients]
        sent = up.decompress(
            up.compress(directions - rows, setup.stream(Purpose.UPLINK, t), cohort.clients), torch.float64
        )
        memories[cohort.clients] = rows + alpha * sent
        estimate = mean_memory + ((cohort.weights / cohort.probability)[:, None] * sent).sum(0)
        mean_memory = mean_memory + alpha * (cohort.weights[:, None] * sent).sum(0)
        estimate = estimate + feedback * error
        noise = setup.stream(Purpose.DOWNLINK, t)
        update = down.decompress(down.compress(estimate[None], noise, torch.tensor([SERVER])), torch.float64)[0]
        error = estimate - update
        weight, bias = blocks(model)
        old_k, old_mu = old
        white_weight, white_bias = weight @ torch.linalg.inv(old_k).T, bias + weight @ old_mu
        change_weight, change_bias = blocks(update)
        white_weight, white_bias = white_weight - 0.5 * change_weight, white_bias - 0.5 * change_bias
        weight = white_weight @ old_k.T
        model = row(weight, white_bias - weight @ old_mu)

        play(setup, state)
        torch.testing.assert_close(state.server.model, model, rtol=1e-8, atol=1e-8)
    assert float(model.abs().max()) > 0.5


def test_the_ledger_counts_every_frame_of_moments() -> None:
    """4 of 10 clients, a pooling every third round: lengths are those of the frames, nobody lacks moments he needs."""
    changes: dict[str, Any] = {
        "participation": {"scheme": "k-of-n", "k": 4},
        "whitening": {"mode": "shared", "refresh": 3},
        "run": {"precision": "float32"},
        "uplink": {},
        "downlink": {},
    }
    setup = prepare(experiment("shared", **changes))
    frame = HEADER_BYTES + 4 * TRIANGLE
    held = dict.fromkeys(range(10), 0)
    late = 0
    for t, (state, played) in enumerate(rounds(setup, 20)):
        cohort = setup.cohort(t).clients.tolist()
        poolings = t // 3 + 1
        lines = [part for part in played.lines if part.kind is Entry.MOMENTS]
        up = [part for part in lines if part.direction is Direction.UP]
        assert len(up) == (t % 3 == 0)
        for part in up:
            assert list(part.clients) == cohort
            assert list(part.frame_bytes) == [frame] * 4
            assert list(part.payload_bits) == [8 * (frame - HEADER_BYTES)] * 4
            assert list(part.formula_bits) == [32.0 * TRIANGLE] * 4
        replayed = {c for part in played.lines if part.kind is Entry.UPDATES for c in part.clients}
        received = dict.fromkeys(cohort, 0)
        for part in lines:
            if part.direction is Direction.DOWN:
                for client, count, size in zip(part.clients, part.messages, part.frame_bytes, strict=True):
                    received[client] += count
                    assert size == HEADER_BYTES + 4 * TRIANGLE * count
        for client in cohort:
            lacks = poolings - held[client]
            # all that it lacks to replay, else the newest; in the round of a pooling that one comes by itself
            assert received[client] == (lacks if client in replayed else min(lacks, 1))
            late += received[client] > 1
            held[client] = poolings
            assert state.store.held[client] == poolings
    expected = forecast(setup.experiment).totals
    totals = fedsim.run(setup.experiment).ledger.totals
    assert expected == totals
    assert totals[Direction.UP, Entry.MOMENTS].frame_bytes == 7 * 4 * frame


def test_mixing_uploads_moments_in_every_round_and_sends_none() -> None:
    setup = prepare(experiment("mixing", rounds=4))
    totals = fedsim.run(setup.experiment).ledger.totals
    assert totals[Direction.UP, Entry.MOMENTS].frame_bytes == 4 * 10 * (HEADER_BYTES + 8 * TRIANGLE)
    assert (Direction.DOWN, Entry.MOMENTS) not in totals
    assert forecast(setup.experiment).totals == totals


class StopAt:
    def __init__(self, round: int) -> None:
        self.round = round

    def started(self, setup: Setup, metrics: Any) -> None: ...

    def played(self, round: int, up: Any, down: Any) -> None:
        if round == self.round:
            raise StoppedError("stop")

    def evaluated(self, metrics: Any) -> None: ...


@pytest.mark.parametrize("mode", ["shared", "mixing", "alone", "recursive"])
def test_a_resumed_run_has_the_same_bits(mode: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "algorithm": "artemis",
        "rounds": 11,
        "participation": {"scheme": "k-of-n", "k": 5},
        "server": {"step": 0.1},
        "uplink": {},
        "downlink": {},
        "run": {"precision": "float32"},
        "local": {"steps": 3, "batch": 16, "step": 0.05},
        "task": {"kind": "mlp", "hidden": [6]},
    }
    if mode == "shared":
        changes["whitening"] = {"mode": "shared", "refresh": 4, "ema": 0.5}
    else:
        route = "recursive" if mode == "recursive" else "evd"
        changes["direction"] = {"kind": "whitened", "refresh": 4, "route": route}
    chosen = experiment("alone" if mode == "recursive" else mode, **changes)
    whole = fedsim.run(chosen)
    with pytest.raises(StoppedError):
        fedsim.run(chosen, tmp_path / "run", StopAt(6))
    resumed = fedsim.resume(tmp_path / "run")
    assert resumed.digest == whole.digest
    assert resumed.ledger.totals == whole.ledger.totals


def test_clients_side_by_side_share_whitening() -> None:
    one = fedsim.run(experiment("shared", rounds=6)).model
    many = fedsim.run(experiment("shared", rounds=6, run={"chunk": 4})).model
    torch.testing.assert_close(many, one, rtol=1e-11, atol=1e-12)


def test_local_steps_move_along_the_whitened_gradient() -> None:
    """One client, three local steps and their difference, is three rounds of one step."""
    alone = {"partition": {"scheme": "iid", "clients": 1}}
    local = {"steps": 3, "step": 2.0, "send": "difference"}
    together = fedsim.run(experiment("shared", rounds=2, local=local, server={"step": 1.0}, **alone)).model
    apart = fedsim.run(experiment("shared", rounds=6, server={"step": 2.0}, **alone)).model
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-11)


def layerless(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Scale(shape[0], classes)


def regrouping(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Regrouping(shape[0], classes)


def unused(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Unused(shape[0], classes)


class Scale(nn.Module):
    """Parameters without a linear layer, a grouped convolution, and two layers that share a weight."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, classes))
        self.grouped = nn.Conv2d(2, 2, 1, groups=2)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Regrouping(nn.Module):
    """A layer that sees one row, whatever the samples."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first, self.query = nn.Linear(features, classes), nn.Linear(2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(input=x) + self.query(torch.ones(1, 2, dtype=x.dtype))


class Unused(nn.Module):
    """A layer that is never called, and one that is called twice."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(features, features), nn.Linear(3, 3), nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.first(x).tanh()).tanh())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"direction": {"kind": "whitened"}}, ["whitening.mode = 'shared'", "whiten twice", "'gradient'"]),
        ({"whitening": {"mode": "mixing"}}, ["whitening.mode = 'mixing'", "direction.kind = 'whitened'"]),
        (
            {"whitening": {"mode": "mixing"}, "direction": {"kind": "whitened", "route": "recursive"}},
            ["whitening.mode = 'mixing'", "route 'cholesky' or 'evd'"],
        ),
        ({"server": {"step": "1/L"}}, ["server.step = '1/L'", "whitened", "server.step = 1.0"]),
        (
            {"local": {"steps": 2, "step": "1/L"}},
            ["local.step = '1/L'", "whitened"],
        ),
        ({"local": {"steps": 2, "step": 0.1}, "run": {"chunk": 3}}, ["run.chunk = 3", "run.chunk = 1"]),
        (
            {"whitening": {"mode": "off"}, "direction": {"kind": "whitened"}, "run": {"chunk": 3}},
            ["run.chunk = 3", "run.chunk = 1"],
        ),
        ({"whitening": {"mode": "shared", "max_features": 63}}, ["whitening.max_features = 63", "64 or more"]),
        (
            {"whitening": {"mode": "off"}, "direction": {"kind": "whitened", "max_features": 63}},
            ["direction.max_features = 63", "64 or more"],
        ),
        (
            {"task": {"kind": "module", "factory": "tests.oracle.test_whitening_federated:layerless"}},
            ["needs linear layers", "groups = 1", "whitening.mode = 'off'"],
        ),
        ({"whitening": {"mode": "shared", "damping": 0}}, ["whitening.damping = 0", "> 0"]),
        ({"whitening": {"mode": "all"}}, ["whitening.mode = 'all'", "mixing, off, shared"]),
    ],
)
def test_refused(changes: dict[str, Any], parts: list[str], refused: Refused) -> None:
    with refused(ConfigError, *parts):
        prepare(experiment("shared", **changes))


def test_rows_that_are_no_samples_are_refused(refused: Refused) -> None:
    task = {"kind": "module", "factory": "tests.oracle.test_whitening_federated:regrouping"}
    with refused(ConfigError, "layer 'query' is called with 1 rows", "whitening.mode = 'off'"):
        fedsim.run(experiment("shared", rounds=1, task=task))


def test_a_layer_that_is_not_called_is_left_alone_and_one_called_twice_counts_twice() -> None:
    task = {"kind": "module", "factory": "tests.oracle.test_whitening_federated:unused"}
    setup = prepare(experiment("shared", task=task, server={"step": 0.1}))
    start = initial_state(setup).server.model
    *_, (state, _) = rounds(setup, 3)
    first, idle, _ = setup.whitened
    assert (first.name, idle.name) == ("first", "idle")
    for before, after in zip(idle.take(start[None]), idle.take(state.server.model[None]), strict=True):
        assert before is not None
        assert after is not None
        assert torch.equal(before, after)
    assert state.pooled is not None
    examples = setup.federation.all()
    weight, bias = first.take(start[None])
    assert bias is not None
    hidden = (examples.features @ weight[0].T + bias[0]).tanh()
    both = torch.cat([examples.features, hidden])
    mean = unpack(state.pooled.row, setup.whitened)[0][:-1, -1]
    torch.testing.assert_close(mean, both.mean(0), rtol=1e-10, atol=1e-12)


def test_layers_beyond_max_features_keep_their_gradient() -> None:
    changes = {"task": {"kind": "mlp", "hidden": [5]}, "whitening": {"mode": "shared", "max_features": 5}}
    setup = prepare(experiment("shared", **changes))
    assert [layer.inputs for layer in setup.whitened] == [5]
    plain = prepare(experiment("off", task=changes["task"]))
    first, other = final(setup, 1), final(plain, 1)
    wide = setup.task.layers[0]
    for one, two in zip(wide.take(first[None]), wide.take(other[None]), strict=True):
        assert one is not None
        assert two is not None
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(first, other)


def test_moments_that_are_not_finite_say_so(refused: Refused) -> None:
    setup = prepare(experiment("shared"))
    (layer,) = setup.whitened
    with refused(DivergedError, "layer 'scores'", "smaller step"):
        metric([torch.full((65, 65), torch.nan)], [layer], 0.1, "cholesky")


def test_a_compressor_in_other_coordinates_is_the_same_one_there() -> None:
    setup = prepare(experiment("shared", uplink={"compressor": "quantize"}))
    state = initial_state(setup)
    play(setup, state)
    method, plain = method_of(setup, state), setup.method.uplink.compressor
    assert method.up != plain
    assert method.up.layout(650) == plain.layout(650)
    assert method.up.omega(650) == plain.omega(650)
    assert method.up.formula_bits(650) == plain.formula_bits(650)
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 650)))
    stream, ids = setup.stream(Purpose.UPLINK, 0), torch.arange(3)
    assert method.space is not None
    assert method.space.uplink is not None
    there, _ = method.space.uplink
    found = there(method.up.decompress(method.up.compress(rows, stream, ids), torch.float64))
    expected = plain.decompress(plain.compress(there(rows), stream, ids), torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_an_empty_cohort_waits_with_the_first_pooling() -> None:
    changes = {"participation": {"scheme": "bernoulli", "p": 0.08}, "whitening": {"mode": "shared", "refresh": 2}}
    setup = prepare(experiment("shared", rounds=30, **changes))
    empty = [t for t in range(30) if not len(setup.cohort(t).clients)]
    assert empty
    last, state = None, initial_state(setup)
    for t in range(30):
        played = play(setup, state)
        pooled = any(part.kind is Entry.MOMENTS and part.direction is Direction.UP for part in played.lines)
        assert pooled == (t not in empty and (last is None or t - last >= 2))
        last = t if pooled else last
    assert state.pooled is not None
    assert state.pooled.made == last
