"""Streams: shapes, ranges, and that nothing else is drawn from."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

import fedsim
from fedsim.randomness import SERVER, Purpose, Stream


def test_float32_uniforms_are_the_upper_24_bits() -> None:
    stream, clients = Stream(9, Purpose.BATCH, 2), torch.arange(100)
    words = stream.words(clients, 50)
    assert int(words.min()) >= 0
    assert int(words.max()) < 2**32
    assert torch.equal(stream.uniform(clients, 50, torch.float32) * 2**24, (words >> 8).to(torch.float32))
    assert torch.equal(stream.uniform(clients, 50, torch.float64) * 2**32, words.to(torch.float64))
    assert float(torch.tensor(2**32 - 1 >> 8).to(torch.float32) * 2.0**-24) < 1


def test_integer_is_the_servers_unless_said_otherwise() -> None:
    stream = Stream(9, Purpose.SPLIT)
    assert stream.integer() == stream.integer(SERVER) != stream.integer(0)
    high, low = stream.words(torch.tensor([SERVER]), 2)[0].tolist()
    assert stream.integer() == (high << 32) + low


def test_at_changes_the_round_and_resets_the_index() -> None:
    stream = Stream(9, Purpose.BATCH, 2, 5)
    assert stream.at(4) == Stream(9, Purpose.BATCH, 4, 0)
    assert stream.at(4, 6) == Stream(9, Purpose.BATCH, 4, 6)
    assert stream == Stream(9, Purpose.BATCH, 2, 5)
    assert pickle.loads(pickle.dumps(stream)) == stream


@pytest.mark.parametrize("width", [0, 7])
def test_nobody_draws_nothing(width: int) -> None:
    nobody = torch.empty(0, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        found = Stream(9, Purpose.UPLINK).uniform(nobody, width, dtype)
        assert found.shape == (0, width)
        assert found.dtype == dtype


def test_a_run_neither_uses_nor_disturbs_the_global_generators() -> None:
    experiment = fedsim.Experiment.of(rounds=3, data={"source": "digits"}, local={"batch": 5, "steps": 2})
    experiments = [
        experiment,
        fedsim.Experiment.of(rounds=1, task={"kind": "mlp", "hidden": [3]}, server={"step": 0.1}),
    ]

    for one in experiments:
        fedsim.run(one)  # a library may draw once, while it is imported

    def states() -> tuple[bytes, ...]:
        generators = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().tolist()
        return tuple(pickle.dumps(generator) for generator in generators)

    def everything(seed: int) -> list[str]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        digests = [fedsim.run(one).digest for one in experiments]
        assert states() == before
        return digests

    assert everything(1) == everything(2)
