"""A client that is killed at any instant, or loses its folder, is back in the next round.

Complete: every step by which a client changes its folder is a place to be killed at, in a forked process that gets
SIGKILL there (``zygote.Disk``, a write is done by half). The server goes on; the client made anew from the folder hears
the next call. Its memory row is then what the server holds for it, and the run is bitwise the one in which the uploads
that never left were lost.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.checkpoint import SLOTS, Checkpoint, read, write
from fedsim.ends.client import ClientEnd
from fedsim.ends.server import ServerEnd
from fedsim.ends.store import Store
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry
from fedsim.simulation.setup import Setup, prepare

ROUNDS = 8
VICTIM = 2
LINEAR = {"data": {"source": "synthetic-linear", "clients": 4, "per_client": 15, "features": 40}, "seed": 3}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "artemis": {},
    "everything": {
        "uplink": {"levels": 8, "feedback": "step"},
        "local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": 0.001},
        "direction": {"kind": "momentum"},
        "server": {"step": 0.002},
    },
    "pp1": {"server": {"memory": "pp1"}},
    "no memory": {"algorithm": "bi-qsgd"},
}
Meet = Callable[[int, ServerEnd, ClientEnd], tuple[ClientEnd, list[bytes]]]
"""The victim's part of a round: the client that goes on, and the frames that reach the server (none: no reply)."""


def made(name: str) -> Setup:
    return prepare(Experiment.of(**{**LINEAR, "rounds": ROUNDS, **EXPERIMENTS[name]}))


def contact(server: ServerEnd, client: ClientEnd) -> list[bytes]:
    """A round trip, and a second one where the client asks for a refresh."""
    for call in server.call(client.number):
        client.hear(call)
    frames = client.answer()
    if not server.wants(client.number, frames):
        return frames
    for call in server.call(client.number):
        client.hear(call)
    return client.answer()


def undisturbed(t: int, server: ServerEnd, client: ClientEnd) -> tuple[ClientEnd, list[bytes]]:
    return client, contact(server, client)


def play(
    setup: Setup, root: Path | None, meet: Meet = undisturbed, lost: tuple[int, ...] = ()
) -> tuple[ServerEnd, ClientEnd]:
    """A run, and a last call that settles. lost: rounds in which the victim's upload does not arrive."""
    server, clients = ServerEnd(setup), [ClientEnd(setup, i) for i in range(setup.clients)]
    clients[VICTIM] = ClientEnd(setup, VICTIM, None if root is None else Store(root, setup.run, VICTIM))
    for t in range(ROUNDS):
        clients[VICTIM], frames = meet(t, server, clients[VICTIM])
        replies = [(i, contact(server, clients[i])) for i in range(setup.clients) if i != VICTIM]
        server.absorb(replies + [(VICTIM, frames)] * bool(frames and t not in lost), setup.cohort(t))
    clients[VICTIM].hear(server.call(VICTIM)[0])
    return server, clients[VICTIM]


def assert_same(one: tuple[ServerEnd, ClientEnd], other: tuple[ServerEnd, ClientEnd], solver: bool = True) -> None:
    """Model, links and memories at the server; rows, notes and link at the victim."""
    tensors = [{key: tensor.tolist() for key, tensor in server.tensors().items()} for server, _ in (one, other)]
    assert tensors[0] == tensors[1]
    states = [client.sender for _, client in (one, other)]
    assert states[0].end == states[1].end
    for part in ("memory", "error"):
        ours, theirs = (getattr(state.state.rows, part) for state in states)
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.numpy().tobytes() == theirs.numpy().tobytes()
    if not solver:
        return
    solvers = [state.state.solver for state in states]
    assert solvers[0].steps == solvers[1].steps
    assert sorted(solvers[0].direction) == sorted(solvers[1].direction)
    assert all(torch.equal(solvers[0].direction[key], solvers[1].direction[key]) for key in solvers[0].direction)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_client_that_starts_again_each_round(name: str, fast: Path) -> None:
    """As in a deployment without a long-lived worker, with some uploads lost."""
    setup = made(name)

    def again(t: int, server: ServerEnd, client: ClientEnd) -> tuple[ClientEnd, list[bytes]]:
        return undisturbed(t, server, ClientEnd(setup, VICTIM, Store(fast, setup.run, VICTIM)))

    assert_same(play(setup, fast, again, lost=(3, 4)), play(setup, None, lost=(3, 4)))


@pytest.mark.parametrize("name", ["artemis", "everything"])
@pytest.mark.parametrize("round", [0, 4])
def test_every_step_of_a_round_is_a_place_to_be_killed_at(name: str, round: int, cli: Any, fast: Path) -> None:
    """Its upload never left, so the run is bitwise the one in which it was lost."""
    setup, experiment, call, answer = made(name), fast / "experiment.toml", fast / "call", fast / "answer"
    experiment.write_text(setup.experiment.toml())
    expected = play(setup, None, lost=(round,))
    steps: list[str] = []

    def run(at: int) -> tuple[ServerEnd, ClientEnd]:
        root = fast / f"root-{at}"

        def killed(t: int, server: ServerEnd, client: ClientEnd) -> tuple[ClientEnd, list[bytes]]:
            if t != round:
                return undisturbed(t, server, client)
            call.write_bytes(server.call(VICTIM)[0])
            argv = (experiment, root, VICTIM, call, answer)
            if at == 0:
                steps.extend(cli.steps(*argv, root=root, module="lonely_client"))
                assert answer.read_bytes()
                answer.unlink()
                return ClientEnd(setup, VICTIM, Store(root, setup.run, VICTIM)), []
            done = cli(*argv, module="lonely_client", fault={"root": str(root), "at": at})
            assert done.status == -signal.SIGKILL, done.err
            assert not answer.exists()
            return ClientEnd(setup, VICTIM, Store(root, setup.run, VICTIM)), []

        return play(setup, root, killed)

    assert_same(run(0), expected)
    slot = f"{setup.run.hex()}/client-{VICTIM}/{SLOTS[round % 2]}.new"
    writes = [f"{step} {slot}" for step in ("open", "write", "fsync", "close", "replace")]
    assert steps[-6:-1] == writes
    folders = 0 if round else 3  # the root's, the run's and the client's are made and forced to disk
    assert [step.split()[0] for step in steps[:-6]] == ["mkdir", "fsync"] * folders
    for at in range(1, len(steps) + 1):
        assert_same(run(at), expected)


def healing(setup: Setup, fast: Path, name: str) -> tuple[tuple[ServerEnd, ClientEnd], list[ClientEnd]]:
    """A run in which the victim's folder is wiped, restored from an old copy, or damaged, before round 5."""
    root, folder, found = fast / name, fast / name / setup.run.hex() / f"client-{VICTIM}", []

    def lose(t: int, server: ServerEnd, client: ClientEnd) -> tuple[ClientEnd, list[bytes]]:
        if t == 2:
            shutil.copytree(folder, fast / "copy", dirs_exist_ok=True)
        if t == 5:
            if name == "damaged":
                for slot in SLOTS:
                    (folder / slot).write_bytes((folder / slot).read_bytes()[:-1])
            else:
                shutil.rmtree(folder)
            if name == "stale":
                shutil.copytree(fast / "copy", folder)
            client = ClientEnd(setup, VICTIM, Store(root, setup.run, VICTIM))
            found.append(client)
        return undisturbed(t, server, client)

    return play(setup, root, lose), found


@pytest.mark.parametrize("name", ["wiped", "stale", "damaged"])
@pytest.mark.parametrize("kind", ["artemis", "pp1", "no memory"])
def test_a_lost_folder_is_healed_in_its_round(kind: str, name: str, fast: Path) -> None:
    """The run ends with the same bits; a refresh costs at most 4 d + 256 bytes, the model is that of any newcomer."""
    setup = made(kind)
    healed, found = healing(setup, fast, name)
    expected = play(setup, None)
    assert_same(healed, expected, solver=False)
    assert ("damaged checkpoint" in found[0].damage or "unreadable checkpoint" in found[0].damage) == (
        name == "damaged"
    )
    before, after = (server.ledger.totals for server, _ in (expected, healed))
    more = {
        key: cost.frame_bytes - before[key].frame_bytes if key in before else cost.frame_bytes
        for key, cost in after.items()
    }
    extra = {key: cost for key, cost in more.items() if cost}
    d = setup.task.dim
    whole = 4 * d + 40
    refresh = {(Direction.UP, Entry.REFRESH): 40}
    if kind == "artemis" or kind == "pp1":
        refresh[Direction.DOWN, Entry.MEMORY] = whole
    assert sum(refresh.values()) <= 4 * d + 256
    assert extra == refresh | {(Direction.DOWN, Entry.MODEL): whole}


def test_a_folder_of_another_fedsim_is_an_empty_one(fast: Path) -> None:
    """Written whole, but without what this one needs."""
    setup, store = made("artemis"), Store(fast, b"a run...", VICTIM)
    client = ClientEnd(setup, VICTIM, store)
    client.hear(ServerEnd(setup).call(VICTIM)[0])
    upload = client.answer()
    found = read(store.folder)
    assert found is not None
    kept = found[0]
    older = {key: note for key, note in kept.notes["held"].items() if key != "seen"}
    notes = kept.notes | {"held": older}
    write(store.folder, Checkpoint(kept.round, kept.tensors, notes), store.turn)
    client = ClientEnd(setup, VICTIM, Store(fast, b"a run...", VICTIM))
    assert client.damage == f"{store.folder}: not a client's state as this fedsim keeps it (KeyError('seen'))"
    client.hear(ServerEnd(setup).call(VICTIM)[0])
    assert client.answer() == upload


@pytest.mark.parametrize("name", ["wiped", "stale"])
def test_rows_that_only_the_client_had_start_afresh(name: str, fast: Path) -> None:
    """Error feedback, momenta and passes: not the same bits then, but the same memories at both ends."""
    setup = made("everything")
    (server, client), found = healing(setup, fast, name)
    assert found == [client]
    (steps,) = {client.sender.state.solver.steps}
    assert steps == (ROUNDS - 5) * 4  # 15 samples in batches of 4
    ours, theirs = server.state.store.memory, client.sender.state.rows.memory
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours.take(torch.tensor([VICTIM])), theirs)


def test_a_client_that_is_not_called_again_is_healed_in_its_next_round(fast: Path) -> None:
    """A caller without second round trips: the client is absent once, its request is on record."""
    setup = made("artemis")
    server, client = ServerEnd(setup), ClientEnd(setup, VICTIM)
    client.hear(server.call(VICTIM)[0])
    server.absorb([(VICTIM, client.answer())], setup.cohort(0))
    client = ClientEnd(setup, VICTIM)
    client.hear(server.call(VICTIM)[0])
    verdict = server.absorb([(VICTIM, client.answer())], setup.cohort(1))
    assert [(one.client, one.round, one.reason) for one in verdict.rejections] == [
        (VICTIM, 1, "asks for a refresh, and had none")
    ]
    calls = server.call(VICTIM)
    assert len(calls) == 2
    for call in calls:
        client.hear(call)
    assert not client.parted
    assert server.absorb([(VICTIM, client.answer())], setup.cohort(2)).clients.tolist() == [VICTIM]


def test_a_refresh_brings_no_second_model(fast: Path) -> None:
    """After a call that was a whole model, a refresh is one memory: 4 d + 80 bytes with its question, asked twice."""
    setup = made("artemis")
    server, client = ServerEnd(setup), ClientEnd(setup, VICTIM)
    client.hear(server.call(VICTIM)[0])
    server.absorb([(VICTIM, client.answer())], setup.cohort(0))
    expected, row = client.sender.pending, server.state.store.memory
    for t in range(1, 60):  # absent until its updates are longer than the model
        server.absorb([], setup.cohort(t))
    client = ClientEnd(setup, VICTIM)
    (model,) = server.call(VICTIM)
    client.hear(model)
    question = client.answer()
    assert server.wants(VICTIM, question)
    assert server.wants(VICTIM, question)
    (memory,) = server.call(VICTIM)
    assert len(model) == len(memory) == 40 + 4 * setup.task.dim
    client.hear(memory)
    upload = client.answer()
    client.hear(memory)  # a repetition changes nothing
    assert client.answer() == upload
    assert expected is not None
    assert row is not None
    assert torch.equal(row.take(torch.tensor([VICTIM])), expected[1].rows.memory)
    assert server.absorb([(VICTIM, upload)], setup.cohort(60)).clients.tolist() == [VICTIM]
    assert server.ledger.totals[Direction.UP, Entry.REFRESH].frames == 1
