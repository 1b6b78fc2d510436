"""SALR at the server's level: what it scales, what it costs, and what it cannot be combined with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

import fedsim
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry
from fedsim.simulation.engine import play
from fedsim.simulation.forecast import forecast
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state
from fedsim.wire.frame import HEADER_BYTES
from tests.conftest import Refused

SERVER = {"rule": "salr", "level": "server", "period": 3}


def experiment(**changes: Any) -> Experiment:
    tables: dict[str, Any] = {
        "algorithm": "sgd",
        "rounds": 12,
        "data": {"source": "synthetic-logistic", "clients": 5, "per_client": 12},
        "task": {"kind": "logistic", "l2": 0.1},
        "participation": {"scheme": "bernoulli", "p": 0.5},
        "local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": 0.1},
        "rate": SERVER,
        "server": {"step": 0.2},
    }
    return Experiment.of(**tables | changes)


def test_the_servers_step_is_scaled_and_nothing_else() -> None:
    """Beside the same federation without the rule, from the same state: the same direction, another length."""
    everybody = {"scheme": "full"}
    scaled = prepare(experiment(participation=everybody, rate=SERVER | {"period": 1, "probe": 0.3}))
    constant = prepare(experiment(participation=everybody, rate={"rule": "constant"}))
    state, factors = initial_state(scaled), []
    for _ in range(4):
        before, other = state.server.model, deepcopy(state)
        other.rate = {}
        play(constant, other)
        play(scaled, state)
        history = state.rate["history"]
        factors.append(float(state.rate["factor"]))
        assert factors[-1] == pytest.approx(float(history[-1] / history.quantile(0.5)))
        torch.testing.assert_close(state.server.model - before, factors[-1] * (other.server.model - before))
    assert len(history) == 4
    assert factors[0] == 1
    assert max(factors) > 1.2


def test_what_it_costs_is_foretold_to_the_byte() -> None:
    """One float64 a client up in every third round, and 8 bytes more in each replayed update."""
    given = experiment(algorithm="artemis", uplink={"compressor": "identity"}, downlink={"compressor": "identity"})
    result = fedsim.run(given)
    assert result.ledger.totals == forecast(given).totals
    setup = prepare(given)
    sizes = [len(setup.cohort(t).clients) for t in range(given.rounds)]
    measured = result.ledger.totals[Direction.UP, Entry.SHARPNESS]
    assert measured.frames == sum(sizes[::3])
    assert measured.frame_bytes == measured.frames * (HEADER_BYTES + 8)
    assert result.metrics[-1]["gradients"] == 12 * (sum(sizes) + sum(sizes[::3]) * 4)


def test_a_client_cannot_know_the_step_before_it_uploads(refused: Refused) -> None:
    with refused(ConfigError, "uplink.feedback = 'step'", "rate.level = 'server'", "use a number"):
        prepare(experiment(uplink={"compressor": "quantize", "levels": 8, "feedback": "step"}))
