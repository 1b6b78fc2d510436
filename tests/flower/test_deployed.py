"""fedsim on real SuperNodes, each with a long-lived worker: the model and the ledger of the simulator, to the byte.

The fast test is one small deployment; the others (slow) share one of three machines.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsim.cli import main
from fedsim.experiment import Experiment
from fedsim.simulation.run import run
from tests.flower.deployed import Deployment, deployment, instants_of, rounds_between, watched
from tests.flower.federation import ROOT, FlowerError, marked
from tests.flower.layers import layers, note_sockets

SMALL: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": 6, "per_client": 20},
    "run": {"evaluate_every": 100, "executor": "sequential"},
}
HALF = {"participation": {"scheme": "bernoulli", "p": 0.5}}
ARTEMIS = SMALL | HALF | {"rounds": 5}
LOCAL_EPOCHS = SMALL | {"algorithm": "diana-nastya", "rounds": 3, "local": {"epochs": 2, "batch": 5}}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three machines behind proxies."""
    with deployment(tmp_path_factory.mktemp("three") / "f", proxied=True) as made:
        yield made


def compared(first: Path, second: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``fedsim compare`` prints of two runs that it must find equal."""
    monkeypatch.setattr(sys, "argv", ["fedsim", "compare", str(first), str(second)])
    capsys.readouterr()
    main.main()
    out = capsys.readouterr().out
    assert out.endswith("models: equal to the bit\nledgers: equal to the byte\n")
    return out


def test_a_small_deployment_is_the_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no process is left."""
    experiment = Experiment.of(**SMALL, **HALF, rounds=2)
    run(experiment, tmp_path / "simulated")
    with deployment(tmp_path / "f", machines=2) as machines:
        machines.run(experiment, tmp_path / "deployed")
        marks = [one.mark for one in (machines.federation.link, *machines.federation.nodes, *machines.workers)]
        assert all(marked(mark) for mark in marks)
    out = compared(tmp_path / "simulated", tmp_path / "deployed", monkeypatch, capsys)
    assert "down: Flower message bytes" in out
    assert incidents(tmp_path / "deployed") == []
    assert not any(marked(mark) for mark in marks)


@pytest.mark.slow
@pytest.mark.parametrize("tables", [ARTEMIS, LOCAL_EPOCHS], ids=["artemis p=.5", "diana-nastya"])
def test_three_machines_are_the_simulation(
    three: Deployment,
    tables: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = Experiment.of(**tables)
    run(experiment, tmp_path / "simulated")
    with watched(tmp_path / "deployed" / "ledger.csv") as instants:
        three.run(experiment, tmp_path / "deployed")
    note_sockets(three.federation, rounds_between(instants), tmp_path / "deployed")
    compared(tmp_path / "simulated", tmp_path / "deployed", monkeypatch, capsys)
    assert incidents(tmp_path / "deployed") == []
    up, down = layers(tmp_path / "deployed")
    for way in (up, down):
        assert way.payload < way.frames < way.messages < way.sockets
        assert way.frames - way.payload == 40 * way.frame_count + way.catch_up
        assert (way.messages - way.frames) / way.message_count < 600
        assert (way.sockets - way.messages) / way.message_count < 12_000


@pytest.mark.slow
def test_a_machine_killed_half_way_comes_back_as_another_node(
    three: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 to a SuperNode and its worker, within a round; started again they are a new node with the old clients."""
    experiment = Experiment.of(**SMALL, **HALF, rounds=6)
    run(experiment, tmp_path / "simulated")
    folder = tmp_path / "deployed"
    with watched(folder / "ledger.csv") as instants:
        number = three.submit(experiment, folder)
        instants_of(instants, 3, seconds=120)
        time.sleep(1.5)
        three.kill(1)
        three.start(1)
        three.federation.wait(number).completed()
    compared(tmp_path / "simulated", folder, monkeypatch, capsys)
    with (folder / "messages.csv").open() as file:
        nodes = {line["node"] for line in csv.DictReader(file)}
    assert len(nodes) == 4, "the machine that was killed has two numbers"


@pytest.mark.slow
def test_a_run_that_cannot_begin_says_why(three: Deployment) -> None:
    failed = three.federation.run(ROOT, {"experiment": "rounds = 0"})
    with pytest.raises(FlowerError, match=r"finished:failed:(.|\n)*rounds"):
        failed.completed()


def incidents(folder: Path) -> list[dict[str, str]]:
    with (folder / "incidents.csv").open() as file:
        return list(csv.DictReader(file))
