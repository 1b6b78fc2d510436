"""Flower's two apps, driven in this process, give the simulator's model, ledger and payloads, bit for bit.

Also when nodes come back under another id in the middle of a run, when they forget everything, and when what they send
is late, foreign or poisoned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

import fedsim
from client import records
from fedsim import checkpoint
from fedsim.ends.host import alone
from fedsim.errors import DeployError
from fedsim.experiment import Experiment
from server.inprocess import InProcessGrid
from tests.engines.test_guard import ATTACKS
from tests.flower.driven import ARTEMIS, LINEAR, NASTYA, assert_same, experiment, grid_of, metrics, play, rows


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that failed are asked again at once, and clients that are all in trouble are called again at once."""
    monkeypatch.setattr("server.post.AGAIN", 0.0)
    monkeypatch.setattr("fedsim.ends.serve.PAUSE", 0.0)


RUNS = {"artemis": ARTEMIS, "diana-nastya": NASTYA}


def ends(folder: Path) -> str:
    """A hash of the digests of all that crossed each link, and of how many messages that was."""
    found = checkpoint.read(folder / "checkpoint")
    assert found is not None
    tensors = found[0].tensors
    assert int(tensors["epochs"].sum()) > 20
    return hashlib.sha256(tensors["epochs"].numpy().tobytes() + tensors["digests"].numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("nodes", [1, 3, 8])
@pytest.mark.parametrize("name", RUNS)
def test_the_same_model_ledger_and_payloads(name: str, nodes: int, tmp_path: Path) -> None:
    """With the answers of a round in any order. Every payload is in a digest; every frame is in messages.csv."""
    given, order = experiment(RUNS[name]), np.random.default_rng(nodes)
    fedsim.run(given, tmp_path / "simulated")
    real = Experiment.of(**{**RUNS[name], "run": {"executor": "sequential", "wire": "real"}})
    fedsim.run(real, tmp_path / "real")
    shuffled: list[int] = []

    def shuffle(answers: list[Message]) -> list[Message]:
        shuffled.append(len(answers))
        return [answers[i] for i in order.permutation(len(answers))]

    play(grid_of(given, tmp_path / "served", nodes, shuffle), given, tmp_path / "served")
    assert_same(tmp_path / "served", tmp_path / "simulated")
    assert ends(tmp_path / "served") == ends(tmp_path / "real")
    assert rows(tmp_path / "served" / "incidents.csv") == []
    assert max(shuffled) == nodes
    sent, ledger = rows(tmp_path / "served" / "messages.csv"), rows(tmp_path / "served" / "ledger.csv")
    for way in ("up", "down"):
        crossed = sum(int(line["frame_bytes"]) for line in sent if line["direction"] == way)
        assert crossed == sum(int(line["frame_bytes"]) for line in ledger if line["direction"] == way)
        # One message a node and round, and one that asks each node who it is.
        assert len([line for line in sent if line["direction"] == way]) <= (given.rounds + 1) * nodes


class Restarting(InProcessGrid):
    """At some calls a node dies before it answers, and is back under another id. keeps: whether with its state."""

    def __init__(self, *arguments: Any, when: set[int], keeps: bool, config: dict[str, Any]) -> None:
        self.when, self.keeps, self.config, self.trains, self.deaths = when, keeps, config, 0, 0
        super().__init__(*arguments)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "train":
            self.trains += 1
            if self.trains in self.when:
                self.deaths += 1
                old = self.leave(node)
                self.join(node + 1000, old.node_config, self.config, old.state if self.keeps else None)
        return super()._answer(message)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("patient")
def test_nodes_that_come_back_under_another_id(name: str, tmp_path: Path) -> None:
    """With the state that they had: they are called again in the same round, which ends as if nothing had been."""
    given = experiment(RUNS[name])
    fedsim.run(given, tmp_path / "simulated")
    grid = _restarting(given, tmp_path / "served", {4, 9, 10, 17}, keeps=True)
    play(grid, given, tmp_path / "served")
    assert grid.deaths == 4
    assert_same_but_calls(tmp_path / "served", tmp_path / "simulated")
    assert rows(tmp_path / "served" / "incidents.csv") == []


@pytest.mark.usefixtures("patient")
def test_nodes_that_come_back_with_nothing(tmp_path: Path) -> None:
    """Healed by one refresh within the round: the same model, as Artemis remembers nothing but its memory rows."""
    given = experiment(ARTEMIS)
    fedsim.run(given, tmp_path / "simulated")
    play(_restarting(given, tmp_path / "served", {9, 12}, keeps=False), given, tmp_path / "served")
    served, simulated = (tmp_path / name / "model.safetensors" for name in ("served", "simulated"))
    assert served.read_bytes() == simulated.read_bytes()
    dim = alone(given).task.dim
    ledger = rows(tmp_path / "served" / "ledger.csv")
    healed = [line for line in ledger if line["kind"] == "refresh"]
    assert 1 <= len(healed) <= 6
    for one in healed:
        place = (one["round"], one["client"])
        cost = [line for line in ledger if (line["round"], line["client"]) == place]
        extra = sum(int(line["frame_bytes"]) for line in cost if line["kind"] in ("refresh", "memory"))
        assert extra <= 4 * dim + 256


def _restarting(given: Experiment, folder: Path, when: set[int], keeps: bool) -> Restarting:
    template = grid_of(given, folder, 3)
    config = next(iter(template.contexts.values())).run_config
    return Restarting(template.app, config, 3, when=when, keeps=keeps, config=config)


def assert_same_but_calls(one: Path, other: Path) -> None:
    """The same model and uploads; a client that is called twice in a round costs two calls."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [line["loss"] for line in metrics(one)] == [line["loss"] for line in metrics(other)]
    first, second = (
        [line for line in rows(folder / "ledger.csv") if line["direction"] == "up"] for folder in (one, other)
    )
    assert first == second


Change = Callable[[int, list[records.Reply]], list[records.Reply]]


def changed(change: Change) -> Callable[[list[Message]], Iterable[Message]]:
    """Answers with other replies in them, as a Flower message can carry them. change: of a round."""

    def order(answers: list[Message]) -> list[Message]:
        for message in answers:
            if message.has_content() and "answer" in message.content:
                replies, troubles = records.answer_of(message.content)
                content = records.of_answer(change(int(message.metadata.group_id), replies), troubles)
                message.content = content
        return answers

    return order


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_in_a_flower_message_is_an_absence(name: str, tmp_path: Path) -> None:
    """Bitwise the run in which the attackers say nothing; each rejection has its client, round and reason."""
    attack, reason = ATTACKS[name]
    given = experiment({**ARTEMIS, "data": {**LINEAR["data"], "clients": 9}})
    setup = alone(given)

    def bad(round: int) -> set[int]:
        members = setup.cohort(round).clients.numpy()
        count = max(0, (len(members) - 1) // 2)
        return set(np.random.default_rng([7, round]).permutation(members)[:count].tolist())

    def attacked(round: int, replies: list[records.Reply]) -> list[records.Reply]:
        return [(i, tuple(attack(list(f), setup)) if i in bad(round) else f) for i, f in replies]

    def silent(round: int, replies: list[records.Reply]) -> list[records.Reply]:
        return [(i, f) for i, f in replies if i not in bad(round)]

    for folder, change in (("attacked", attacked), ("silent", silent)):
        play(grid_of(given, tmp_path / folder, 3, changed(change)), given, tmp_path / folder)
    assert_same(tmp_path / "attacked", tmp_path / "silent")
    rejected = [one for one in rows(tmp_path / "attacked" / "incidents.csv") if one["what"] == "rejected"]
    expected = [(t, i) for t in range(given.rounds) for i in sorted(bad(t))]
    assert sorted((int(one["round"]), int(one["client"])) for one in rejected) == expected
    assert len(expected) >= 12
    for one in rejected:
        assert re.search(reason, one["reason"]), one


def test_replies_that_were_not_asked_for(tmp_path: Path) -> None:
    """A node that also answers for others is ignored in that, and what it says of its own is taken."""
    given = experiment(ARTEMIS)
    fedsim.run(given, tmp_path / "simulated")

    def more(round: int, replies: list[records.Reply]) -> list[records.Reply]:
        return [*replies, *(((client + 1) % 8, frames) for client, frames in replies)]

    play(grid_of(given, tmp_path / "served", 8, changed(more)), given, tmp_path / "served")
    assert_same(tmp_path / "served", tmp_path / "simulated")
    incidents = rows(tmp_path / "served" / "incidents.csv")
    assert {one["what"] for one in incidents} == {"foreign"}
    uploads = [line for line in rows(tmp_path / "served" / "ledger.csv") if line["kind"] == "upload"]
    assert [(one["round"], (int(one["client"]) - 1) % 8) for one in incidents] == [
        (line["round"], int(line["client"])) for line in uploads
    ]


def test_late_replies(tmp_path: Path) -> None:
    """Held back until the round is over, which ends by its quorum: counted once, and the clients were absent."""
    given = experiment({**ARTEMIS, "participation": {"scheme": "full"}}, deploy={"min_replies": 6})
    held: list[Message] = []

    def is_slow(message: Message) -> bool:
        return (
            message.has_content() and message.metadata.group_id in ("3", "7") and message.metadata.src_node_id == 1001
        )

    def late(answers: list[Message]) -> list[Message]:
        back, held[:] = list(held), [message for message in answers if is_slow(message)]
        return [*back, *(message for message in answers if not is_slow(message))]

    def never(round: int, replies: list[records.Reply]) -> list[records.Reply]:
        return [(i, frames) for i, frames in replies if not (round in (3, 7) and i % 4 == 1)]

    play(grid_of(given, tmp_path / "late", 4, late), given, tmp_path / "late")
    play(grid_of(given, tmp_path / "never", 4, changed(never)), given, tmp_path / "never")
    found = [one for one in rows(tmp_path / "late" / "incidents.csv") if one["what"] == "late"]
    assert [(one["round"], one["client"], one["reason"]) for one in found] == [
        (str(t + 1), client, f"a reply to round {t}") for t in (3, 7) for client in "15"
    ]
    assert_same(tmp_path / "late", tmp_path / "never")


def failure(given: Experiment, folder: Path, grid: InProcessGrid) -> str:
    with pytest.raises(DeployError) as caught:
        play(grid, given, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_run_without_all_its_nodes_ends_in_one_line(tmp_path: Path) -> None:
    given = experiment(ARTEMIS, deploy={"deadline_s": 0.2, "start_s": 0.2})
    grid = grid_of(given, tmp_path / "a", 3)
    lost = grid.leave(1001)
    assert re.match(
        r"after 0.2 s no node serves partition 1 of 3; start `flower-supernode` there with --node-config "
        r"'partition-id=... num-partitions=3'",
        failure(given, tmp_path / "a", grid),
    )
    grid.join(1001, {**lost.node_config, "worker": "unix:/nowhere/w.sock"}, lost.run_config)
    assert re.search(
        r"partition 1 of 3 \(node 1001: no worker at unix:/nowhere/w.sock", failure(given, tmp_path / "b", grid)
    )
    grid = grid_of(given, tmp_path / "c", 1)
    grid.leave(1000)
    assert failure(given, tmp_path / "c", grid).startswith("after 0.2 s no node is connected; start `flower-supernode")
    grid.join(5, {}, lost.run_config)
    assert "node 5: partition-id -1 of num-partitions -1; start it with --node-config" in failure(
        given, tmp_path / "d", grid
    )
    # More nodes than clients: the nodes without any need not be there.
    grid = grid_of(given, tmp_path / "e", 12)
    grid.leave(1011)
    play(grid, given, tmp_path / "e")


def test_a_node_of_another_fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = experiment(ARTEMIS, deploy={"deadline_s": 0.2, "start_s": 0.2})
    monkeypatch.setattr("client.app.version", lambda name: "9.9.9")
    said = failure(given, tmp_path / "a", grid_of(given, tmp_path / "a", 1))
    assert re.search(r"node 1000: it runs fedsim 9.9.9, the server fedsim \S+; install the same on both", said)


@pytest.mark.usefixtures("patient")
def test_an_experiment_that_nodes_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's word for it arrives, not a traceback."""
    given = experiment(ARTEMIS, deploy={"deadline_s": 0.2, "start_s": 0.2})
    grid = grid_of(given, tmp_path / "a", 1)
    grid.contexts[1000].run_config["experiment"] = "data.source = 'libsvm'\ndata.path = '/nowhere/a9a'"
    assert "node 1000: /nowhere/a9a" in failure(given, tmp_path / "a", grid)


@pytest.mark.usefixtures("patient")
def test_a_client_app_that_crashes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once: its clients are called again. Content that is not an answer: the same."""
    given = experiment(ARTEMIS)
    fedsim.run(given, tmp_path / "simulated")
    grid, calls = grid_of(given, tmp_path / "served", 3), list[str]()
    real = grid.app

    def flaky(message: Message, context: Context) -> Message:
        calls.append(message.metadata.message_type)
        if len(calls) == 8:
            raise ZeroDivisionError("of the test\nwith two lines")
        if len(calls) == 14:
            return Message(RecordDict(), reply_to=message)
        return real(message, context)

    grid.app = flaky  # type: ignore[assignment]
    play(grid, given, tmp_path / "served")
    assert_same_but_calls(tmp_path / "served", tmp_path / "simulated")
    assert re.search(r"node 100\d: Flower's error 2: with two lines", caplog.text)
    assert re.search(r"node 100\d: a message without the record 'answer'", caplog.text)
