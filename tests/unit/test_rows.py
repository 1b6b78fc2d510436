"""Client rows: zeros that cost nothing until they are written, in memory and on disk, and in a checkpoint."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch

import fedsim
from fedsim.algorithms.recipes import RECIPES
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.simulation.engine import play
from fedsim.simulation.rows import Rows
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import from_tensors, initial_state, to_tensors
from tests.conftest import Refused

CPU = torch.device("cpu")


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_zero_until_they_are_put(disk: bool, dtype: torch.dtype) -> None:
    rows, clients = Rows(1000, 7, dtype, CPU, disk), torch.tensor([3, 999, 0])
    assert torch.equal(rows.take(clients), torch.zeros(3, 7, dtype=dtype))
    new = torch.arange(21, dtype=dtype).view(3, 7)
    rows.put(clients, new)
    taken = rows.take(clients.flip(0))
    assert torch.equal(taken, new.flip(0))
    taken += 1
    assert torch.equal(rows.take(clients), new)
    assert float(rows.dense.sum()) == float(new.sum())


@pytest.mark.parametrize("disk", [False, True])
def test_registered_clients_cost_nothing(disk: bool) -> None:
    """400 GB of rows, of which 4 MB are written. ru_maxrss is in KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = Rows(10**6, 10**5, torch.float32, CPU, disk)
    clients = torch.arange(0, 10**6, 10**5)
    rows.put(clients, torch.ones(10, 10**5))
    assert float(rows.take(clients).sum()) == 10**6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_more_than_any_machine_has(refused: Refused) -> None:
    with refused(ConfigError, "no room for", "run.rows = 'disk'"):
        Rows(2**40, 2**30, torch.float32, CPU, disk=False)


def experiment(**changes: Any) -> Experiment:
    return Experiment.of(
        rounds=6,
        data={"source": "synthetic-linear", "clients": 40, "per_client": 3, "features": 4},
        participation={"scheme": "k-of-n", "k": 2},
        uplink={"memory": True, "feedback": 0.2},
        **changes,
    )


def test_a_checkpoint_holds_the_rows_of_those_who_took_part() -> None:
    setup = prepare(experiment())
    state = initial_state(setup)
    for _ in range(3):
        play(setup, state)
    tensors = to_tensors(state)
    known = state.store.contacted()
    assert 2 <= len(known) <= 6
    assert tensors["clients.memory"].shape == tensors["clients.error"].shape == (len(known), setup.task.dim)
    again = from_tensors(setup, 3, tensors)
    found = {
        name: (mine, other) for (name, mine), (_, other) in zip(state.store.rows(), again.store.rows(), strict=True)
    }
    assert [name for name, (mine, _) in found.items() if mine is not None] == ["memory", "error"]
    for mine, other in (found["memory"], found["error"]):
        assert mine is not None
        assert other is not None
        assert torch.equal(mine.dense, other.dense)
    with pytest.raises(ValueError, match=r"clients\.memory does not fit"):
        from_tensors(setup, 3, tensors | {"clients.memory": tensors["clients.memory"][1:]})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_of_any_recipe_is_its_state(recipe: str) -> None:
    """After three rounds and again two more, with a restart between and without."""
    given = Experiment.of(
        algorithm=recipe,
        data={"source": "synthetic-linear", "clients": 6, "per_client": 8, "features": 5},
        participation={"scheme": "bernoulli", "p": 0.5},
        local={"step": 0.02},
        server={"step": 0.05},
    )
    setup = prepare(given)
    state = initial_state(setup)
    for _ in range(3):
        play(setup, state)
    again = from_tensors(setup, 3, {name: tensor.clone() for name, tensor in to_tensors(state).items()})
    for _ in range(2):
        assert [line.frame_bytes.tolist() for line in play(setup, state).lines] == [
            line.frame_bytes.tolist() for line in play(setup, again).lines
        ]
    expected, found = to_tensors(state), to_tensors(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_where_rows_live_changes_nothing() -> None:
    memory, disk = (experiment(run={"rows": place}) for place in ("memory", "disk"))
    assert memory.identifier() == disk.identifier()
    assert fedsim.run(memory).digest == fedsim.run(disk).digest
