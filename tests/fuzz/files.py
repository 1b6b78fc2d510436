"""Targets that read files: LibSVM, idx, experiments, checkpoints, and the logs of a run."""

from __future__ import annotations

import gzip
import json
import math
import struct
import tempfile
import tomllib
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fedsim import checkpoint
from fedsim.checkpoint import Checkpoint
from fedsim.data import LibSVM, svmlight
from fedsim.data.idx import read_idx
from fedsim.data.svmlight import read_svmlight
from fedsim.ends.client import ClientEnd
from fedsim.ends.store import Standing, Store
from fedsim.errors import CheckpointError, ConfigError, DataError
from fedsim.experiment import Experiment, from_table, load, read_toml
from fedsim.network import read_trace
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.run import MISFITS
from fedsim.simulation.state import from_tensors, initial_state, to_tensors
from tests.fuzz.drive import Case, Target
from tests.fuzz.ends import world

_DENSE = 2**20
_MEMORY = Path("/dev/shm")


@cache
def _folder() -> Path:
    held = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
    _KEPT.append(held)
    return Path(held.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def written(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _svmlight(data: bytes) -> None:
    """What is read, written plainly, reads the same."""
    text = read_svmlight(written("a.txt", data))
    assert np.isfinite(text.labels).all()
    assert np.isfinite(text.values).all()
    assert text.starts[0] == 0
    assert text.starts[-1] == len(text.values) == len(text.columns)
    lines = []
    for label, start, stop in zip(text.labels.tolist(), text.starts.tolist(), text.starts[1:].tolist(), strict=False):
        columns, values = text.columns[start:stop], text.values[start:stop]
        assert (np.diff(columns) > 0).all()
        pairs = (f"{i + 1}:{v!r}" for i, v in zip(columns.tolist(), values.tolist(), strict=True))
        lines.append(" ".join([repr(label), *pairs]))
    again = read_svmlight(written("b.txt", "\n".join(lines).encode()))
    for name in ("labels", "values", "columns", "starts"):
        assert getattr(again, name).tobytes() == getattr(text, name).tobytes()


def _libsvm(data: bytes) -> None:
    """As a data set; with less memory than is allowed, so that wide rows are refused at once."""
    before, svmlight.MAX_DENSE = svmlight.MAX_DENSE, _DENSE
    try:
        for target in ("classes", "regression"):
            found = LibSVM(str(written("a.txt", data)), target=target).load(0)  # type: ignore[arg-type]
            assert bool(found.train.features.isfinite().all())
    finally:
        svmlight.MAX_DENSE = before


_TEXTS = [
    b"+1 1:0.5 2:1\n-1 1:3 7:-2e-3\n",
    b"# a comment\n\n1 3:.5 # more\r\n2 1:1e300\n0\n",
    b"1.5 1:2\n",
    gzip.compress(b"+1 1:0.5\n-1 2:1\n", mtime=0),
]
_WORDS = [
    b":",
    b" ",
    b"\n",
    b"#",
    b"nan",
    b"inf",
    b"qid:1",
    b"1e999",
    b"0x1",
    b"1_0",
    b"2147483648:1",
    b",",
    b"\0",
    b"\x0b",
]


def _trace(data: bytes) -> None:
    """What is read are bandwidths, times and chances."""
    speeds = read_trace(str(written("a.csv", data)), 2)
    for times in (speeds.latency, speeds.jitter, speeds.sample):
        assert ((times >= 0) & (times < 1e7)).all()
    for some in (speeds.up, speeds.down, speeds.availability):
        assert ((some > 0) & (some < 1e16)).all()


def _idx(rank: int, data: bytes) -> None:
    found = read_idx(written("a.idx", data), rank)
    if data[:2] != b"\x1f\x8b":
        assert bytes([0, 0, 8, rank]) + struct.pack(f">{rank}I", *found.shape) + found.tobytes() == data


def _idx_case(rank: int) -> Case:
    sizes = {1: [(5,), (1,)], 3: [(2, 3, 4), (1, 1, 1)]}[rank]
    plain = [bytes([0, 0, 8, rank]) + struct.pack(f">{rank}I", *s) + bytes(range(math.prod(s))) for s in sizes]
    return Case([*plain, *(gzip.compress(one, mtime=0) for one in plain)], partial(_idx, rank), (DataError,), bound=200)


def _toml(data: bytes) -> None:
    """An experiment that is read, written in full, is the same experiment."""
    experiment = from_table(read_toml(written("a.toml", data)))
    again = from_table(tomllib.loads(experiment.toml()))
    assert again == experiment
    assert again.identifier() == experiment.identifier()


def _toml_case() -> Case:
    full = Experiment().toml().encode()
    some = [
        b'algorithm = "diana"\nrounds = 10\n[uplink]\nlevels = 4\n',
        b'[data]\nsource = "libsvm"\npath = "a.txt"\n[task]\nkind = "mlp"\nhidden = [3, 4]\n[server]\nstep = "4/L"\n',
        b'[partition]\nscheme = "iid"\nclients = 7\n[participation]\nscheme = "bernoulli"\np = 0.5\n',
    ]
    some += [b"a=" + b"[" * 1200, b"a=" + b"{a=" * 800, b".".join([b"a"] * 900) + b"=1", b"rounds=" + b"9" * 2490]
    some += [b'algorithm="' + b"x" * 2000 + b'"', b"[" + b"y" * 2000 + b"]", b"uplink." + b"z" * 2000 + b"=1"]
    words = [
        b"[",
        b"]",
        b"[[",
        b"{",
        b"}",
        b" = ",
        b"\n",
        b'"',
        b"'",
        b'"""',
        b".",
        b"nan",
        b"-inf",
        b"true",
        b"9" * 30,
    ]
    words += [b"1979-05-27T07:32:00Z", b"\\U0010ffff", b"\\u", b"0x", b"1e400", b"levels", b"[[[[[[[[", b"{a={a={a="]
    words += [*full.replace(b"\n\n", b"\n").splitlines(keepends=True)]
    return Case([full, *some], _toml, (ConfigError,), words, 2500)


def _assignment(data: bytes) -> None:
    load(None, [data.decode("utf-8", "replace")])


_ASSIGNMENTS = [
    b"uplink.levels=4",
    b"server.step=4/L",
    b"task.hidden=[3,4]",
    b"rounds=.5",
    b"data={source='digits'}",
    b"a=" + b"[" * 1200,
]
_ASSIGNMENTS += [b"rounds=" + b"9" * 4990, b".".join([b"a"] * 2000) + b"=1", b"uplink.levels." + b"x." * 2000 + b"x=1"]


@cache
def _checkpoints() -> list[bytes]:
    """Slots of a client, a server and a simulation."""
    there = world(1)
    for i in (0, 1):
        one = there.clients[i]
        Store(_folder(), there.setup.run, i).save(Standing(one.model, one.seen, one.sender, one.data))
    slots = [Store(_folder(), there.setup.run, i).folder / checkpoint.SLOTS[0] for i in (0, 1)]
    notes = {"lengths": {"metrics.jsonl": 0, "ledger.csv": 0}, "digest": "ab", "data": "cd"}
    others = (1, there.server.tensors()), (0, to_tensors(initial_state(there.setup))), (1, {})
    for k, (round_, tensors) in enumerate(others):
        checkpoint.write(_folder() / str(k), Checkpoint(round_, tensors, notes if k else {}), 0)
        slots.append(_folder() / str(k) / checkpoint.SLOTS[0])
    return [slot.read_bytes() for slot in slots]


def _signed(data: bytes) -> bytes:
    """The same file with the digest that its content has, where it can be told."""
    path, field = written("signed", data), b'"digest":"'
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = checkpoint._digest(int(told["round"]), int(told["turn"]), told["notes"], tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError, AttributeError, TypeError, OverflowError):
        return data
    at = data.find(field) + len(field)
    return data[:at] + digest.encode() + data[at + 32 :] if at >= len(field) else data


def _checkpoint(data: bytes) -> None:
    """Every reader of slots."""
    there = world(1)
    folder = Store(_folder() / "read", there.setup.run, 0).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoint.SLOTS[0]).write_bytes(data)
    assert checkpoint.read(folder) is not None
    standing = Store(_folder() / "read", there.setup.run, 0).load(torch.device("cpu"))
    assert standing is not None
    client = ClientEnd(there.setup, 0, Store(_folder() / "read", there.setup.run, 0))
    for frame in there.calls[0]:
        client.hear(frame)


def _signed_checkpoint(data: bytes) -> None:
    _checkpoint(_signed(data))


def _resumed(data: bytes) -> None:
    """A run folder with such a slot."""
    there, folder = world(1), _folder() / "run"
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint" / checkpoint.SLOTS[0]).write_bytes(_signed(data))
    found = RunFolder(folder).restore()
    assert found is not None
    try:
        from_tensors(there.setup, found.round, dict(found.tensors))
    except MISFITS as error:  # as ``advance`` does
        raise CheckpointError(" ".join(str(error).split())) from None


_CHECKPOINT_WORDS = [
    b'"dtype":"F32"',
    b'"F64"',
    b'"BOOL"',
    b'"BF16"',
    b'"F8_E4M3"',
    b'"I64"',
    b'"shape":[',
    b"[0]",
    b"[]",
]
_CHECKPOINT_WORDS += [
    b'"data_offsets":[0,0]',
    b'"round":"',
    b'"turn":"',
    b'\\"held\\"',
    b"{}",
    b"null",
    b"1e9",
    b"[[[[",
]


def _logs(data: bytes) -> None:
    """metrics.jsonl and manifest.json."""
    folder = RunFolder(written("logs/metrics.jsonl", data).parent)
    try:
        folder.metrics()
    finally:
        written("logs/manifest.json", data)
        folder.facts()


_LINES = [
    b'{"round": 0, "loss": 2.5, "accuracy": 0.5}\n{"round": 10, "loss": 1e-3}\n',
    json.dumps({"status": "running", "run": "ab", "packages": {}}).encode(),
    b"[" * 2000,
    b'{"round": Infinity, "loss": 1}',
    b'{"round": 1, "loss": ' + b"9" * 1800 + b"}",
]
_JSON = [b"NaN", b"Infinity", b"1e999", b"null", b"{", b"[", b'"round":', b'"loss":', b"9" * 30, b"\n", b"[[[[[[[[[["]

_TRACES = [
    b"client,up_mbps,down_mbps,latency_s\n0,8,20,0.03\n1,0.5,1e3,0\n",
    b"sample_s,availability,client,up_mbps,down_mbps,latency_s,jitter_s\n1,0.5,1,8,20,0.03,1\n0,1,0,1,1,0,0\n",
]
_LINE_WORDS = [b",", b"\n", b'"', b"nan", b"-1", b"1e400", b"client", b"up_mbps"]
IDX = Target("idx, rank 3", partial(_idx_case, 3), 0.5)
_REFUSALS = (CheckpointError, DataError)
"""The second where a state is whole, but of a client with other samples."""
CHECKPOINT = Target("checkpoint", lambda: Case(_checkpoints(), _checkpoint, _REFUSALS, _CHECKPOINT_WORDS), 0.2)
TARGETS = [
    Target("LibSVM text", lambda: Case(_TEXTS, _svmlight, (DataError,), _WORDS, 300), 0.3),
    Target("LibSVM data", lambda: Case(_TEXTS, _libsvm, (DataError, ConfigError), _WORDS, 300), 0.2),
    Target("a trace of lines", lambda: Case(_TRACES, _trace, (DataError,), _LINE_WORDS, 2500), 0.3),
    Target("idx, rank 1", partial(_idx_case, 1), 0.5),
    IDX,
    Target("experiment", _toml_case, 0.2),
    Target("assignment", lambda: Case(_ASSIGNMENTS, _assignment, (ConfigError,), [b"[", b"{", b"=", b"."], 5000), 0.2),
    CHECKPOINT,
    Target(
        "checkpoint, signed",
        lambda: Case(_checkpoints(), _signed_checkpoint, _REFUSALS, _CHECKPOINT_WORDS),
        0.1,
    ),
    Target("run folder", lambda: Case(_checkpoints(), _resumed, (CheckpointError,), _CHECKPOINT_WORDS), 0.1),
    Target("logs", lambda: Case(_LINES, _logs, (CheckpointError,), _JSON, 2500), 0.4),
]
