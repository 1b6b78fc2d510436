"""How far apart directions are: against a loop over clients, and at the optimum of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fedsim
from fedsim.experiment import Experiment
from fedsim.simulation import spread as module
from fedsim.simulation.engine import play
from fedsim.simulation.rows import Rows
from fedsim.simulation.setup import prepare
from fedsim.simulation.spread import spread
from fedsim.simulation.state import initial_state

CPU = torch.device("cpu")


@pytest.mark.parametrize("together", [1, 21, 10_000])
def test_against_a_loop(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((5, 7), generator=generator, dtype=torch.float64)
    clients = torch.tensor([0, 2, 3, 7, 9])
    memory = Rows(10, 7, torch.float64, CPU, disk=False)
    memory.put(clients, torch.randn((5, 7), generator=generator, dtype=torch.float64))
    found = spread(directions, memory, clients)
    mean = sum(directions) / 5
    apart = [float((g - mean).norm()) for g in directions]
    left = [float((directions[i] - memory.dense[client]).norm()) for i, client in enumerate(clients.tolist())]
    assert found == pytest.approx({"drift": sum(apart) / 5, "memory_distance": sum(left) / 5}, rel=1e-12)
    assert spread(directions, None, clients) == {"drift": found["drift"]}


def test_what_is_not_a_number_is_left_out() -> None:
    assert spread(torch.full((2, 2), 3e38) * torch.tensor([[1.0], [-1.0]]), None, torch.arange(2)) == {}


def test_memories_learn_what_clients_send(tmp_path: Path) -> None:
    """Full gradients: the directions converge to the clients' gradients at the optimum, which differ, and so do the
    memories, from which nothing is left in the end. Only rounds that are evaluated are measured."""
    experiment = Experiment.of(
        algorithm="diana", data={"source": "synthetic-linear"}, rounds=400, run={"evaluate_every": 40}
    )
    fedsim.run(experiment, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "drift" not in lines[0]
    assert all(line["drift"] > 0.1 for line in lines[1:])
    assert lines[-1]["memory_distance"] < 0.01 * lines[1]["memory_distance"]


def test_a_round_that_is_not_evaluated_is_not_measured() -> None:
    setup = prepare(
        Experiment.of(data={"source": "synthetic-linear"}, rounds=5, run={"evaluate_every": 2}, algorithm="sgd")
    )
    state = initial_state(setup)
    seen = []
    for _ in range(5):
        play(setup, state)
        seen.append(set(state.spread))
    assert seen == [set(), {"drift"}, set(), {"drift"}, {"drift"}]
