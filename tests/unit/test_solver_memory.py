"""What a client's solver remembers survives: rounds, checkpoints and restarts, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedsim
from fedsim import Experiment
from fedsim.errors import ConfigError, StoppedError
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.engine import play
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import from_tensors, initial_state, to_tensors
from fedsim.solvers import Local, Memory, Plan, solve
from fedsim.solvers.direction import Gradient, Momentum, Sam
from fedsim.solvers.local import check_plan
from fedsim.solvers.order import ORDERS
from fedsim.solvers.rate import Constant, Harmonic, OwnRule, Salr

WORLD: dict[str, Any] = {
    "algorithm": "artemis",
    "rounds": 6,
    "data": {"source": "synthetic-linear", "clients": 5, "per_client": 11, "features": 4},
    "participation": {"scheme": "k-of-n", "k": 3},
    "server": {"step": 0.02},
    "run": {"precision": "float64", "evaluate_every": 1, "checkpoint_every": 100},
}
OWN = {"kind": "own", "factory": "tests.plugins_example:Clipped", "options": {"norm": 0.2}}
VARIANTS: dict[str, dict[str, Any]] = {
    "rr, parts of a pass": {"local": {"order": "reshuffle", "batch": 3, "steps": 3}},
    "rr, epochs, harmonic": {
        "local": {"order": "reshuffle", "batch": 4, "epochs": 2},
        "rate": {"rule": "harmonic", "mu": 0.5, "hold": 5},
    },
    "so, salr, momentum": {
        "local": {"order": "shuffle-once", "batch": 4, "steps": 3, "step": 0.02},
        "rate": {"rule": "salr", "period": 2, "probe": 0.1},
        "direction": {"kind": "momentum", "reset": "never"},
    },
    "synchronised, sam": {"local": {"order": "synchronised", "batch": 5, "steps": 2}, "direction": {"kind": "sam"}},
    "sgd, salr by sample": {
        "local": {"order": "with-replacement", "batch": 4, "steps": 2},
        "rate": {"rule": "salr", "period": 3, "normalise": "sample"},
    },
    "salr at the server": {
        "local": {"order": "reshuffle", "batch": 4, "epochs": 1, "step": 0.02},
        "rate": {"rule": "salr", "level": "server", "period": 2},
    },
    "own": {
        "local": {"order": "tests.plugins_example:there_and_back", "batch": 4, "steps": 2},
        "rate": {"rule": "own", "factory": "tests.plugins_example:Warmup", "options": {"steps": 10}},
        "direction": OWN,
    },
}


class StopAfter:
    """An observer that stops a run after so many rounds, cleanly."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def started(self, setup: Setup, metrics: dict[str, Any]) -> None: ...

    def evaluated(self, metrics: dict[str, Any]) -> None: ...

    def played(self, round: int, up: Any, down: Any) -> None:
        if round == self.rounds:
            raise StoppedError("enough")


def of(variant: dict[str, Any]) -> Experiment:
    return Experiment.of(**{**WORLD, **variant})


def state_of(folder: Path) -> dict[str, Tensor]:
    checkpoint = RunFolder(folder).restore()
    assert checkpoint is not None
    return dict(checkpoint.tensors)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_interrupted_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """Stopped after every round from 1 to 5, and once after each of them in one run."""
    experiment = of(VARIANTS[name])
    whole = fedsim.run(experiment, tmp_path / "whole")
    expected = state_of(tmp_path / "whole")
    for stops in ([1], [4], [1, 2, 3, 4, 5]):
        folder = tmp_path / "-".join(map(str, stops))
        with pytest.raises(StoppedError):
            fedsim.run(experiment, folder, StopAfter(stops[0]))
        for stop in stops[1:]:
            with pytest.raises(StoppedError):
                fedsim.resume(folder, StopAfter(stop))
        result = fedsim.resume(folder)
        assert result.digest == whole.digest
        found = state_of(folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_state_goes_through_tensors() -> None:
    """Every kind of notes, scalars too, comes back as it was."""
    setup = prepare(of(VARIANTS["so, salr, momentum"]))
    state = initial_state(setup)
    for _ in range(3):
        play(setup, state)
    again = from_tensors(setup, 3, to_tensors(state))
    assert again.store.solvers.keys() == state.store.solvers.keys()
    for client, memory in state.store.solvers.items():
        other = again.store.solvers[client]
        assert other.steps == memory.steps > 0
        for mine, theirs in ((memory.rate, other.rate), (memory.direction, other.direction)):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert memory.rate.keys() == {"history", "factor"}
        assert memory.direction.keys() == {"velocity", "length"}


def passes_seen(setup: Setup, rounds: int) -> list[list[float]]:
    """Targets of the batches of client 0, round by round; each round from memories that went through a checkpoint."""
    memories: dict[int, Memory] = {}
    seen: list[list[float]] = []
    task = setup.task
    for round in range(rounds):
        batches: list[float] = []

        class Watched:
            dim, walker = task.dim, None

            def gradients(self, models: Tensor, batch: Any, batches: list[float] = batches) -> Any:
                batches.extend(batch.features[0, :, 1].tolist())
                return task.gradients(models, batch)

        model = task.initial(0)[None]
        stream = Stream(0, Purpose.BATCH, round)
        found = solve(Watched(), setup.federation, model, torch.tensor([0]), setup.plan, stream, memories)  # type: ignore[arg-type]
        steps = torch.tensor(found.memories[0].steps)
        memories = {0: Memory(int(steps))}
        seen.append(batches)
    return seen


@pytest.mark.parametrize(("order", "distinct"), [("reshuffle", 4), ("shuffle-once", 1), ("incremental", 1)])
def test_a_restart_in_every_round_does_not_turn_rr_into_so(order: str, distinct: int) -> None:
    """All that a client has to bring along is the number of its steps."""
    run = {**WORLD["run"], "executor": "sequential"}
    setup = prepare(of({"local": {"order": order, "batch": 1, "epochs": 1}, "run": run}))
    passes = passes_seen(setup, 4)
    assert {len(set(seen)) for seen in passes} == {11}
    assert len({tuple(seen) for seen in passes}) == distinct
    assert len({tuple(sorted(seen)) for seen in passes}) == 1


def test_memory_waits_for_its_client() -> None:
    """A client that is absent keeps its place; the count of its steps is its own."""
    setup = prepare(of(VARIANTS["rr, parts of a pass"]))
    state, rounds = initial_state(setup), [0] * 5
    for round in range(6):
        for client in setup.cohort(round).clients.tolist():
            rounds[client] += 1
        play(setup, state)
    assert len(set(rounds)) > 1
    assert {client: memory.steps for client, memory in state.store.solvers.items()} == {
        client: 3 * count for client, count in enumerate(rounds) if count
    }


def test_a_failed_round_leaves_memories_alone() -> None:
    """``solve`` returns new memories and changes none it was given."""
    setup = prepare(of(VARIANTS["so, salr, momentum"]))
    given: dict[int, Memory] = {}
    model = setup.task.initial(0)[None]
    for round in range(3):
        stream = Stream(0, Purpose.BATCH, round)
        before = {name: note.clone() for name, note in given.get(0, Memory()).rate.items()}
        velocity = given.get(0, Memory()).direction.get("velocity", torch.zeros(1)).clone()
        found = solve(setup.task, setup.federation, model, torch.tensor([0]), setup.plan, stream, given)
        assert all(torch.equal(before[name], given[0].rate[name]) for name in before)
        assert torch.equal(given.get(0, Memory()).direction.get("velocity", torch.zeros(1)), velocity)
        again = solve(setup.task, setup.federation, model, torch.tensor([0]), setup.plan, stream, given)
        assert torch.equal(found.direction, again.direction)
        given = {0: found.memories[0]}


@pytest.mark.parametrize(
    ("local", "rate", "direction", "chunk", "said"),
    [
        (
            {"epochs": 2, "steps": 3, "order": "reshuffle"},
            {},
            {},
            1,
            "local.epochs = 2 and local.steps = 3: a round has",
        ),
        ({"epochs": 2}, {}, {}, 1, "local.epochs needs an order with passes, but local.order = 'fresh'"),
        (
            {"steps": 2},
            {"rule": "salr"},
            {},
            4,
            "run.chunk = 4 stacks clients, but rate.rule is neither 'constant' nor 'harmonic'",
        ),
        ({}, {}, OWN, 2, "direction.kind is not one of 'gradient', 'momentum' and 'sam'; use run.chunk = 1"),
    ],
)
def test_choices_that_contradict_each_other(
    local: dict[str, Any], rate: dict[str, Any], direction: dict[str, Any], chunk: int, said: str, refused: Any
) -> None:
    tables = {"local": local, "rate": rate or {"rule": "constant"}, "direction": direction or {"kind": "gradient"}}
    run = {**WORLD["run"], "chunk": chunk}
    with refused(ConfigError, said):
        prepare(Experiment.of(**{**WORLD, **tables, "run": run}))


@pytest.mark.parametrize("order", ["fresh", *ORDERS])
@pytest.mark.parametrize(
    "rate", [Constant(), Harmonic(mu=1.0), Salr(), OwnRule("tests.plugins_example:Warmup", {"steps": 2})]
)
@pytest.mark.parametrize("direction", [Gradient(), Momentum(), Sam()])
def test_everything_else_goes_together(order: str, rate: Any, direction: Any) -> None:
    check_plan(Local(steps=2, order=order), rate, direction, 1)
    if order != "fresh":
        check_plan(Local(epochs=2, order=order), rate, direction, 1)


def test_a_plan_of_nobody() -> None:
    setup = prepare(of(VARIANTS["so, salr, momentum"]))
    nobody = torch.zeros(0, dtype=torch.int64)
    plan = Plan(setup.plan.local, 0.1, 1, setup.plan.order, setup.plan.rate, setup.plan.direction)
    found = solve(
        setup.task, setup.federation, setup.task.initial(0).expand(0, -1), nobody, plan, Stream(0, Purpose.BATCH)
    )
    assert found.memories == ()
    assert found.gradients.shape == (0,)
