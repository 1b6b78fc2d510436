"""Damaged run folders: the other checkpoint serves, or one line says what is wrong and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fedsim.checkpoint import SLOTS, Checkpoint, read, write
from fedsim.errors import CheckpointError

EVERY = 97
STATE = Checkpoint(
    round=7,
    tensors={
        "server.model": torch.linspace(-1, 1, 301),
        "seen": torch.arange(40),
        "digests": torch.arange(24, dtype=torch.uint8).reshape(3, 8),
        "nothing": torch.zeros(0),
        "double": torch.tensor([1e-300], dtype=torch.float64),
    },
    notes={"lengths": {"ledger.csv": 12}, "totals": [["up", "upload", [1, 2.5, 3, 4]]]},
)


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    return (
        (found.round, found.notes) == (expected.round, expected.notes)
        and found.tensors.keys() == expected.tensors.keys()
        and all(
            tensor.dtype == expected.tensors[name].dtype and torch.equal(tensor, expected.tensors[name])
            for name, tensor in found.tensors.items()
        )
    )


def test_checkpoints_take_turns_and_the_newest_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    for turn in range(5):
        write(tmp_path, Checkpoint(10 * turn, STATE.tensors, STATE.notes), turn)
        found = read(tmp_path)
        assert found
        assert found[1] == turn
        assert same(found[0], Checkpoint(10 * turn, STATE.tensors, STATE.notes))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SLOTS)


def damaged(content: bytes) -> dict[str, bytes]:
    """Every way of damage that is tried, by name."""
    flips = {
        f"bit {bit} of byte {at}": content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(0, len(content), EVERY)
        for bit in range(8)
    }
    header = {
        f"byte {at} of the header": content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
        for at in range(8 + int.from_bytes(content[:8], "little"))
    }
    cuts = {f"cut to {size}": content[:size] for size in [0, 1, 7, 8, 9, 100, *range(0, len(content), EVERY)]}
    others = {
        "longer": content + b"\0",
        "another file": b"not safetensors at all",
        "a huge header": (1 << 62).to_bytes(8, "little") + content[8:],
        "zeros": bytes(len(content)),
    }
    return flips | header | cuts | others


def test_no_damage_passes(tmp_path: Path) -> None:
    write(tmp_path, STATE, turn=1)
    slot = tmp_path / SLOTS[1]
    content = slot.read_bytes()
    ways = damaged(content)
    assert len(ways) > 700
    for way, broken in ways.items():
        slot.write_bytes(broken)
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{slot}: "), way
        assert message.endswith(f"; delete {tmp_path} to start this run from its first round"), way
        assert "\n" not in message, way
    slot.write_bytes(content)
    found = read(tmp_path)
    assert found
    assert same(found[0], STATE)


@pytest.fixture(scope="module")
def whole(cli: Any, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the uninterrupted run ends with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    cli.run(experiment, folder)
    return dict(cli.outcome(folder))


@pytest.fixture(scope="module")
def killed(cli: Any, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second checkpoint, half of a line being written."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    shutil.rmtree(folder)
    at = len(steps) - steps[::-1].index("write ledger.csv")
    assert cli.run(experiment, folder, fault={"root": str(folder), "at": at}).status == -9
    return folder


@pytest.fixture
def stopped(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-3] + bytes([content[-3] ^ 4]) + content[-2:],
    "other version": lambda content: content.replace(b'"fedsim":"1"', b'"fedsim":"2"'),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
@pytest.mark.parametrize("slot", SLOTS)
def test_one_damaged_checkpoint(cli: Any, stopped: Path, whole: dict[str, bytes], damage: str, slot: str) -> None:
    """The other one serves, the newer as well as the older, and the result is the same."""
    path = stopped / "checkpoint" / slot
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(DAMAGES[damage](content))
        assert path.read_bytes() != content
    done = cli.resume(stopped)
    assert (done.status, done.err) == (0, "")
    assert f"continues after round {2 if slot == SLOTS[0] else 1}\n" in done.out
    assert cli.outcome(stopped) == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_checkpoints_damaged(cli: Any, stopped: Path, whole: dict[str, bytes], damage: str) -> None:
    for slot in SLOTS:
        path = stopped / "checkpoint" / slot
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    done = cli.resume(stopped)
    assert done.status == 2
    for slot in SLOTS:
        assert f"{stopped / 'checkpoint' / slot}: " in done.err
    if damage == "other version":
        assert "checkpoint of version 2, this fedsim reads version 1; resume with the fedsim that wrote it" in done.err
    else:
        assert re.search(r"(unreadable checkpoint \(.+\)|damaged checkpoint \(its digest does not match\))", done.err)
    assert done.err.count("\n") == 1
    assert done.err.endswith(f"; delete {stopped / 'checkpoint'} to start this run from its first round\n")
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    shutil.rmtree(stopped / "checkpoint")
    done = cli.resume(stopped)
    assert done.status == 0
    assert "starts again from its first round: it has no checkpoint yet\n" in done.out
    assert cli.outcome(stopped) == whole


def refused(cli: Any, folder: Path, message: str) -> None:
    """``fedsim resume`` refuses with exactly this line and changes nothing."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = cli.resume(folder)
    assert done.status == 2
    assert done.err == f"error: {message}\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("log", ["ledger.csv", "metrics.jsonl"])
@pytest.mark.parametrize("gone", [False, True])
def test_log_shorter_than_the_checkpoint_says(cli: Any, stopped: Path, log: str, gone: bool) -> None:
    found = read(stopped / "checkpoint")
    assert found
    length = found[0].notes["lengths"][log]
    if gone:
        (stopped / log).unlink()
    else:
        (stopped / log).write_bytes((stopped / log).read_bytes()[: length - 1])
    refused(
        cli,
        stopped,
        f"{stopped / log} has {0 if gone else length - 1} bytes, but its checkpoint was written at {length}; put the "
        f"file back, or delete {stopped / 'checkpoint'} to start this run from its first round",
    )


@pytest.mark.parametrize("line", ["{broken", "[]", '{"round": 1}', '{"round": 1, "loss": "x"}'])
def test_damaged_metrics(cli: Any, stopped: Path, line: str) -> None:
    path = stopped / "metrics.jsonl"
    first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line.ljust(len(second)), *rest]) + "\n")
    done = cli.resume(stopped)
    assert done.status == 2
    assert done.err == (
        f"error: {path}:2: damaged line; put the file back, or delete {stopped / 'checkpoint'} to start this run from "
        "its first round\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 3", "seed = 4"),
        ("rounds = 3", "rounds = 5"),
        ("features = 4", "features = 5"),
        ("levels = 2", "levels = 3"),
    ],
)
def test_edited_experiment(cli: Any, stopped: Path, whole: dict[str, bytes], old: str, new: str) -> None:
    path = stopped / "experiment.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(
        cli,
        stopped,
        f"{path} is not what this run began with: edited, or written by another fedsim; put it back, or run it as a "
        "new experiment with --folder ANOTHER",
    )
    path.write_text(text)
    assert cli.resume(stopped).status == 0
    assert cli.outcome(stopped) == whole


def test_edit_of_how_to_run(cli: Any, stopped: Path, whole: dict[str, bytes]) -> None:
    """What does not change the run may be edited."""
    path = stopped / "experiment.toml"
    path.write_text("# a comment\n" + path.read_text().replace("checkpoint_every = 1", "checkpoint_every = 7"))
    assert cli.resume(stopped).status == 0
    assert cli.outcome(stopped) == whole


def test_checkpoint_of_another_run(cli: Any, stopped: Path, experiment: Path, tmp_path: Path) -> None:
    cli.run(experiment, tmp_path / "other", "--set", "data.features=9")
    shutil.rmtree(stopped / "checkpoint")
    shutil.copytree(tmp_path / "other" / "checkpoint", stopped / "checkpoint")
    for log in ("ledger.csv", "metrics.jsonl"):
        shutil.copy(tmp_path / "other" / log, stopped)
    done = cli.resume(stopped)
    assert done.status == 2
    assert re.fullmatch(
        rf"error: {stopped}: the checkpoint does not fit its experiment.toml \(tensor server.model does not fit the "
        r"experiment\); restore the file\n",
        done.err,
    )


def test_broken_experiment(cli: Any, stopped: Path) -> None:
    path = stopped / "experiment.toml"
    path.write_text(path.read_text() + "\nrounds = = 3\n")
    done = cli.resume(stopped)
    assert done.status == 2
    assert re.fullmatch(rf"error: {path}: not valid TOML: .*\(at line \d+, column \d+\)\n", done.err)


@pytest.mark.parametrize("content", [None, "{", "3"])
def test_damaged_manifest(cli: Any, stopped: Path, content: str | None) -> None:
    path = stopped / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    done = cli.resume(stopped)
    assert done.status == 2
    assert re.fullmatch(rf"error: {path}: unreadable manifest \(.+\); put it back\n", done.err)


def test_not_a_run_folder(cli: Any, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        done = cli.resume(folder)
        assert (done.status, done.out) == (2, "")
        assert done.err == f"error: {folder} is not a run folder (no experiment.toml); `fedsim run` makes one\n"
    assert not (tmp_path / "absent").exists()


def test_finished_run_resumed_again(cli: Any, experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = cli.run(experiment, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = cli.resume(folder)
    assert again.status == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "  this run was finished already\n" in again.out
    assert "continues" not in again.out
    assert again.out.splitlines()[-3:] == first.out.splitlines()[-3:]


def test_finished_run_without_its_model_gets_it_again(cli: Any, experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cli.run(experiment, folder)
    before = cli.outcome(folder)
    (folder / "model.safetensors").unlink()
    assert cli.resume(folder).status == 0
    assert cli.outcome(folder) == before


def test_final_model_is_the_one_of_the_manifest(cli: Any, experiment: Path, tmp_path: Path) -> None:
    """The bytes that the other tests compare hold the model and its average, not something empty."""
    import hashlib

    cli.run(experiment, tmp_path / "run")
    with safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"model", "average"}
        model = file.get_tensor("model")
    assert model.shape == (5,)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert hashlib.sha256(model.numpy().tobytes()).hexdigest() == manifest["model_sha256"]
