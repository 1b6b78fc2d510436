"""What fuzzing has found, one by one."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from client import records
from fedsim import checkpoint
from fedsim.checkpoint import Checkpoint
from fedsim.compression.payload import LevelsLayout
from fedsim.ends.client import ClientEnd
from fedsim.ends.host import read
from fedsim.ends.store import Drawer, Standing, Store
from fedsim.errors import CheckpointError, ConfigError, WireError
from fedsim.experiment import load, read_toml
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.run import resume, run
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame, unpack_messages
from tests.fuzz.ends import world


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds = " + "[" * 5000, "nested too deep"),
        ("a = " + "{a = " * 5000, "nested too deep"),
        ("rounds = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
        (".".join(["a"] * 66) + " = 1", "a key of more than 64 parts"),
        ("rounds = 3\n[a" + " . 'a'" * 66 + "]", "a key of more than 64 parts"),
        ("data = {" + "a." * 20_000 + "a = 1}", "a key of more than 64 parts"),
    ],
)
def test_experiments_that_cost_more_than_they_are_worth(text: str, says: str, tmp_path: Path, refused: Any) -> None:
    """60 kB of one dotted key made the parser take 24 s and 3.6 GB; nesting and digits were other errors."""
    (tmp_path / "a.toml").write_text(text)
    with refused(ConfigError, f"{tmp_path / 'a.toml'}: ", says):
        read_toml(tmp_path / "a.toml")
    with refused(ConfigError, "the experiment is ", says):
        read(text)


def test_values_that_only_look_like_long_keys() -> None:
    path = "a.b.c.d.e.f.g.h.i.j"
    experiment = read(f'[data]\nsource = "libsvm"\npath = "{path}"\n[task]\nkind = "mlp"\nhidden = [{"3, " * 40}]')
    assert experiment.table()["data"]["path"] == path


@pytest.mark.parametrize("text", ["a\nb", "x" * 5000, ".".join("a" * 5000) + "=1"])
def test_assignments_that_are_none(text: str, refused: Any) -> None:
    with refused(ConfigError, "--set ", "expected table.key=value"):
        load(None, [text])


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_assigned_values_that_are_none(value: str, refused: Any) -> None:
    with refused(ConfigError, "rounds = ", "expected a whole number"):
        load(None, [f"rounds={value}"])


@pytest.mark.parametrize("text", ['algorithm = "%s"', "%s = 1", "uplink.%s = 1", '[data]\nsource = "%s"'])
def test_names_are_repeated_only_in_part(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text % ("x" * 5000))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x55])
def test_refusing_costs_no_more_than_reading(fill: int) -> None:
    """What is wrong was found by the plain reader, with 20 bytes of memory for every bit."""
    layout = LevelsLayout(1_000_000, 16, 1_000_000)
    message = bytes([0, 0, 128, 63, 0x70]) + bytes([fill]) * 2**19
    peak = 0
    for _ in range(2):  # the first time numba loads its kernels
        tracemalloc.start()
        with suppress(WireError):
            coding.decode([message], layout)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 8 * layout.d + 2**20


def test_a_million_empty_messages() -> None:
    with pytest.raises(WireError, match="message 0 announces 0 bytes, expected at least 4"):
        unpack_messages(bytes(2**20), coding.bounds(LevelsLayout(9, 1, 9)), 2**32)


def test_a_client_without_a_model_asks_for_one() -> None:
    """A MEMORY on the end of a new client agrees with it, but brings no model to learn from."""
    there = world(0)
    client, body = ClientEnd(there.setup, 0), decode_frame(there.calls[0][0], 1000).body
    client.hear(encode_frame(Frame(Kind.MEMORY, there.setup.run, 0, 0, 0, bytes(8), body)))
    (reply,) = client.answer()
    assert decode_frame(reply, 1000).kind is Kind.REFRESH


_NOTES = {"epoch": 0, "digest": bytes(8).hex(), "seen": 0, "steps": 0}


@pytest.mark.parametrize(
    ("tensors", "notes"),
    [
        ({}, {}),
        ({"model": torch.zeros(12)}, {}),
        ({"model": torch.zeros(12)}, {"held": "x"}),
        ({"model": torch.zeros(12)}, {"held": {"steps": 0, "epoch": 0}}),
        ({"model": torch.zeros(12)}, {"held": None}),
        ({"model": torch.zeros(12)}, {"held": _NOTES}),
        ({"model": torch.zeros(12)}, {"held": _NOTES, "data": None}),
        ({"model": torch.zeros(12)}, {"held": {**_NOTES, "epoch": "x" * 5000}, "data": ""}),
    ],
)
def test_a_checkpoint_of_something_else(tensors: Any, notes: Any, tmp_path: Path, refused: Any) -> None:
    """Its digest is right: it is a slot of another program, or of a server."""
    store = Store(tmp_path, bytes(8), 3)
    checkpoint.write(store.folder, Checkpoint(1, tensors, notes), 0)
    with refused(CheckpointError, f"{store.folder}: not a client's state as this fedsim keeps it"):
        store.load(torch.device("cpu"))


def test_a_checkpoint_whose_notes_are_a_list(tmp_path: Path, refused: Any) -> None:
    checkpoint.write(tmp_path, Checkpoint(1, {}, []), 0)  # type: ignore[arg-type]
    with refused(CheckpointError, "unreadable checkpoint", "notes that are list"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("part", ["model", "held.memory", "pending.memory", "held.error", "pending.error"])
@pytest.mark.parametrize("change", ["length", "type", "shape"])
def test_kept_rows_of_another_model(part: str, change: str) -> None:
    """The client begins anew, and says why."""
    there = world(1)
    one, kept = there.clients[0], dict[str, bytes]()
    drawer = Drawer(kept, there.setup.run, 0)
    drawer.save(Standing(one.model, one.seen, one.sender, one.data))
    assert ClientEnd(there.setup, 0, drawer).damage == ""
    round_, notes, rows = msgspec.msgpack.decode(kept[drawer.name])
    dtype, shape, octets = rows[part]
    rows[part] = {
        "length": (dtype, [*shape[:-1], shape[-1] - 1], octets[: len(octets) - 4 * (len(octets) // 4 // shape[-1])]),
        "type": ("<i4", shape, octets),
        "shape": (dtype, [*shape, 1], octets),
    }[change]
    kept[drawer.name] = msgspec.msgpack.encode((round_, notes, rows))
    client = ClientEnd(there.setup, 0, drawer)
    assert client.damage.startswith("client 0: a row ")
    assert ", expected " in client.damage
    assert client.sender.end.epoch == 0


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("seen", torch.zeros(1, dtype=torch.int64)),
        ("epochs", torch.zeros(5)),
        ("digests", torch.zeros(5, 7, dtype=torch.uint8)),
        ("held", torch.tensor(0)),
        ("updates", torch.tensor(0)),
        ("gradients", torch.zeros(2)),
        ("solver.steps", torch.tensor(0)),
        ("clients.memory", torch.zeros(0)),
    ],
)
def test_a_checkpoint_with_a_tensor_of_another_shape(
    name: str, tensor: torch.Tensor, tmp_path: Path, refused: Any
) -> None:
    there = world(1)
    run(there.setup.experiment, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(
        (tmp_path / "run" / "manifest.json").read_text().replace("finished", "running")
    )
    slots = tmp_path / "run" / "checkpoint"
    found = checkpoint.read(slots)
    assert found is not None
    kept, turn = found
    changed = Checkpoint(kept.round, {**kept.tensors, name: tensor}, kept.notes)
    checkpoint.write(slots, changed, turn + 1)
    with refused(CheckpointError, f"{tmp_path / 'run'}: the checkpoint does not fit its experiment.toml ("):
        resume(tmp_path / "run")


def test_a_drawer_nested_too_deep(refused: Any) -> None:
    drawer = Drawer({f"{bytes(8).hex()}.3": b"\x93\x01\x81\xa4held" + b"\x91" * 5000}, bytes(8), 3)
    with refused(CheckpointError, "is damaged"):
        drawer.load(torch.device("cpu"))


@pytest.mark.parametrize(
    "row",
    [
        ("<f4", (2**63,), b""),
        ("<f4", (-1, 0), b""),
        ("|O", (1,), bytes(8)),
        ("(1", (1,), b""),
        ("<f4,", (1,), b"abcd"),
        ("04,f4", (1,), b"abcd"),
    ],
)
def test_a_drawer_with_strange_rows(row: Any, refused: Any) -> None:
    entry = msgspec.msgpack.encode((1, {}, {"model": row}))
    with refused(CheckpointError, "is damaged"):
        Drawer({f"{bytes(8).hex()}.3": entry}, bytes(8), 3).load(torch.device("cpu"))


@pytest.mark.parametrize("notes", [{}, {"lengths": 3}, {"lengths": {"metrics.jsonl": 0}}])
def test_a_run_folder_with_a_checkpoint_of_something_else(notes: Any, tmp_path: Path, refused: Any) -> None:
    checkpoint.write(tmp_path / "checkpoint", Checkpoint(1, {}, notes), 0)
    with refused(CheckpointError, f"{tmp_path / 'checkpoint'} does not say how long metrics.jsonl, ledger.csv were"):
        RunFolder(tmp_path).restore()


def test_a_checkpoint_before_the_beginning_of_a_log(tmp_path: Path, refused: Any) -> None:
    lengths = {"metrics.jsonl": -1, "ledger.csv": 0}
    checkpoint.write(tmp_path / "checkpoint", Checkpoint(1, {}, {"lengths": lengths}), 0)
    with refused(CheckpointError, "does not say how long metrics.jsonl, ledger.csv were"):
        RunFolder(tmp_path).restore()


@pytest.mark.parametrize(
    "line", ["[" * 50_000, '{"round": Infinity, "loss": 1}', '{"round": 1, "loss": %s}' % ("9" * 5000)]
)
def test_lines_of_metrics_that_are_none(line: str, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"round": 0, "loss": 1.0}) + "\n" + line)
    with refused(CheckpointError, "metrics.jsonl:2: damaged line"):
        RunFolder(tmp_path).metrics()


def test_a_manifest_nested_too_deep(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "manifest.json").write_text("[" * 50_000)
    with refused(CheckpointError, "unreadable manifest"):
        RunFolder(tmp_path).facts()


def test_a_hello_with_keys_of_several_lines() -> None:
    with pytest.raises(WireError, match=r"^a hello with two lines, x+ \.\.\.$") as caught:
        records.hello_of(RecordDict({"hello": ConfigRecord({"two\nlines": 1, "x" * 5000: 2})}))
    assert len(str(caught.value)) < 520
