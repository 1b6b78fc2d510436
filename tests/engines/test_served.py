"""A served run: the round loop, its waiting, its folder. The machines are real hosts; only what carries frames is here.

Proved bitwise against the simulator in its sequential executor: final model, ledger.csv and metrics (but for the count
of gradients, which is the clients' own); with several clients a machine; with replies in any order; after a server that
was stopped at any of the calls it makes; with machines that forget or remember what they should not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.ends import serve as serving
from fedsim.ends.answer import Answer
from fedsim.ends.host import Host, alone
from fedsim.ends.post import Envelope, Parcel
from fedsim.ends.serve import Service, serve
from fedsim.ends.server import ServerEnd
from fedsim.ends.store import Drawer
from fedsim.errors import CheckpointError, DeployError
from fedsim.experiment import Experiment
from fedsim.ledger import Ledger
from fedsim.simulation.spread import MEASURES as SPREAD

LINEAR = {"data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 5}}
HALF = {"scheme": "bernoulli", "p": 0.5}
ARTEMIS: dict[str, Any] = {**LINEAR, "participation": HALF, "rounds": 12, "seed": 3}
NASTYA: dict[str, Any] = {**LINEAR, "algorithm": "diana-nastya", "participation": HALF, "rounds": 8, "seed": 3}


class Machines:
    """Hosts, each of the clients that are its number modulo their count. spoil: what becomes of an answer."""

    def __init__(self, count: int, spoil: Callable[[Parcel], Sequence[Parcel]] = lambda parcel: [parcel]) -> None:
        self.drawers: list[dict[str, bytes]] = [{} for _ in range(count)]
        self.hosts = [self.host(i) for i in range(count)]
        self.spoil, self.text = spoil, ""
        self.arrived: list[Parcel] = []
        self.sent: list[Envelope] = []
        self.order = np.random.default_rng(0)
        self.calls = 0

    def host(self, i: int) -> Host:
        return Host(lambda run, client: Drawer(self.drawers[i], run, client))

    def open(self, experiment: Experiment, clients: int) -> None:
        self.text = experiment.toml()

    def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
        self.calls += 1
        for i, host in enumerate(self.hosts):
            mine = [client for client in calls if client % len(self.hosts) == i]
            if mine:
                frames = [frame for client in mine for frame in calls[client]]
                self.sent.append(Envelope(round, False, i, len(mine), len(frames), sum(map(len, frames)), 0))
                self.arrived += self.spoil(Parcel(round, frozenset(mine), host.play(self.text, frames)))

    def collect(self, seconds: float) -> list[Parcel]:
        arrived = [self.arrived[i] for i in self.order.permutation(len(self.arrived))]
        self.arrived = []
        return arrived

    def envelopes(self) -> list[Envelope]:
        sent, self.sent = self.sent, []
        return sent


def experiment(tables: dict[str, Any], **more: Any) -> Experiment:
    return Experiment.of(**{**tables, "run": {"executor": "sequential", "evaluate_every": 3}, **more})


def simulated(given: Experiment, folder: Path) -> Path:
    fedsim.run(given, folder)
    return folder


OWN = {"gradients", *SPREAD}
"""What only a simulation knows: the clients' own."""


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OWN} for line in lines]


def assert_same(served: Path, other: Path) -> None:
    for name in ("model.safetensors", "ledger.csv", "experiment.toml"):
        assert (served / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics(served) == metrics(other)


def incidents(folder: Path) -> list[dict[str, str]]:
    with (folder / "incidents.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("tables", [ARTEMIS, NASTYA], ids=["artemis", "diana-nastya"])
def test_a_served_run_leaves_the_folder_of_a_simulated_one(tables: dict[str, Any], count: int, tmp_path: Path) -> None:
    given = experiment(tables)
    result = serve(given, tmp_path / "served", Machines(count), engine="machines")
    assert_same(tmp_path / "served", simulated(given, tmp_path / "simulated"))
    assert incidents(tmp_path / "served") == []
    manifest = json.loads((tmp_path / "served" / "manifest.json").read_text())
    assert (manifest["engine"], manifest["status"]) == ("machines", "finished")
    assert manifest["model_sha256"] == result.digest
    with (tmp_path / "served" / "messages.csv").open() as file:
        sent = list(csv.DictReader(file))
    ledger = (tmp_path / "served" / "ledger.csv").read_text().splitlines()
    assert sum(int(line["frame_bytes"]) for line in sent) == sum(
        int(line.split(",")[-1]) for line in ledger if ",down," in line
    )


def test_a_machine_that_starts_again_before_every_call(tmp_path: Path) -> None:
    """Its drawers are all it has; two such runs in a row find the drawers of the first, and begin anew."""
    given = experiment(ARTEMIS)

    class Restarting(Machines):
        def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
            self.hosts = [self.host(i) for i in range(len(self.hosts))]
            super().send(round, calls)

    machines = Restarting(2)
    for folder in ("first", "second"):
        serve(given, tmp_path / folder, machines)
        assert_same(tmp_path / folder, simulated(given, tmp_path / f"simulated-{folder}"))


@pytest.mark.parametrize("at", range(1, 12, 2))
def test_a_server_that_stops_anywhere_goes_on_bitwise(at: int, tmp_path: Path) -> None:
    """Killed after clients were called, before a reply counts: the round is played again, the clients roll back."""
    given = experiment(ARTEMIS)

    class Breaking(Machines):
        def collect(self, seconds: float) -> list[Parcel]:
            if self.calls == at:
                raise KeyboardInterrupt
            return super().collect(seconds)

    machines = Breaking(3)
    with pytest.raises(KeyboardInterrupt):
        serve(given, tmp_path / "served", machines)
    again = Machines(3)
    again.hosts, again.drawers = machines.hosts, machines.drawers
    serve(given, tmp_path / "served", again)
    assert_same(tmp_path / "served", simulated(given, tmp_path / "simulated"))


def test_a_wiped_machine_is_healed_in_its_round(tmp_path: Path) -> None:
    """Same model bitwise, one refresh more a client: an empty frame up; the memory and at most the model down."""
    given = experiment(ARTEMIS, participation={"scheme": "full"})

    class Wiped(Machines):
        def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
            if self.calls == 7:
                self.drawers[1].clear()
                self.hosts[1] = self.host(1)
            super().send(round, calls)

    serve(given, tmp_path / "served", Wiped(4))
    simulated(given, tmp_path / "simulated")
    model = "model.safetensors"
    assert (tmp_path / "served" / model).read_bytes() == (tmp_path / "simulated" / model).read_bytes()
    lines, fewer = ((tmp_path / name / "ledger.csv").read_text().splitlines() for name in ("served", "simulated"))
    more = set(lines) - set(fewer)
    assert sorted(line.split(",", 4)[3] for line in more) == [
        "memory",
        "memory",
        "model",
        "model",
        "refresh",
        "refresh",
    ]


def test_answers_that_do_not_count_change_nothing(tmp_path: Path) -> None:
    """Late, doubled and foreign replies are written down with their round, client and bytes, and ignored."""
    given = experiment(ARTEMIS, participation={"scheme": "full"})
    kept: list[Parcel] = []

    def spoil(parcel: Parcel) -> list[Parcel]:
        replies = parcel.answer.replies
        foreign = Parcel(parcel.round, frozenset({99}), Answer(replies[:1]))
        late = [Parcel(old.round, old.clients, old.answer) for old in kept if old.round == parcel.round - 1]
        kept.append(parcel)
        return [*late, foreign, parcel]

    machines = Machines(2, spoil)
    serve(given, tmp_path / "served", machines)
    assert_same(tmp_path / "served", simulated(given, tmp_path / "simulated"))
    found = incidents(tmp_path / "served")
    assert {one["what"] for one in found} == {"foreign", "late"}
    assert all(int(one["bytes"]) > 0 for one in found)
    assert sum(one["what"] == "late" for one in found) == 2 * 8 * (given.rounds - 1)

    doubled = Machines(2, lambda parcel: [parcel, parcel])
    serve(given, tmp_path / "doubled", doubled)
    assert_same(tmp_path / "doubled", tmp_path / "simulated")
    assert {one["what"] for one in incidents(tmp_path / "doubled")} == {"duplicate"}


def test_a_machine_in_trouble_makes_its_clients_absent(tmp_path: Path) -> None:
    """Bitwise the run in which its replies are lost; the reason is in incidents.csv, on one line."""
    given = experiment(ARTEMIS, participation={"scheme": "full"})

    def broken(parcel: Parcel) -> list[Parcel]:
        if parcel.round not in (2, 5) or 1 not in parcel.clients:
            return [parcel]
        return [Parcel(parcel.round, parcel.clients, Answer((), tuple((i, "no\nroom") for i in parcel.clients)))]

    def silent(parcel: Parcel) -> list[Parcel]:
        return [] if parcel.round in (2, 5) and 1 in parcel.clients else [parcel]

    serve(given, tmp_path / "broken", Machines(4, broken))
    impatient = experiment(ARTEMIS, participation={"scheme": "full"}, deploy={"deadline_s": 0.05})
    serve(impatient, tmp_path / "silent", Machines(4, silent))
    for name in ("model.safetensors", "ledger.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "silent" / name).read_bytes()
    found = [(one["round"], one["client"], one["what"], one["reason"]) for one in incidents(tmp_path / "broken")]
    assert found[:2] == [("2", "1", "trouble", "no room"), ("2", "5", "trouble", "no room")]
    assert found[2:4] == [("2", "1", "absent", ""), ("2", "5", "absent", "")]
    absent = [(one["round"], one["client"], one["what"]) for one in incidents(tmp_path / "silent")]
    assert absent == [(t, i, "absent") for t in "25" for i in "15"]


def test_a_round_ends_with_enough_replies(tmp_path: Path) -> None:
    """min_replies = 6 of 8, two clients on each of four machines: the last machine of a round is late for it."""
    given = experiment(ARTEMIS, participation={"scheme": "full"}, deploy={"min_replies": 6})

    class Slow(Machines):
        def collect(self, seconds: float) -> list[Parcel]:
            arrived, self.arrived = self.arrived[:1], self.arrived[1:]
            return arrived

    serve(given, tmp_path / "served", Slow(4))
    found = incidents(tmp_path / "served")
    assert sum(one["what"] == "absent" for one in found) == 2 * given.rounds
    assert sum(one["what"] == "late" for one in found) == 2 * (given.rounds - 1)
    assert np.isfinite(metrics(tmp_path / "served")[-1]["loss"])


def test_nobody_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops with the reasons, and goes on once there is somebody."""
    monkeypatch.setattr(serving, "PAUSE", 0.01)
    given = experiment(ARTEMIS, participation={"scheme": "full"}, deploy={"deadline_s": 0.02})

    def troubled(parcel: Parcel) -> list[Parcel]:
        if parcel.round < 3:
            return [parcel]
        return [Parcel(parcel.round, parcel.clients, Answer((), tuple((i, "on fire") for i in parcel.clients)))]

    machines = Machines(2, troubled)
    with pytest.raises(DeployError, match=r"^round 3: none of 8 clients replied within [\d.]+ s \(on fire\); mend the"):
        serve(given, tmp_path / "served", machines)
    machines.arrived.clear()
    machines.spoil = lambda parcel: [] if parcel.round == 6 else [parcel]
    with pytest.raises(
        DeployError, match=r"^round 6: none of 8 clients replied within [\d.]+ s; mend the clients, then"
    ):
        serve(given, tmp_path / "served", machines)
    machines.spoil = lambda parcel: [parcel]
    serve(given, tmp_path / "served", machines)
    assert_same(tmp_path / "served", simulated(given, tmp_path / "simulated"))


def test_machines_that_come_back_within_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in trouble at once, and then not: called again, answered with the same bytes, nothing lost."""
    monkeypatch.setattr(serving, "PAUSE", 0.01)
    given = experiment(ARTEMIS, participation={"scheme": "full"})
    told: set[int] = set()

    def spoil(parcel: Parcel) -> list[Parcel]:
        if parcel.round == 4 and not parcel.clients <= told:
            told.update(parcel.clients)
            return [Parcel(4, parcel.clients, Answer((), tuple((i, "starting") for i in parcel.clients)))]
        return [parcel]

    serve(given, tmp_path / "served", Machines(2, spoil))
    simulated(given, tmp_path / "simulated")
    model = "model.safetensors"
    assert (tmp_path / "served" / model).read_bytes() == (tmp_path / "simulated" / model).read_bytes()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    serve(experiment(ARTEMIS, rounds=1), tmp_path / "served", Machines(1))
    with pytest.raises(CheckpointError, match="holds another experiment; give another folder"):
        serve(experiment(ARTEMIS, rounds=2), tmp_path / "served", Machines(1))


def test_what_a_host_refuses() -> None:
    """A text or bytes that are none is one line for the caller; a client that does not exist is its own trouble."""
    given = experiment(ARTEMIS)
    server, host = ServerEnd(alone(given), ledger=Ledger()), Host(lambda run, client: None)
    call = server.call(1)[0]
    with pytest.raises(fedsim.FedsimError, match="the experiment is not valid TOML"):
        host.play("= 3", [call])
    with pytest.raises(fedsim.FedsimError, match="frame of 4 bytes is cut short"):
        host.play(given.toml(), [b"call"])
    other = experiment(ARTEMIS, seed=4)
    assert host.play(other.toml(), [call]).troubles[0][1].startswith("frame for client 1 of run ")
    fewer = experiment({**ARTEMIS, "data": {**LINEAR["data"], "clients": 1}})
    assert host.play(fewer.toml(), [call]).troubles == ((1, "a frame for client 1, but the experiment has 1"),)
    assert [client for client, _ in host.play(given.toml(), [call]).replies] == [1]


def test_a_host_whose_disk_is_full() -> None:
    """Nothing leaves; the client is as it was at the next call."""
    given = experiment(ARTEMIS)
    server, full = ServerEnd(alone(given), ledger=Ledger()), [True]

    class Disk(Drawer):
        def save(self, standing: Any) -> None:
            if full[0]:
                raise OSError(28, "No space left on device")
            super().save(standing)

    drawers: dict[str, bytes] = {}
    host = Host(lambda run, client: Disk(drawers, run, client))
    call = server.call(1)[0]
    refused = host.play(given.toml(), [call])
    assert refused == Answer((), ((1, "cannot keep its state (No space left on device); mend its disk"),))
    full[0] = False
    assert host.play(given.toml(), [call]) == Host(lambda run, client: None).play(given.toml(), [call])


def test_damaged_drawers_are_empty_ones() -> None:
    given = experiment(ARTEMIS)
    setup = alone(given)
    server, drawers = ServerEnd(setup, ledger=Ledger()), dict[str, bytes]()
    expected = Host(lambda run, client: Drawer(drawers, run, client)).play(given.toml(), server.call(2))
    for name in list(drawers):
        hurt = {**drawers, name: drawers[name][:20]}
        host = Host(lambda run, client, hurt=hurt: Drawer(hurt, run, client))  # type: ignore[misc]
        assert host.play(given.toml(), server.call(2)) == expected
        assert "damaged" in host.ends[2].damage


def test_a_service_waits_no_longer_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: with one reply the deadline, with none ten of them."""
    given = experiment(ARTEMIS, participation={"scheme": "full"}, deploy={"deadline_s": 5.0})
    now = [0.0]

    class Ticking(Machines):
        def collect(self, seconds: float) -> list[Parcel]:
            now[0] += min(seconds, 1.0)
            return super().collect(seconds)

    for spoil, expected in (
        (lambda parcel: [parcel] if 0 in parcel.clients else [], 5.0),
        (lambda parcel: [], 50.0),
    ):
        now[0] = 0.0
        service = Service(ServerEnd(alone(given), ledger=Ledger()), Ticking(4, spoil))
        service.clock = lambda: now[0]
        try:
            service.play()
        except DeployError:
            assert expected == 50.0
        assert now[0] == pytest.approx(expected)


def test_a_client_that_fails_in_a_way_nobody_foresaw(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the server, the traceback on the machine, and nothing to the other clients."""
    given = experiment(ARTEMIS)
    server = ServerEnd(alone(given), ledger=Ledger())

    class Broken(Drawer):
        def load(self, device: Any) -> Any:
            raise ZeroDivisionError("nobody\nforesaw this")

    host = Host(lambda run, client: Broken({}, run, client) if client == 1 else None)
    found = host.play(given.toml(), [server.call(1)[0], server.call(2)[0]])
    assert found.troubles == ((1, "ZeroDivisionError: nobody foresaw this; see the log there"),)
    assert [client for client, _ in found.replies] == [2]
    assert "Traceback" in capsys.readouterr().err
