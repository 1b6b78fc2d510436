"""Which executor is chosen, what is refused, and that processes change no bit."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim import Experiment
from fedsim.errors import ConfigError, StoppedError, WorkerError
from fedsim.randomness import Purpose, Stream
from fedsim.simulation import executors
from fedsim.simulation.executors import Choice
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.workers import Workers, spread
from fedsim.solvers import Memory, solve
from tests.conftest import Refused
from tests.unit.test_solver_memory import StopAfter

DIGITS: dict[str, Any] = {"partition": {"scheme": "dirichlet", "clients": 12}, "participation": {"scheme": "full"}}
SEQUENTIAL, ALL = Choice("sequential", 1, 0), 2419
"""chunk_of(650, 4): softmax on digits."""


WIDE = {
    "data": {"source": "synthetic-linear", "clients": 3, "per_client": 5000, "features": 20},
    "task": {"kind": "least-squares"},
}


STEPS = {"steps": 2, "batch": 5, "step": 0.1}


def convolved(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    nn = torch.nn
    return nn.Sequential(nn.Unflatten(1, (1, shape[0])), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(124, classes))


def of(**tables: Any) -> Experiment:
    return Experiment.of(**{**DIGITS, "server": {"step": 0.1}, "local": {"step": 0.1}, **tables})


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, Choice("stacked", ALL, 0)),
        ({"local": {"epochs": 1, "batch": 5, "order": "reshuffle", "step": 0.1}}, Choice("stacked", ALL, 0)),
        ({"rate": {"rule": "harmonic", "mu": 1.0}, "local": STEPS}, Choice("stacked", ALL, 0)),
        ({"direction": {"kind": "momentum"}}, Choice("stacked", ALL, 0)),
        ({"direction": {"kind": "sam"}}, Choice("stacked", ALL, 0)),
        ({"run": {"precision": "float64"}}, Choice("stacked", ALL // 2, 0)),
        ({"task": {"kind": "mlp", "hidden": [400]}}, Choice("stacked", 52, 0)),
        ({"rate": {"rule": "salr"}, "local": STEPS}, SEQUENTIAL),
        ({"direction": {"kind": "whitened"}}, SEQUENTIAL),
        ({"participation": {"scheme": "k-of-n", "k": 1}}, SEQUENTIAL),
        ({"participation": {"scheme": "bernoulli", "p": 0.1}}, SEQUENTIAL),
        ({"task": {"kind": "module", "factory": "tests.unit.test_executors:tanh"}}, Choice("stacked", 5073, 0)),
        ({"task": {"kind": "module", "factory": "tests.unit.test_executors:convolved"}}, SEQUENTIAL),
        ({**WIDE, "partition": {"scheme": "natural"}}, SEQUENTIAL),
        ({"run": {"chunk": 1}}, SEQUENTIAL),
        ({"run": {"executor": "sequential"}}, SEQUENTIAL),
        ({"run": {"chunk": 5}}, Choice("stacked", 5, 0)),
        ({"run": {"executor": "stacked"}}, Choice("stacked", ALL, 0)),
        ({"run": {"executor": "workers", "workers": 3}}, Choice("workers", 1, 3)),
        ({"run": {"executor": "workers", "workers": 3, "chunk": 4}}, Choice("workers", 4, 3)),
    ],
    ids=str,
)
def test_the_rule(tables: dict[str, Any], expected: Choice) -> None:
    assert prepare(of(**tables)).choice == expected


def tanh(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 4), torch.nn.Tanh(), torch.nn.Linear(4, classes))


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("clients", "chunk"), [(12, 6), (5, 3), (3, 2)])
def test_a_long_round_has_two_groups(clients: int, chunk: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of the cache would hold all of them."""
    monkeypatch.setattr(executors, "cores", lambda: cores)
    local = {"epochs": 2, "batch": 10, "order": "reshuffle", "step": 0.1}
    participation = {"scheme": "k-of-n", "k": clients}
    task = {"kind": "mlp", "hidden": [2000]}
    expected = Choice("workers", chunk, 2) if cores > 1 else Choice("stacked", chunk, 0)
    assert prepare(of(task=task, local=local, participation=participation)).choice == expected
    short = {**local, "epochs": 1}
    small = {"kind": "mlp", "hidden": [100]}
    assert prepare(of(task=small, local=short, participation=participation)).choice == Choice("stacked", 209, 0)


@pytest.mark.parametrize(("cores", "expected"), [(1, Choice("stacked", 4, 0)), (8, Choice("workers", 4, 8))])
def test_cores_decide_about_workers_alone(cores: int, expected: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "cores", lambda: cores)
    wide = {"kind": "mlp", "hidden": [6000]}
    long = {"epochs": 1, "batch": 10, "order": "reshuffle", "step": 0.1}
    assert prepare(of(task=wide, local=long)).choice == expected
    assert prepare(of(task=wide, local=long, run={"threads": 2})).choice == Choice("stacked", 4, 0)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        (
            {"run": {"executor": "sequential", "chunk": 2}},
            ["run.executor = 'sequential' and run.chunk = 2", "drop one"],
        ),
        ({"run": {"executor": "stacked", "chunk": 1}}, ["run.chunk = 1", "stacks nothing"]),
        ({"run": {"executor": "stacked"}, "rate": {"rule": "salr"}}, ["run.executor = 'stacked', but rate.rule"]),
        ({"run": {"executor": "stacked"}, "direction": {"kind": "whitened"}}, ["but direction.kind", "use 'auto'"]),
        (
            {"run": {"executor": "stacked"}, "whitening": {"mode": "shared"}, "local": {"steps": 2, "step": 0.1}},
            ["whitening.mode = 'shared'", "one client after another"],
        ),
        ({"run": {"executor": "workers"}, "whitening": {"mode": "shared"}}, ["whitening.mode = 'shared'", "refresh"]),
        ({"run": {"executor": "workers", "threads": 2}}, ["run.threads = 2", "run.threads = 1"]),
        ({"run": {"executor": "stacked", "workers": 2}}, ["run.workers = 2", "use 'workers'"]),
        ({"run": {"executor": "parallel"}}, ["run.executor = 'parallel'"]),
    ],
    ids=str,
)
def test_what_is_refused(tables: dict[str, Any], parts: list[str], refused: Refused) -> None:
    with refused(ConfigError, *parts):
        prepare(of(**tables))
    torch.set_num_threads(1)


SOLVERS: dict[str, dict[str, Any]] = {
    "full gradients": {},
    "rr, momentum that stays": {
        "local": {"order": "reshuffle", "epochs": 2, "batch": 7, "step": 0.1},
        "direction": {"kind": "momentum", "reset": "never"},
    },
    "salr": {"local": {"steps": 3, "batch": 4, "step": 0.1}, "rate": {"rule": "salr"}},
    "a module": {"task": {"kind": "mlp", "hidden": [7]}, "local": {"steps": 2, "batch": 6, "step": 0.1}},
    "half of the clients": {"participation": {"scheme": "bernoulli", "p": 0.4}},
}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("tables", SOLVERS.values(), ids=SOLVERS)
def test_workers_compute_the_bits_of_the_reference(tables: dict[str, Any], workers: int) -> None:
    one = fedsim.run(of(rounds=4, run={"executor": "sequential", "evaluate_every": 1}, **tables))
    run = {"executor": "workers", "workers": workers, "evaluate_every": 1}
    many = fedsim.run(of(rounds=4, run=run, **tables))
    assert many.digest == one.digest
    assert many.metrics == one.metrics


def test_workers_compute_the_bits_of_the_stack() -> None:
    local = {"order": "reshuffle", "epochs": 1, "batch": 7, "step": 0.1, "send": "difference"}
    one = fedsim.run(of(rounds=4, local=local, run={"executor": "stacked", "chunk": 5}))
    many = fedsim.run(of(rounds=4, local=local, run={"executor": "workers", "chunk": 5, "workers": 2}))
    assert many.digest == one.digest


def test_a_resumed_run_is_the_uninterrupted_one_in_every_executor(tmp_path: Path) -> None:
    """And the manifest says what computed it."""
    local = {"order": "reshuffle", "epochs": 1, "batch": 7, "step": 0.1}
    for name, options in {"stacked": {}, "workers": {"workers": 2}, "sequential": {}}.items():
        run = {"executor": name, "checkpoint_every": 2, **options}
        experiment = of(rounds=6, local=local, run=run)
        whole = fedsim.run(experiment)
        with pytest.raises(StoppedError):
            fedsim.run(experiment, tmp_path / name, StopAfter(3))
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["executor"]["executor"] == name
        assert manifest["executor"].keys() == {"executor", "chunk", "workers"}
        again = fedsim.resume(tmp_path / name)
        assert again.digest == whole.digest


def pool(count: int = 2, **tables: Any) -> tuple[Setup, Workers]:
    setup = prepare(of(run={"executor": "workers", "workers": count}, **tables))
    assert setup.workers is not None
    return setup, setup.workers


def ask(setup: Setup, workers: Workers, ids: list[int], t: int = 0) -> Any:
    clients, model = torch.tensor(ids, dtype=torch.int64), setup.task.initial(0)
    stream = Stream(0, Purpose.BATCH, t)
    found = workers.solve(model.expand(len(ids), -1), clients, stream, {})
    alone = solve(setup.task, setup.federation, model.expand(len(ids), -1), clients, setup.plan, stream)
    assert torch.equal(found.direction, alone.direction)
    assert torch.equal(found.losses, alone.losses)
    assert torch.equal(found.samples, alone.samples)
    return found


def test_cohorts_may_grow_and_shrink_and_be_empty() -> None:
    setup, workers = pool()
    with workers:
        for ids in ([3], [], [5, 1], [0], list(range(12)), [7, 2, 9]):
            ask(setup, workers, ids)
        processes = workers._processes
        ask(setup, workers, [1])
        assert workers._processes is processes


def test_each_client_may_have_its_own_model() -> None:
    setup, workers = pool()
    models = setup.task.initial(0) + torch.arange(3.0)[:, None]
    clients, stream = torch.tensor([4, 0, 9]), Stream(0, Purpose.BATCH, 1)
    with workers:
        found = workers.solve(models, clients, stream, {2: Memory(5)})
    alone = solve(setup.task, setup.federation, models, clients, setup.plan, stream)
    assert torch.equal(found.direction, alone.direction)


def test_a_killed_worker_is_an_error_that_names_it(refused: Refused) -> None:
    setup, workers = pool()
    ask(setup, workers, [0, 1])
    victim = workers._processes[1].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    with refused(WorkerError, "worker 2 of 2", str(victim), "signal 9", "run.executor = 'sequential'"):
        ask(setup, workers, [0, 1])
    ask(setup, workers, [0, 1])
    workers.close()


def test_an_error_in_a_worker_comes_back_as_itself() -> None:
    setup, workers = pool(local={"order": "tests.plugins_example:there_and_back", "batch": 2, "steps": 2, "step": 0.1})
    with workers:
        ask(setup, workers, [0, 1])
        object.__setattr__(workers.plan, "order", short)
        workers.close()
        with pytest.raises(ConfigError, match="client 1 is not served"):
            ask(setup, workers, [0, 1])
        object.__setattr__(workers.plan, "order", unspeakable)
        workers.close()
        with pytest.raises(RuntimeError, match="UnspeakableError: a local class"):
            ask(setup, workers, [0, 1])


def short(seed: int, client: int, n: int, epoch: int, clients: int) -> torch.Tensor:
    if client == 1:
        raise ConfigError("client 1 is not served")
    return torch.arange(n)


def unspeakable(seed: int, client: int, n: int, epoch: int, clients: int) -> torch.Tensor:
    class UnspeakableError(Exception):
        pass

    raise UnspeakableError("a local class")


def test_no_process_outlives_its_pool() -> None:
    setup, workers = pool()
    ask(setup, workers, [0, 1, 2])
    pids = [process.pid for process in workers._processes]
    del workers, setup
    gc.collect()
    assert not any(alive(pid) for pid in pids if pid is not None)


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from tests.unit.test_executors import ask, pool\n"
        "setup, workers = pool()\n"
        "ask(setup, workers, [0, 1, 2])\n"
        "print(*(process.pid for process in workers._processes), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Zombies, which wait for whoever adopted them, are dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_work_is_spread_evenly() -> None:
    """Loads differ by at most one group, as whoever gets the last one has the least (Graham 1969)."""
    costs = [int(cost) for cost in torch.randint(1, 100, (57,), generator=torch.Generator().manual_seed(0))]
    groups = [[place] for place in range(57)]
    shares = spread(groups, costs, 4)
    assert sorted(g for share in shares for g in share) == list(range(57))
    loads = [sum(costs[g] for g in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)
    assert max(loads) <= 1.1 * sum(costs) / 4
