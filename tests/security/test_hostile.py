"""Hostile files and messages: every reader refuses every one of them with the error that is its own, and does nothing.

Each artefact goes to all that would read a file or a message of its kind. Refused means: an error of the expected class
of ``fedsim.errors``, whose message is one printable line of bounded length; no file made, changed or removed; nothing
executed (what would execute leaves a marker). ``pytest -s`` prints the table.
"""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flwr.app import ConfigRecord, MetricRecord, RecordDict

import fedsim
from client import records
from fedsim import checkpoint
from fedsim.checkpoint import SLOTS, Checkpoint
from fedsim.cli import identity
from fedsim.cli.engines import submission_of
from fedsim.data import FashionMNIST, LibSVM
from fedsim.data.clusters import read_clusters
from fedsim.data.idx import read_idx
from fedsim.data.svmlight import read_svmlight
from fedsim.ends.host import Host, alone, read
from fedsim.ends.server import ServerEnd
from fedsim.ends.store import Drawer, Store
from fedsim.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeployError,
    FedsimError,
    StoppedError,
    WireError,
    WorkerError,
    one_line,
)
from fedsim.experiment import Experiment, load
from fedsim.ledger import Ledger, read_totals
from fedsim.network import read_trace
from fedsim.reporting.final import Examiner
from fedsim.reporting.runs import read_run
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.messages import answer_of, work_of
from fedsim.simulation.sidebyside import read_account, read_bytes
from fedsim.sweep.grid import read_sweep
from fedsim.wire import Kind, decode_frame, encode_frame
from tests.security.artefacts import TOML, anything, headers

RUN, LONGEST = bytes(8), 4000
DATA = {"source": "synthetic-linear", "clients": 3, "per_client": 8, "features": 3}
GIVEN = Experiment.of(data=DATA, rounds=2, participation={"scheme": "full"}, run={"executor": "sequential"})
Refused = type[FedsimError] | tuple[type[FedsimError], ...]


@dataclass
class Court:
    """Where artefacts are tried. folder: all that they may touch; tried: kind of reader -> how many."""

    folder: Path
    tried: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)

    @property
    def marker(self) -> Path:
        return self.folder / "executed"

    def place(self) -> Path:
        """An empty folder."""
        shutil.rmtree(self.folder / "place", ignore_errors=True)
        (self.folder / "place").mkdir()
        return self.folder / "place"

    def refuse(self, kind: str, name: str, expected: Refused, reader: Callable[[], Any]) -> None:
        """Try one artefact."""
        before, where = snapshot(self.folder), f"{kind}: {name}"
        with pytest.raises(FedsimError) as caught:
            pytest.fail(f"{where}: taken, as {reader()!r}")
        message = str(caught.value)
        assert isinstance(caught.value, expected), where
        assert message == one_line(message, LONGEST), where
        assert snapshot(self.folder) == before, where
        self.tried[kind] += 1
        self.names.add(name)


def snapshot(folder: Path) -> dict[str, object]:
    """Everything below a folder: content, or what a link points to."""
    return {
        str(path): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.lstat().st_mode
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    court = Court(tmp_path_factory.mktemp("court"))
    yield court
    print(f"\nhostile artefacts: {len(court.names)}, by {len(court.tried)} readers: {court.tried.total()} refusals")
    for kind, count in sorted(court.tried.items()):
        print(f"  {kind:44} {count:4}")
    assert not court.marker.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as it should be."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fedsim.run(GIVEN, folder)
    return folder


def test_the_artefacts_are_armed(tmp_path: Path) -> None:
    """What is to be refused does execute where it is trusted."""
    marker = tmp_path / "executed"
    pickle.loads(anything(marker)["pickle, protocol 2"])
    assert marker.exists()


def readers(place: Path, whole: Path) -> dict[str, tuple[Path | None, Refused, Callable[[bytes], Any]]]:
    """By name: the file that the content is written to, the error expected of it, and who reads."""
    run = place / "run"
    shutil.copytree(whole, run)
    (run / "messages.csv").write_bytes(b"direction,message_bytes\n")
    keys = place / "identity"
    identity.make(keys, ["localhost"], 1)
    fashion = place / "fashion"
    fashion.mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (fashion / name).write_bytes(b"\0\0\x08\x01\0\0\0\1\0")
    (place / "root" / RUN.hex() / "client-0").mkdir(parents=True)
    state = alone(GIVEN)
    server = ServerEnd(state, ledger=Ledger())
    drawers: dict[str, bytes] = {}

    def drawer(content: bytes) -> Any:
        drawers[f"{RUN.hex()}.0"] = content
        return Drawer(drawers, RUN, 0).load(torch.device("cpu"))

    def judged(content: bytes) -> Any:
        server.call(0)
        verdict = server_of().absorb([(0, [content])], state.cohort(0))
        raise WireError(verdict.rejections[0].reason)

    def server_of() -> ServerEnd:
        return ServerEnd(state, ledger=Ledger())

    cpu = torch.device("cpu")
    make = lambda _: identity.make(keys, ["localhost"], 1)  # noqa: E731
    return {
        "checkpoint": (place / "slots" / SLOTS[0], CheckpointError, lambda _: checkpoint.read(place / "slots")),
        "a client's folder": (
            place / "root" / RUN.hex() / "client-0" / SLOTS[1],
            CheckpointError,
            lambda _: Store(place / "root", RUN, 0).load(cpu),
        ),
        "a client's drawer": (None, CheckpointError, drawer),
        "experiment.toml of a run": (
            run / "experiment.toml",
            (CheckpointError, ConfigError),
            lambda _: fedsim.resume(run),
        ),
        "manifest.json": (run / "manifest.json", CheckpointError, lambda _: read_account(run)),
        "metrics.jsonl": (run / "metrics.jsonl", CheckpointError, lambda _: RunFolder(run).metrics()),
        "ledger.csv": (run / "ledger.csv", CheckpointError, lambda _: read_totals(run / "ledger.csv")),
        "messages.csv": (
            run / "messages.csv",
            CheckpointError,
            lambda _: read_bytes(run / "messages.csv", "message_bytes"),
        ),
        "model.safetensors": (
            run / "model.safetensors",
            CheckpointError,
            lambda _: Examiner().at_clients(read_run(run)),
        ),
        "submission.json": (run / "submission.json", CheckpointError, lambda _: submission_of(run)),
        "an experiment": (place / "x.toml", ConfigError, lambda _: load(place / "x.toml")),
        "a sweep": (place / "s.toml", ConfigError, lambda _: read_sweep(place / "s.toml")),
        "an experiment that is sent": (None, ConfigError, lambda content: read(content.decode("latin-1"))),
        "LibSVM": (place / "x.svm", DataError, lambda _: read_svmlight(place / "x.svm")),
        "idx": (place / "x.idx", DataError, lambda _: read_idx(place / "x.idx", 1)),
        "Fashion-MNIST": (fashion / "t10k-labels-idx1-ubyte", DataError, lambda _: FashionMNIST(str(fashion)).load(0)),
        "clusters": (
            place / "x.txt",
            DataError,
            lambda _: read_clusters(str(place / "x.txt"), rows=1000, clients=3),
        ),
        "a trace": (place / "x.csv", DataError, lambda _: read_trace(str(place / "x.csv"), 3)),
        "a frame at the server": (None, WireError, judged),
        "a frame at a client": (None, WireError, lambda content: Host(lambda *_: None).play(GIVEN.toml(), [content])),
        "a frame": (None, WireError, lambda content: decode_frame(content, 1 << 28)),
        "a task for a process": (None, WorkerError, work_of),
        "an answer of a process": (None, WorkerError, answer_of),
        "the authority's key": (keys / "authority" / "ca.key", DeployError, make),
        "the authority's certificate": (keys / "authority" / "ca.crt", DeployError, make),
        "the server's key": (keys / "server" / "server.key", DeployError, make),
        "the server's certificate": (keys / "server" / "server.crt", DeployError, make),
        "a node's key": (keys / "node-0" / "node.key", DeployError, make),
    }


READERS = 28


@pytest.fixture(scope="module")
def bench(court: Court, finished: Path) -> dict[str, tuple[Path | None, Refused, Callable[[bytes], Any]]]:
    return readers(court.place(), finished)


@pytest.fixture(scope="module")
def contents(court: Court) -> dict[str, bytes]:
    return anything(court.marker)


@pytest.mark.parametrize("number", range(READERS))
def test_anything_is_refused_by_every_reader(number: int, court: Court, bench: Any, contents: dict[str, bytes]) -> None:
    assert len(bench) == READERS
    kind, (file, expected, reader) = list(bench.items())[number]
    hostile = contents | (headers() if "checkpoint" in kind or "folder" in kind else {})
    before = file.read_bytes() if file is not None and file.exists() else None
    for name, content in hostile.items():
        if file is not None:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content if file.name != "messages.csv" else content + b"\n")
        court.refuse(kind, name, expected, lambda content=content: reader(content))
    if file is not None:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


@pytest.mark.parametrize("name", TOML)
def test_texts_that_are_no_experiment(name: str, court: Court) -> None:
    file = court.place() / "x.toml"
    file.write_text(TOML[name], encoding="utf-8")
    court.refuse("an experiment", name, ConfigError, lambda: alone(load(file)))
    court.refuse("an experiment that is sent", name, ConfigError, lambda: Host(lambda *_: None).play(TOML[name], []))


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "a link, metrics.jsonl": lambda run, other: _link(run / "metrics.jsonl", other),
    "a link, ledger.csv": lambda run, other: _link(run / "ledger.csv", other),
    "a link, experiment.toml": lambda run, other: _link(run / "experiment.toml", run.with_name("moved.toml")),
    "a link, manifest.json": lambda run, other: _link(run / "manifest.json", run.with_name("moved.json")),
    "a link, checkpoint": lambda run, other: _link(run / "checkpoint", run.with_name("moved")),
    "a link, a slot": lambda run, other: _link(run / "checkpoint" / SLOTS[0], other),
    "a link, where a slot is first written": lambda run, other: _at_each_slot(run, lambda new: new.symlink_to(other)),
    "a pipe, where a slot is first written": lambda run, other: _at_each_slot(run, os.mkfifo),
    "a pipe, ledger.csv": lambda run, other: _instead(run / "ledger.csv", os.mkfifo),
    "a pipe, manifest.json": lambda run, other: _instead(run / "manifest.json", os.mkfifo),
    "a pipe, experiment.toml": lambda run, other: _instead(run / "experiment.toml", os.mkfifo),
    "a pipe, metrics.jsonl": lambda run, other: _instead(run / "metrics.jsonl", os.mkfifo),
    "a folder, ledger.csv": lambda run, other: _instead(run / "ledger.csv", os.mkdir),
}
"""What a run folder may hold instead of its files. other: a file of whoever resumes it."""


def _instead(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _link(path: Path, target: Path) -> None:
    if target.exists():
        path.unlink()
    else:
        path.rename(target)
    path.symlink_to(target)


def _at_each_slot(run: Path, make: Callable[[Path], None]) -> None:
    for slot in SLOTS:
        make(run / "checkpoint" / f"{slot}.new")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a round to go."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    class Stop:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        def played(self, round: int, *_: Any) -> None:
            raise StoppedError("here")

    with pytest.raises(StoppedError):
        fedsim.run(GIVEN, folder, Stop())
    return folder


@pytest.mark.parametrize("name", LINKS)
def test_run_folders_that_aim_elsewhere(name: str, court: Court, stopped: Path) -> None:
    place = court.place()
    shutil.copytree(stopped, place / "run")
    (place / "theirs").write_bytes((stopped / "ledger.csv").read_bytes() + b"precious\n")
    LINKS[name](place / "run", place / "theirs")
    court.refuse("a run folder", name, CheckpointError, lambda: fedsim.resume(place / "run"))


def test_a_submission_of_another_folder(court: Court, stopped: Path) -> None:
    """It would be resumed there, wherever that is."""
    place = court.place()
    shutil.copytree(stopped, place / "run")
    text = '{"engine": "flower-in-process", "folder": "%s", "experiment": "", "directory": "/"}'
    for name in ("a submission elsewhere", "a submission that climbs"):
        folder = f"{place}/other" if "else" in name else f"{place}/run/../../other"
        (place / "run" / "submission.json").write_text(text % folder)
        court.refuse("submission.json", name, CheckpointError, lambda: submission_of(place / "run"))


Change = Callable[[dict[str, Any], dict[str, Any]], object]
STATES: dict[str, Change] = {
    "notes without lengths": lambda tensors, notes: notes.pop("lengths"),
    "negative lengths": lambda tensors, notes: notes["lengths"].update({"ledger.csv": -1}),
    "lengths that are text": lambda tensors, notes: notes["lengths"].update({"ledger.csv": "1"}),
    "totals of another kind": lambda tensors, notes: notes.update(totals=[["up", "virus", [1, 1, 1, 1]]]),
    "totals that are a number": lambda tensors, notes: notes.update(totals=3),
    "other data": lambda tensors, notes: notes.update(data="0"),
    "no model": lambda tensors, notes: tensors.pop("server.model"),
    "a model of another type": lambda tensors, notes: tensors.update(
        {"server.model": tensors["server.model"].double()}
    ),
    "a model of another shape": lambda tensors, notes: tensors.update({"server.model": torch.zeros(1 << 20)}),
    "clients of the future": lambda tensors, notes: tensors["seen"].fill_(1000),
    "clients that are fractions": lambda tensors, notes: tensors.update(seen=tensors["seen"].float()),
    "too many clients": lambda tensors, notes: tensors.update(seen=torch.zeros(4, dtype=torch.int64)),
    "negative epochs": lambda tensors, notes: tensors["epochs"].fill_(-1),
    "short digests": lambda tensors, notes: tensors.update(digests=tensors["digests"][:, :4]),
    "gradients that are many": lambda tensors, notes: tensors.update(gradients=torch.zeros(3, dtype=torch.int64)),
    "updates without an axis": lambda tensors, notes: tensors.update(updates=torch.zeros(2, dtype=torch.int64)),
    "a solver of nobody": lambda tensors, notes: tensors.update({"solver.x.rate.y": torch.zeros(1)}),
    "steps without an axis": lambda tensors, notes: tensors.update({"solver.steps": torch.zeros(2, dtype=torch.int64)}),
}
"""Checkpoints that are whole, digest and all, but for what they say."""


@pytest.mark.parametrize("name", STATES)
def test_checkpoints_that_lie(name: str, court: Court, stopped: Path) -> None:
    run = court.place() / "run"
    shutil.copytree(stopped, run)
    found = checkpoint.read(run / "checkpoint")
    assert found is not None
    tensors, notes = dict(found[0].tensors), dict(found[0].notes)
    STATES[name](tensors, notes)
    checkpoint.write(run / "checkpoint", Checkpoint(found[0].round, tensors, notes), found[1] + 1)
    court.refuse("a checkpoint with its digest", name, CheckpointError, lambda: fedsim.resume(run))


SIDES: dict[str, Change] = {
    "no side": lambda tensors, notes: notes.clear(),
    "a side that is text": lambda tensors, notes: notes.update(held="x"),
    "an epoch that is text": lambda tensors, notes: notes["held"].update(epoch="x"),
    "a digest that is no hexadecimal": lambda tensors, notes: notes["held"].update(digest="xx"),
    "a short digest": lambda tensors, notes: notes["held"].update(digest="00"),
    "steps that are a list": lambda tensors, notes: notes["held"].update(steps=[1]),
    "no model for a client": lambda tensors, notes: tensors.pop("model"),
}


@pytest.mark.parametrize("name", SIDES)
def test_clients_states_that_lie(name: str, court: Court) -> None:
    root = court.place()
    tensors = {"model": torch.zeros(3)}
    notes = {"held": {"epoch": 0, "digest": "00" * 8, "steps": 0}}
    SIDES[name](tensors, notes)
    store = Store(root, RUN, 1)
    checkpoint.write(store.folder, Checkpoint(1, tensors, notes), 0)
    court.refuse("a client's state with its digest", name, CheckpointError, lambda: store.load(torch.device("cpu")))


def test_data_that_never_ends_or_is_elsewhere(court: Court) -> None:
    place = court.place()
    os.mkfifo(place / "pipe")
    paths = {"a pipe": str(place / "pipe"), "a device": "/dev/zero", "a folder": str(place), "NUL in a path": "x\0y"}
    paths |= {"the home of nobody": "~nobody-of-this-name/x", "no such file": str(place / ".." / "none" / "x")}
    for name, path in paths.items():
        court.refuse("LibSVM", name, DataError, lambda path=path: LibSVM(path).load(0))
        court.refuse("clusters", name, DataError, lambda path=path: read_clusters(path, rows=9, clients=3))
        court.refuse("Fashion-MNIST", name, DataError, lambda path=path: FashionMNIST(path).load(0))
        court.refuse("a trace", name, DataError, lambda path=path: read_trace(path, 3))


def _keys() -> dict[str, bytes]:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    keys: dict[str, Any] = {
        "a key of RSA": rsa.generate_private_key(65537, 2048),
        "a key of another curve": ec.generate_private_key(ec.SECP256R1()),
        "a key of Ed25519": ed25519.Ed25519PrivateKey.generate(),
    }
    locked = serialization.BestAvailableEncryption(b"secret")
    return {name: key.private_bytes(pem, pkcs8, none) for name, key in keys.items()} | {
        "a locked key": ec.generate_private_key(ec.SECP384R1()).private_bytes(pem, pkcs8, locked)
    }


def test_keys_of_another_kind(court: Court) -> None:
    keys = court.place() / "identity"
    identity.make(keys, ["localhost"], 1)
    for kind, file in (("the authority's key", "authority/ca.key"), ("the server's key", "server/server.key")):
        before = (keys / file).read_bytes()
        for name, content in _keys().items():
            (keys / file).write_bytes(content)
            court.refuse(kind, name, DeployError, lambda: identity.make(keys, ["localhost"], 1))
        (keys / file).write_bytes(before)


FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "a header alone": lambda data: data[:40],
    "half a header": lambda data: data[:20],
    "a byte more": lambda data: data + b"\0",
    "a byte less": lambda data: data[:-1],
    "another magic": lambda data: b"PK" + data[2:],
    "another version": lambda data: data[:2] + bytes([data[2] + 1]) + data[3:],
    "a kind that is none": lambda data: data[:3] + b"\xff" + data[4:],
    "announces 4 GiB": lambda data: data[:32] + b"\xff\xff\xff\xff" + data[36:],
    "a wrong checksum": lambda data: data[:36] + struct.pack("<I", 0) + data[40:],
    "another run": lambda data: _forged(data, run=b"evilrun!"),
    "a client of another number": lambda data: _forged(data, client=2),
    "a round to come": lambda data: _forged(data, round=2**32 - 2),
    "an epoch to come": lambda data: _forged(data, epoch=2**32 - 1),
    "a link of another history": lambda data: _forged(data, digest=b"evillink"),
    "a kind for the other side": lambda data: _forged(data, kind=Kind.MODEL),
    "moments": lambda data: _forged(data, kind=Kind.MOMENTS),
    "an empty body": lambda data: _forged(data, body=b""),
    "a body too long": lambda data: _forged(data, body=bytes(1 << 16)),
    "a body of ones": lambda data: _forged(data, body=b"\xff" * 12),
}


def _forged(data: bytes, **changes: Any) -> bytes:
    return encode_frame(replace(decode_frame(data, 1 << 20), **changes))


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_lie(name: str, court: Court) -> None:
    """At the server, made from a reply that it would take; its state stays as it was."""
    setup = alone(GIVEN)
    server, host = ServerEnd(setup, ledger=Ledger()), Host(lambda *_: None)
    ((_, (reply, *_)),) = host.play(GIVEN.toml(), server.call(0)).replies
    hostile = FRAMES[name](reply)

    def judge() -> None:
        verdict = server.absorb([(0, [hostile])], setup.cohort(0))
        assert not len(verdict.clients)
        raise WireError(verdict.rejections[0].reason)

    court.refuse("a reply at the server", name, WireError, judge)


RECORDS: dict[str, tuple[Callable[[RecordDict], object], Any]] = {
    "an answer without its record": (records.answer_of, RecordDict({})),
    "an answer of metrics": (records.answer_of, RecordDict({"answer": MetricRecord({"x": 1.0})})),
    "more counts than clients": (records.answer_of, {"clients": [1], "counts": [1, 1], "frames": [b"", b""]}),
    "negative counts": (records.answer_of, {"clients": [1, 2], "counts": [2, -1], "frames": [b""]}),
    "counts beyond the frames": (records.answer_of, {"clients": [1], "counts": [2**62], "frames": [b""]}),
    "clients that are text": (records.answer_of, {"clients": ["1"], "counts": [0]}),
    "frames that are text": (records.answer_of, {"clients": [1], "counts": [1], "frames": ["x"]}),
    "a trouble of nobody": (records.answer_of, {"troubles": ["\x1b[2J owned"]}),
    "a trouble of thousands of digits": (records.answer_of, {"troubles": ["9" * 5000 + ": x"]}),
    "a call without its record": (records.call_of, RecordDict({"hello": ConfigRecord({})})),
    "a call of numbers": (records.call_of, RecordDict({"call": ConfigRecord({"frames": [1, 2]})})),
    "a hello of nothing": (records.hello_of, RecordDict({"hello": ConfigRecord({})})),
    "a hello of texts": (records.hello_of, RecordDict({"hello": ConfigRecord(dict.fromkeys(records.KEYS, "\x1b[2J"))})),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_lie(name: str, court: Court) -> None:
    reader, content = RECORDS[name]
    given = content if isinstance(content, RecordDict) else RecordDict({"answer": ConfigRecord(content)})
    court.refuse("a Flower record", name, WireError, lambda: reader(given))


def test_words_of_others_are_fit_for_a_terminal() -> None:
    """Neither escapes nor megabytes reach a log from a node's excuse."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202e" + "x" * 10_000
    given = records.of_answer([], [(1, evil)])
    ((client, said),) = records.answer_of(given)[1]
    assert client == 1
    assert said == one_line(said)
    assert "\x1b" not in said
    assert len(said) <= 500


def test_how_many(court: Court) -> None:
    """The bar, counted after all of the above."""
    if len(court.tried) < READERS:
        pytest.skip("only with the whole file")
    assert len(court.names) >= 60
    assert not court.marker.exists()
