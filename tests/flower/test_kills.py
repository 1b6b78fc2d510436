"""kill -9 to workers and servers at random instants: every run completes, and nobody has forgotten anything.

    pytest -m slow tests/flower/test_kills.py -s       the campaigns; without -m slow a few of each

Processes are real, and so are their folders and sockets. Flower's two apps run in this process (or, where it is the
server that is killed, in one of their own), so that a run takes seconds; ``test_kills_deployed`` has Flower's own.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client import records
from client.app import app as client_app
from fedsim import checkpoint
from fedsim.ends.host import alone
from fedsim.experiment import Experiment
from fedsim.wire.link import End
from server.inprocess import InProcessGrid
from tests.faults.conftest import Fedsim
from tests.flower.driven import ARTEMIS, NASTYA, config_of, experiment, grid_of, metrics, play, rows
from tests.flower.workers import Workers, known, workers

MACHINES, CLIENTS = 3, 8
PASSES = {"local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": 0.01}, "server": {"step": 0.02}}
TABLES: dict[str, dict[str, Any]] = {
    "artemis": ARTEMIS,
    "artemis, local epochs": {**ARTEMIS, **PASSES},
    "artemis, momentum": {**ARTEMIS, **PASSES, "direction": {"kind": "momentum"}},
    "diana-nastya": NASTYA,
}
WRITE = 6
"""Steps of a client's write: open, write, force, close, rename, force the folder."""


@pytest.fixture(scope="module")
def three() -> Iterator[Workers]:
    with workers(MACHINES) as made:
        yield made


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are for real networks: who failed is asked again after a few rounds of these runs, and little is said."""
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)
    monkeypatch.setattr("server.post.AGAIN", 0.05)
    monkeypatch.setattr("fedsim.ends.serve.PAUSE", 0.05)


def given_of(name: str, seed: int, rounds: int) -> Experiment:
    return experiment({**TABLES[name], "rounds": rounds, "seed": seed})


# A worker is killed.


@dataclass(frozen=True)
class Kill:
    """Of a worker. at: seconds after the run began; or, if ``step``, when it does that step of changing its folder.

    back: when it is there again. "later": after ``away`` seconds, while the others go on. "again": as another node, at
    once when its loss is noticed. "alone": there is no other, so all wait for it.
    """

    worker: int
    at: float
    step: int
    away: float
    back: str

    @property
    def machines(self) -> int:
        """That share the clients."""
        return 1 if self.back == "alone" else MACHINES


@dataclass
class Killing:
    """A kill on its way. struck: whether it came before the run was over; back: whether the worker is there again."""

    workers: Workers
    kill: Kill
    over: threading.Event = field(default_factory=threading.Event)
    struck: bool = False
    back: bool = False

    def __enter__(self) -> Killing:
        kill = self.kill
        if kill.step:
            self.workers.kill(kill.worker)
            self.workers.start(kill.worker, at=kill.step)
        self.thread = threading.Thread(target=self._work)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _work(self) -> None:
        kill = self.kill
        if kill.step:
            while self.workers.alive(kill.worker):
                if self.over.wait(0.005):  # never came to that step
                    self.workers.kill(kill.worker)
                    self.workers.start(kill.worker)
                    return
        elif self.over.wait(kill.at):
            return
        self.struck = True
        self.workers.kill(kill.worker)
        time.sleep(kill.away)
        self.workers.start(kill.worker)
        self.back = True


class Grid(InProcessGrid):
    """Nodes with workers. before: called with the number of a round when its first call leaves.

    failed: called with a node that did not answer, before that is told; it may put another in its place.
    """

    before: Callable[[int], None] = staticmethod(lambda round: None)
    failed: Callable[[int], None] = staticmethod(lambda node: None)
    begun = -1

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            if (group := message.metadata.group_id) and int(group) > self.begun:
                self.begun = int(group)
                self.before(self.begun)
        return super().push_messages(messages)

    def _answer(self, message: Message) -> Message:
        answer = super()._answer(message)
        if answer.has_error():
            self.failed(message.metadata.dst_node_id)
        return answer


def grid_on(three: Workers, given: Experiment, folder: Path, machines: int = MACHINES) -> Grid:
    return Grid(
        client_app, config_of(given, folder), machines, config=[{"worker": one} for one in three.addresses[:machines]]
    )


def clients_of(answer: Message) -> list[int]:
    """Those whose frames are in an answer to a call."""
    if not answer.has_content() or "answer" not in answer.content:
        return []
    return [client for client, _ in records.answer_of(answer.content)[0]]


def check_killed(three: Workers, given: Experiment, folder: Path, kill: Kill) -> int | None:
    """Play a run in which a worker is killed, and check what it owes; how many clients were seen to return.

    None if the kill came too late. What its clients know is compared with what the server knows, at the first answer of
    each after the kill and again in the end.
    """
    grid, run = grid_on(three, given, folder, kill.machines), given.identifier()
    mine = [client for client in range(CLIENTS) if client % kill.machines == kill.worker]
    returned: set[int] = set()

    def order(answers: list[Message]) -> list[Message]:
        for client in (client for answer in answers for client in clients_of(answer)):
            if killing.back and client in mine and client not in returned:
                standing = three.standing(run, client, kill.machines)
                assert standing is not None
                held = standing.sender
                assert known(folder, client).same(held.end, held.state.rows.memory), client
                returned.add(client)
        return answers

    def before(round: int) -> None:
        if killing.struck and round == given.rounds - 5:
            killing.thread.join()  # leaves it rounds to return in

    def failed(node: int) -> None:
        if kill.back == "again":
            killing.thread.join(60)
            old = grid.leave(node)
            grid.join(node + 1000, old.node_config, old.run_config)

    grid.order, grid.before, grid.failed = order, before, failed
    with Killing(three, kill) as killing:
        play(grid, given, folder)
    if not killing.struck:
        return None
    assert_unforgotten(three, run, folder, mine, kill.machines)
    absent = absences(folder)
    assert {client for _, client in absent} <= set(mine)
    if kill.back != "later":
        assert absent == set()
    expected = folder.with_name(f"{folder.name}-expected")
    play(grid_of(given, expected, kill.machines, without(absent)), given, expected)
    assert_same(folder, expected)
    return len(returned)


def absences(folder: Path) -> set[tuple[int, int]]:
    """(round, client) whose reply was lost. Nothing else was the matter: no refresh, no rejection."""
    incidents = rows(folder / "incidents.csv")
    assert {one["what"] for one in incidents} <= {"trouble", "absent"}
    assert "refresh" not in {line["kind"] for line in rows(folder / "ledger.csv")}
    return {(int(one["round"]), int(one["client"])) for one in incidents if one["what"] == "absent"}


def assert_unforgotten(three: Workers, run: bytes, folder: Path, clients: Iterable[int], machines: int) -> None:
    """What the clients have on disk is what the server knows, to the bit: of the last upload or the one before it."""
    for client in clients:
        standing, ours = three.standing(run, client, machines), known(folder, client)
        if standing is None:
            assert ours.end == End()
            continue
        sender = standing.sender
        sides = [(sender.end, sender.state), *([] if sender.pending is None else [sender.pending])]
        assert any(ours.same(end, held.rows.memory) for end, held in sides), client


def without(absent: set[tuple[int, int]]) -> Callable[[list[Message]], Iterable[Message]]:
    """Answers in which those clients say nothing in those rounds."""

    def order(answers: list[Message]) -> list[Message]:
        for message in answers:
            if clients_of(message):
                replies, troubles = records.answer_of(message.content)
                kept = [(i, frames) for i, frames in replies if (int(message.metadata.group_id), i) not in absent]
                message.content = records.of_answer(kept, troubles)
        return answers

    return order


def assert_same(one: Path, other: Path) -> None:
    """The same model, losses and ledger, but that calls are repeated to clients that are waited for."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [line["loss"] for line in metrics(one)] == [line["loss"] for line in metrics(other)]
    first, second = (dict.fromkeys((place / "ledger.csv").read_text().splitlines()) for place in (one, other))
    assert list(first) == list(second)


def worker_campaign(three: Workers, place: Path, draw: random.Random, runs: int, rounds: int) -> str:
    """So many runs, each with a kill; what they came to."""
    counts = dict.fromkeys(("runs", "in a write", "later", "again", "alone", "returned", "absent"), 0)

    latest = dict[int, float]()

    @cache
    def uploads(name: str, machines: int) -> int:
        """Of the first machine in an undisturbed run, whose seconds are noted."""
        given, folder = given_of(name, 0, rounds), place / f"{name}-{machines}"
        began = time.monotonic()
        play(grid_on(three, given, folder, machines), given, folder)
        latest[machines] = min(latest.get(machines, 60.0), time.monotonic() - began)
        lines = rows(folder / "ledger.csv")
        return sum(line["kind"] == "upload" and int(line["client"]) % machines == 0 for line in lines)

    while counts["runs"] < runs:
        number = counts["runs"]
        name, back = list(TABLES)[number % len(TABLES)], ("later", "again", "alone")[number % 3]
        machines = 1 if back == "alone" else MACHINES
        steps = WRITE * uploads(name, machines)
        in_write = draw.random() < 1 / 3
        kill = Kill(
            worker=draw.randrange(machines),
            at=draw.uniform(0.0, latest[machines]),
            step=draw.randint(1, steps) if in_write else 0,
            away=draw.uniform(0.0, latest[machines] / 2) if back == "later" else 0.0,
            back=back,
        )
        given, folder = given_of(name, draw.randrange(2**31), rounds), place / f"{draw.randrange(2**63)}"
        returned = check_killed(three, given, folder, kill)
        if returned is None:  # after the end, which does not count
            latest[machines] *= 0.9
            continue
        counts["runs"] += 1
        counts["in a write"] += in_write
        counts[back] += 1
        counts["returned"] += returned
        counts["absent"] += len(absences(folder))
        shutil.rmtree(folder)
    return (
        f"{counts['runs']} of {runs} runs with a worker killed completed, each bitwise the run without what was lost "
        f"({counts['in a write']} killed within a write; {counts['absent']} replies lost; back {counts['later']} times "
        f"later, {counts['again']} in the same round as another node, {counts['alone']} as the only one; "
        f"{counts['returned']} returns of a client with the server's digest and memory)"
    )


def test_killed_workers(three: Workers, tmp_path: Path) -> None:
    worker_campaign(three, tmp_path, random.Random(1), runs=3, rounds=15)


@pytest.mark.slow
def test_fifty_killed_workers(three: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = worker_campaign(three, tmp_path, random.Random(2), runs=50, rounds=60)
    with capsys.disabled():
        print(f"\n{said}")


# The server is killed.


def server_campaign(three: Workers, place: Path, draw: random.Random, kills: int, rounds: int) -> str:
    """So many runs of a server that is killed, and the same command again; what they came to.

    A third of the kills is within the write of a checkpoint, which may be done by half.
    """
    equal, in_write, again = 0, 0, 0
    while equal < kills:
        for old in (place / "run", place / "whole"):
            shutil.rmtree(old, ignore_errors=True)
        given, folder = given_of(list(TABLES)[equal % len(TABLES)], draw.randrange(2**31), rounds), place / "run"
        text, whole, log = place / "x.toml", place / "whole", place / "steps"
        text.write_text(given.toml())
        done = three.play(text, whole, fault={"root": str(whole), "log": str(log)})
        assert done.status == 0, done.err
        expected, steps = Fedsim.outcome(whole), json.loads(log.read_text())
        lasts = (whole / "model.safetensors").stat().st_mtime - (whole / "experiment.toml").stat().st_mtime
        for i in range(MACHINES):
            shutil.rmtree(three.folder(i) / given.identifier().hex())
        writes = [i for i, step in enumerate(steps, 1) if "safetensors.new" in step or step == "fsync checkpoint"]
        if equal % 3 == 0:
            fault: dict[str, Any] = {"fault": {"root": str(folder), "at": draw.choice(writes)}}
        else:
            fault = {"signals": [[done.seconds - draw.uniform(0.0, lasts), signal.SIGKILL]]}
        killed = three.play(text, folder, **fault)
        if killed.status == 0:  # the kill came after the end, which does not count
            continue
        assert killed.status == -signal.SIGKILL, killed.err
        found = checkpoint.read(folder / "checkpoint")
        complete = 0 if found is None else found[0].round
        heard = [three.standing(given.identifier(), client, MACHINES) for client in range(CLIENTS)]
        begun = max((standing.seen for standing in heard if standing is not None), default=-1)
        assert begun <= complete, "clients have heard of a round that is played later than the one that is played again"
        resumed = three.play(text, folder)
        assert (resumed.status, resumed.err) == (0, "")
        assert Fedsim.outcome(folder) == expected, fault
        equal, in_write, again = equal + 1, in_write + ("fault" in fault), again + (begun == complete)
    return (
        f"{equal} of {kills} killed servers went on to the model, ledger and metrics of the uninterrupted run, bitwise "
        f"({in_write} killed in the write of a checkpoint; {again} played one round again, the others none)"
    )


def test_killed_servers(three: Workers, tmp_path: Path) -> None:
    server_campaign(three, tmp_path, random.Random(3), kills=2, rounds=12)


@pytest.mark.slow
def test_twenty_killed_servers(three: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = server_campaign(three, tmp_path, random.Random(4), kills=20, rounds=60)
    with capsys.disabled():
        print(f"\n{said}")


# A client's folder is wiped, or an old copy of it put back.


@dataclass(frozen=True)
class Healed:
    """One client. extra: bytes of its REFRESH and MEMORY frames; model: of a whole model that it would not have got."""

    extra: int
    model: int


def heal(three: Workers, given: Experiment, folder: Path, faults: dict[int, str]) -> list[Healed]:
    """Play a run in which before some rounds the clients of a machine lose their folder, or get one 5 rounds old.

    faults: round -> "wiped" or "stale". Whoever no longer knows what the server knows, asks for a refresh when it is
    called, and has replied before the round is over.
    """
    grid, setup, run, copies = grid_on(three, given, folder), alone(given), given.identifier(), folder / "copies"
    parted: list[tuple[int, int]] = []

    def before(round: int) -> None:
        if faults.get(round + 5) == "stale":
            shutil.copytree(three.folder((round + 5) % MACHINES) / run.hex(), copies / f"{round + 5}")
        if round in faults:
            worker = round % MACHINES
            three.kill(worker)
            shutil.rmtree(three.folder(worker) / run.hex())
            if faults[round] == "stale":
                shutil.copytree(copies / f"{round}", three.folder(worker) / run.hex())
            three.start(worker)
        parted.extend((round, client) for client in setup.cohort(round).clients.tolist() if has_parted(client))

    def has_parted(client: int) -> bool:
        standing, server = three.standing(run, client, MACHINES), known(folder, client).end
        mine = [] if standing is None else [standing.sender.end, *(standing.sender.pending or ())[:1]]
        return server not in (End(), *mine)

    grid.before = before
    play(grid, given, folder)
    assert rows(folder / "incidents.csv") == []
    found: dict[tuple[int, int], dict[str, int]] = {}
    for line in rows(folder / "ledger.csv"):
        kinds = found.setdefault((int(line["round"]), int(line["client"])), {})
        kinds[line["kind"]] = kinds.get(line["kind"], 0) + int(line["frame_bytes"])
    healed = {place: kinds for place, kinds in found.items() if "refresh" in kinds}
    assert sorted(healed) == parted
    assert all("upload" in kinds for kinds in healed.values())
    return [
        Healed(kinds["refresh"] + kinds["memory"], kinds["model"] if "updates" in kinds else 0)
        for kinds in healed.values()
    ]


def heal_campaign(three: Workers, place: Path, draw: random.Random, names: list[str], rounds: int, every: int) -> str:
    """One run of each name with a fault every so many rounds; what healing cost."""
    healed, dim, faults = list[Healed](), 0, 0
    for name in names:
        wide = {**TABLES[name], "data": {**ARTEMIS["data"], "features": 60}}  # so that updates are shorter than a model
        given, folder = experiment({**wide, "rounds": rounds, "seed": draw.randrange(2**31)}), place / name
        when = {round: draw.choice(("wiped", "stale")) for round in range(6, rounds, every)}
        one, dim, faults = heal(three, given, folder, when), alone(given).task.dim, faults + len(when)
        assert one
        assert max(client.extra for client in one) <= 4 * dim + 256
        healed += one
        if name == "artemis":  # it remembers nothing but its memory row, which the server knows
            play(grid_of(given, place / "whole", MACHINES), given, place / "whole")
            models = [(each / "model.safetensors").read_bytes() for each in (folder, place / "whole")]
            assert models[0] == models[1]
    whole = [client.model for client in healed if client.model]
    return (
        f"{len(healed)} of {len(healed)} clients healed within their round after {faults} wiped or stale folders, d = "
        f"{dim}, for {min(c.extra for c in healed)} to {max(c.extra for c in healed)} bytes (4 d + 256 = "
        f"{4 * dim + 256}); {len(whole)} had lost the model too, {max(whole)} bytes more"
    )


def test_wiped_and_stale_folders(three: Workers, tmp_path: Path) -> None:
    heal_campaign(three, tmp_path, random.Random(5), ["artemis"], rounds=15, every=3)


@pytest.mark.slow
def test_sixty_wiped_and_stale_folders(three: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = heal_campaign(three, tmp_path, random.Random(6), list(TABLES), rounds=50, every=3)
    with capsys.disabled():
        print(f"\n{said}")
