"""Local steps against a transcription in numpy that takes the same draws, and accuracy on a real data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import fedsim
from fedsim.data.examples import Dataset, Examples, Federation, federate
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import initial_state
from fedsim.solvers import Local, Plan, solve
from fedsim.solvers.order import reshuffle
from fedsim.tasks import LeastSquares, Softmax
from fedsim.tasks.task import full_batch

CPU, F64 = torch.device("cpu"), torch.float64
SIZES = [6, 11, 4]


def federation() -> Federation:
    rng = np.random.default_rng(3)
    features, targets = torch.from_numpy(rng.standard_normal((21, 5))), torch.from_numpy(rng.standard_normal(21))
    owners = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    return federate(Dataset(Examples(features, targets, None), None, "random"), owners)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("steps", [1, 4])
def test_local_sgd_equals_its_pseudo_code(steps: int, batch: int, chunk: int) -> None:
    """w_{h+1} = w_h - eta grad(w_h; b samples with the smallest keys of (round, step h)), from w_0 to w_H."""
    world, eta, l2 = federation(), 0.07, 0.2
    task = LeastSquares(l2=l2).build((5,), None, F64, CPU)
    start = np.random.default_rng(9).standard_normal((3, 5))
    stream = Stream(seed=8, purpose=Purpose.BATCH, round=6)
    ids = torch.tensor([2, 0, 1])
    ended, first_losses = np.empty((3, 5)), np.empty(3)
    for row, client in enumerate(ids.tolist()):
        w, shard = start[row].copy(), world.shard(client)
        for step in range(steps):
            words = Stream(8, Purpose.BATCH, 6, step).words(torch.tensor([client]), SIZES[client])[0].numpy()
            chosen = np.argsort(words, kind="stable")[: batch or None]
            x, y = shard.features.numpy()[chosen], shard.targets.numpy()[chosen]
            if step == 0:
                first_losses[row] = np.mean((x @ w - y) ** 2) + l2 / 2 * w @ w
            w = w - eta * (2 * x.T @ (x @ w - y) / len(y) + l2 * w)
        ended[row] = w
    for send, divisor in (("direction", steps * eta), ("difference", 1.0)):
        local = Local(steps=steps, batch=batch, step=eta, send=send)
        solution = solve(task, world, torch.from_numpy(start), ids, Plan(local, eta, chunk), stream)
        np.testing.assert_allclose(solution.direction.numpy(), (start - ended) / divisor, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(solution.losses.numpy(), first_losses, rtol=1e-13)
        assert solution.samples.tolist() == [steps * min(batch or 99, SIZES[i]) for i in ids.tolist()]


def nastya(gamma: float, memory: bool) -> Setup:
    """Logistic regression, 3 clients of 5 mini-batches of 4 samples, an epoch of reshuffling, exact messages."""
    return prepare(
        fedsim.Experiment.of(
            algorithm="sgd",
            seed=11,
            data={"source": "synthetic-logistic", "clients": 3, "per_client": 20},
            task={"l2": 0.1},
            local={"order": "reshuffle", "epochs": 1, "batch": 4, "step": gamma},
            server={"step": 0.5},
            uplink={"values": "float64", "memory": memory},
            downlink={"values": "float64"},
            run={"precision": "float64"},
        )
    )


def transcribed(setup: Setup, gamma: float, rounds: int, at_the_iterate: bool) -> NDArray[np.float64]:
    """x after some rounds of NASTYA: x <- x - eta mean_m (x - w_m) / (gamma n), with the gradients taken at w or x."""
    x = np.zeros(setup.task.dim)
    for epoch in range(rounds):
        directions = []
        for client in range(3):
            shard, w = setup.federation.shard(client), x.copy()
            for some in reshuffle(11, client, 20, epoch, 3).numpy().reshape(5, 4):
                a, sign = shard.features.numpy()[some], np.where(shard.targets.numpy()[some] > 0, 1.0, -1.0)
                point = w if at_the_iterate else x
                slopes = -sign / (1 + np.exp(sign * (a @ point)))
                w = w - gamma * (a.T @ slopes / 4 + 0.1 * point)
            directions.append((x - w) / (gamma * 5))
        x = x - 0.5 * np.mean(directions, axis=0)
    return x


@pytest.mark.parametrize("memory", [False, True], ids=["q-nastya", "diana-nastya"])
def test_local_gradients_are_taken_at_the_local_iterate(memory: bool) -> None:
    """Not at the server's point, as in the published code of Q-NASTYA and DIANA-NASTYA, where gamma has no effect."""
    ended = []
    for gamma in (0.1, 0.4):
        setup = nastya(gamma, memory)
        state = initial_state(setup)
        for _ in range(4):
            play(setup, state)
        ended.append(state.server.model.numpy())
        right, wrong = (transcribed(setup, gamma, 4, at_the_iterate) for at_the_iterate in (True, False))
        np.testing.assert_allclose(ended[-1], right, rtol=0, atol=1e-12)
        assert np.linalg.norm(ended[-1] - wrong) > 1e-3
    np.testing.assert_allclose(wrong, transcribed(setup, 0.1, 4, at_the_iterate=False), rtol=0, atol=1e-14)
    assert np.linalg.norm(ended[0] - ended[1]) > 1e-3


def test_one_step_sends_exactly_the_gradient() -> None:
    """No cancellation: not (w - (w - eta g)) / eta, whatever eta."""
    world = federation()
    task = LeastSquares().build((5,), None, F64, CPU)
    start = 1e6 * torch.ones(1, 5, dtype=F64)
    shard = world.shard(1)
    exact, _ = task.gradients(start, full_batch(shard.features, shard.targets, F64))
    for eta in (1e-12, 0.1, 1e9):
        solution = solve(task, world, start, torch.tensor([1]), Plan(Local(step=eta), eta), Stream(0, Purpose.BATCH))
        assert torch.equal(solution.direction, exact)


def test_softmax_learns_digits_by_full_gradient_descent() -> None:
    """20 clients, full participation, mean of their directions, step 4/L: training accuracy above 0.9 in 100 rounds."""
    x, y = load_digits(return_X_y=True)
    train = Examples(torch.from_numpy(x / 16), torch.from_numpy(y), 10)
    world = federate(Dataset(train, None, "digits"), torch.arange(len(y)) % 20)
    task = Softmax().build((64,), 10, F64, CPU)
    gamma = 4 / task.smoothness(train, "spectral")
    weights = world.sizes.to(F64) / len(y)
    model, losses = task.initial(0), []
    for round in range(100):
        stream = Stream(0, Purpose.BATCH, round)
        solution = solve(task, world, model.expand(20, -1), torch.arange(20), Plan(Local(), 0.0), stream)
        losses.append(float(weights @ solution.losses))
        model = model - gamma * weights @ solution.direction
    assert losses[0] == pytest.approx(np.log(10), rel=1e-12)
    assert task.metrics(model, train)["accuracy"] > 0.9
    assert losses[-1] < 0.6
