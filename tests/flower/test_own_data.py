"""Each client of a deployment brings its own file, and nobody else sees it: the simulator's model with the same files.

Through Flower's two apps in this process, where a node is what its node config says; once with a real worker process.
"""

from __future__ import annotations

import re
import signal
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

import fedsim
from client.app import app as client_app
from fedsim.ends import own
from fedsim.ends.host import read
from fedsim.errors import ConfigError, DeployError, StoppedError
from fedsim.experiment import Experiment
from server.inprocess import InProcessGrid
from tests.absences import simulated
from tests.deploy.test_worker_process import Worker
from tests.flower.driven import assert_same_files, config_of, metrics, play, rows
from tests.own_files import OWN, write_three

Refused = Callable[..., Any]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that failed are asked again at once, and clients that are all in trouble are called again at once."""
    monkeypatch.setattr("server.post.AGAIN", 0.0)
    monkeypatch.setattr("fedsim.ends.serve.PAUSE", 0.0)


def blind(**more: Any) -> Experiment:
    return Experiment.of(**{**OWN, **more})


def whole(paths: list[str], **more: Any) -> Experiment:
    return Experiment.of(**{**OWN, **more, "data": {**OWN["data"], "paths": paths}})


def grid_of(given: Experiment, folder: Path, configs: list[dict[str, Any]]) -> InProcessGrid:
    return InProcessGrid(client_app, config_of(given, folder), len(configs), config=configs)


def brought(paths: list[str]) -> list[dict[str, Any]]:
    return [{"data": path} for path in paths]


RECIPES: dict[str, dict[str, Any]] = {
    "artemis": {"participation": {"scheme": "bernoulli", "p": 0.7}},
    "reshuffled": {"algorithm": "diana-nastya", "local": {"epochs": 1, "batch": 8, "step": 0.02}},
    "uniform": {"server": {"step": 0.02, "weights": "uniform"}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_simulators_model_and_ledger(name: str, tmp_path: Path) -> None:
    paths = write_three(tmp_path)
    given = blind(**RECIPES[name])
    fedsim.run(whole(paths, **RECIPES[name]), tmp_path / "simulated")
    play(grid_of(given, tmp_path / "served", brought(paths)), given, tmp_path / "served")
    assert_same_files(tmp_path / "served", tmp_path / "simulated", "model.safetensors", "ledger.csv")
    assert rows(tmp_path / "served" / "incidents.csv") == []
    served, known = metrics(tmp_path / "served"), metrics(tmp_path / "simulated")
    assert len(served) == 4
    # The server has no data, so that it knows no loss, and everything else.
    assert served == [{key: value for key, value in line.items() if key != "loss"} for line in known]


def test_what_the_server_has_itself(tmp_path: Path) -> None:
    """A test set is its alone; nodes are not told of it."""
    paths = write_three(tmp_path)
    tested = {"data": {**OWN["data"], "test": paths[0]}}
    fedsim.run(blind(data={**tested["data"], "paths": paths}), tmp_path / "simulated")
    given = blind(**tested)
    play(grid_of(given, tmp_path / "served", brought(paths)), given, tmp_path / "served")
    served, known = metrics(tmp_path / "served"), metrics(tmp_path / "simulated")
    assert [line["test_loss"] for line in served] == [line["test_loss"] for line in known]
    assert served[-1]["test_loss"] < served[0]["test_loss"]
    assert tomllib.loads(own.bound(given.toml(), node(1, 3, paths[1])))["data"]["test"] == ""


def node(number: int, nodes: int, data: str | None = None) -> dict[str, Any]:
    return {"partition-id": number, "num-partitions": nodes, **({} if data is None else {"data": data})}


def test_a_node_sees_its_own_path_alone() -> None:
    given = blind()
    bound = read(own.bound(given.toml(), node(2, 3, "/data/c.csv")))
    assert bound.identifier() == given.identifier()
    assert bound.table()["data"] == {**given.table()["data"], "paths": ("", "", "/data/c.csv")}
    # An experiment that names its data is nobody's own; nor is what cannot be read, which others complain of.
    for text in ("", "data.source = 'digits'", "rounds = ", "data = 3", "data = {source = 'own'}"):
        assert own.bound(text, node(0, 1, "/data/c.csv")) == text
    paths = whole(["a", "b", "c"]).toml()
    assert own.bound(paths, node(0, 3)) == paths


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (node(0, 3), "clients bring their own data; start this node with data='/path/of/it' in --node-config"),
        (node(0, 2, "/a.csv"), "partition-id 0 of num-partitions 2 brings data, but the experiment has 3 clients"),
        (node(3, 3, "/a.csv"), "partition-id 3 of num-partitions 3 brings data, but the experiment has 3 clients"),
        ({"data": "/a.csv"}, "partition-id None of num-partitions None brings data"),
        (node(0, 3, "a.csv"), "data = 'a.csv' in the node config: expected a path that begins with /"),
    ],
)
def test_a_node_config_that_cannot_be(config: Mapping[str, Any], message: str, refused: Refused) -> None:
    with refused(ConfigError, message):
        own.bound(blind().toml(), config)


def damaged(folder: Path, what: str) -> str:
    path = folder / "a.csv"
    lines = path.read_text().splitlines(keepends=True)
    if what == "missing":
        path.unlink()
    elif what == "narrow":
        lines = [line.partition(",")[2] for line in lines]
    elif what == "label":
        lines[7] = lines[7].rpartition(",")[0] + ",eleven\n"
    elif what == "short":
        lines = lines[:-1]
    if what != "missing":
        path.write_text("".join(lines))
    return str(path)


DAMAGES = {
    "missing": "a.csv: no such file",
    "narrow": "a.csv:2: 64 columns, expected 65, which are 64 features and a label",
    "label": "a.csv:8: label 'eleven', expected one of 0 to 9",
    "short": "a.csv: 39 samples, but data.samples says 40 for client 0; mend either",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_file_that_does_not_fit_is_named_at_the_server(what: str, tmp_path: Path) -> None:
    paths = write_three(tmp_path)
    damaged(tmp_path, what)
    given = blind(deploy={"start_s": 0.2})
    with pytest.raises(DeployError) as caught:
        play(grid_of(given, tmp_path / "served", brought(paths)), given, tmp_path / "served")
    said = str(caught.value)
    assert "\n" not in said
    assert re.match(r"after 0.2 s no node serves partition 0 of 3 \(node 1000: /", said)
    assert DAMAGES[what] in said


class Eventful(InProcessGrid):
    """Something happens before some node is called for the so-manieth time."""

    def __init__(self, *arguments: Any, events: dict[int, Callable[[Eventful], None]], **more: Any) -> None:
        self.events, self.trains = events, 0
        super().__init__(*arguments, **more)

    def _answer(self, message: Message) -> Message:
        if message.metadata.message_type == "train":
            self.trains += 1
            self.events.get(self.trains, lambda grid: None)(self)
        return super()._answer(message)


def test_a_fourth_client_joins_a_run(tmp_path: Path) -> None:
    """Registered in the experiment, absent until its node comes, then as good as any: the simulator's with absences."""
    paths = write_three(tmp_path)
    data = {**OWN["data"], "samples": [40, 50, 30, 40]}
    given = blind(data=data, rounds=5, deploy={"start_nodes": 3})
    config = config_of(given, tmp_path / "served")

    def join(grid: Eventful) -> None:
        grid.join(7000, node(3, 4, paths[0]), config)

    grid = Eventful(client_app, config, 0, events={5: join})
    for i in range(3):
        grid.join(1000 + i, node(i, 4, paths[i]), config)
    play(grid, given, tmp_path / "served")
    found = rows(tmp_path / "served" / "incidents.csv")
    assert [(one["round"], one["client"]) for one in found if one["what"] == "absent"] == [("0", "3"), ("1", "3")]
    assert {one["reason"] for one in found if one["what"] == "trouble"} == {"no node serves partition 3 of 4"}
    known = blind(data={**data, "paths": [*paths, paths[0]]}, rounds=5)
    state = simulated(known, lambda round, client: client == 3 and round < 2)
    served = fedsim_model(tmp_path / "served")
    assert served == state.server.model.numpy().tobytes()


def fedsim_model(folder: Path) -> bytes:
    from safetensors.torch import load_file

    return bytes(load_file(folder / "model.safetensors")["model"].numpy().tobytes())


@pytest.fixture
def worker() -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as place:
        made = Worker(Path(place))
        made.start()
        assert made.said().startswith("fedsim worker: process")
        yield made
        if made.process is not None and made.process.poll() is None:
            made.end(signal.SIGKILL)


def test_a_worker_whose_file_changes_while_it_is_down(worker: Worker, tmp_path: Path) -> None:
    """Killed and back with another file it is in trouble, by name; back with the file it began with, all is as before.

    The other nodes go on meanwhile: the simulator's model with these absences.
    """
    paths = write_three(tmp_path)
    given = blind()
    kept, other = (tmp_path / "a.csv").read_text(), (tmp_path / "a.csv").read_text().replace(",0.0,", ",0.5,", 1)
    assert kept != other

    def restart(text: str) -> Callable[[Eventful], None]:
        def event(grid: Eventful) -> None:
            worker.end(signal.SIGKILL)
            (tmp_path / "a.csv").write_text(text)
            worker.start()
            assert worker.said()

        return event

    # Three calls a round: at the first of round 2, and again of round 4.
    configs = [{"data": paths[0], "worker": worker.address}, *brought(paths[1:])]
    grid = Eventful(
        client_app,
        config_of(given, tmp_path / "served"),
        3,
        config=configs,
        events={7: restart(other), 13: restart(kept)},
    )
    play(grid, given, tmp_path / "served")
    found = rows(tmp_path / "served" / "incidents.csv")
    assert {one["reason"] for one in found if one["what"] == "trouble"} == {
        "client 0's data is not what it began this run with; put it back, or run anew"
    }
    absent = {(int(one["round"]), int(one["client"])) for one in found if one["what"] == "absent"}
    assert absent == {(2, 0), (3, 0)}
    state = simulated(whole(paths), lambda round, client: (round, client) in absent)
    assert fedsim_model(tmp_path / "served") == state.server.model.numpy().tobytes()


def test_a_node_that_is_told_of_no_data(tmp_path: Path) -> None:
    given = blind(deploy={"start_s": 0.2})
    grid = grid_of(given, tmp_path / "served", [{}, {}, {}])
    with pytest.raises(DeployError, match=r"no node can serve: node 1000: clients bring their own data; start this"):
        play(grid, given, tmp_path / "served")


def test_a_client_app_replies_with_the_reason(tmp_path: Path) -> None:
    """Also in a round, when the file is gone that was there when the node introduced itself."""
    paths = write_three(tmp_path)
    given = blind(rounds=3, deploy={"deadline_s": 0.5})

    def lose(grid: Eventful) -> None:
        (tmp_path / "b.svm").unlink()

    grid = Eventful(client_app, config_of(given, tmp_path / "served"), 3, config=brought(paths), events={4: lose})
    play(grid, given, tmp_path / "served")
    found = rows(tmp_path / "served" / "incidents.csv")
    reasons = [one["reason"] for one in found if one["what"] == "trouble"]
    assert len(reasons) == 2
    assert all(
        re.match(r".*node 1001: (Flower's error 2: )?\S*b.svm: no such file; give the path", reason)
        for reason in reasons
    )
    assert [(one["round"], one["client"]) for one in found if one["what"] == "absent"] == [("1", "1"), ("2", "1")]


def test_a_server_that_was_stopped_goes_on_without_a_loss(tmp_path: Path) -> None:
    paths = write_three(tmp_path)
    given = blind()

    def stop(grid: Eventful) -> None:
        raise StoppedError("by the test")

    grid = Eventful(client_app, config_of(given, tmp_path / "served"), 3, config=brought(paths), events={11: stop})
    with pytest.raises(StoppedError):
        play(grid, given, tmp_path / "served")
    assert not (tmp_path / "served" / "model.safetensors").exists()
    play(grid, given, tmp_path / "served")
    fedsim.run(whole(paths), tmp_path / "simulated")
    assert_same_files(tmp_path / "served", tmp_path / "simulated", "model.safetensors", "ledger.csv")
    assert [line["round"] for line in metrics(tmp_path / "served")] == [0, 2, 4, 6]
