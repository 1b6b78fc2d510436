"""A run folder in one process: what it refuses, and that nothing but a CheckpointError of one line escapes.

The disk's refusals are real ones: /dev/full in place of a file, a file in place of a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.checkpoint import SLOTS, Checkpoint, make_folder, write, write_whole
from fedsim.errors import CheckpointError, DivergedError, StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost
from fedsim.simulation.comparison import FOLDER, compare
from fedsim.simulation.folder import RunFolder, model_digest
from fedsim.simulation.run import Metrics, resume, run
from fedsim.simulation.setup import Setup

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, the disk that is always full")
EXPERIMENT = Experiment.of(
    rounds=4,
    data={"source": "synthetic-linear", "clients": 4, "per_client": 6, "features": 3},
    run={"checkpoint_every": 1, "evaluate_every": 1},
)


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(CheckpointError) as caught:
        yield
    assert re.fullmatch(message, str(caught.value)), caught.value


class StopAt:
    """Stops a run after a round."""

    def __init__(self, round: int) -> None:
        self.round = round

    def started(self, setup: Setup, metrics: Metrics) -> None: ...

    def evaluated(self, metrics: Metrics) -> None: ...

    def played(self, round: int, up: Cost, down: Cost) -> None:
        if round == self.round:
            raise StoppedError(f"after round {round}")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after two rounds."""
    with pytest.raises(StoppedError):
        run(EXPERIMENT, tmp_path / "run", StopAt(2))
    return tmp_path / "run"


def test_a_run_leaves_what_it_returns(tmp_path: Path) -> None:
    result = run(EXPERIMENT, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["status"] == "finished"
    assert manifest["run"] == EXPERIMENT.identifier().hex()
    assert manifest["model_sha256"] == result.digest == hashlib.sha256(result.model.numpy().tobytes()).hexdigest()
    assert RunFolder(tmp_path / "run").experiment() == EXPERIMENT
    assert RunFolder(tmp_path / "run").metrics() == result.metrics
    again = resume(tmp_path / "run")
    assert torch.equal(again.model, result.model)
    assert again.metrics == result.metrics
    assert again.ledger.totals == result.ledger.totals
    assert model_digest(again.model) == result.digest


def test_stopped_twice_and_resumed(stopped: Path) -> None:
    whole = run(EXPERIMENT)
    with pytest.raises(StoppedError):
        resume(stopped, StopAt(3))
    found = resume(stopped)
    assert torch.equal(found.model, whole.model)
    assert found.metrics == whole.metrics


def test_new_folder_must_be_new(stopped: Path) -> None:
    with refused(rf"{stopped} holds a run already; `fedsim resume {stopped}` continues it, --folder names another"):
        run(EXPERIMENT, stopped)


def test_new_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused(rf"cannot write {tmp_path}/file.*: (Not a directory|File exists); give another --folder"):
            run(EXPERIMENT, path)


def fill(monkeypatch: pytest.MonkeyPatch, full: Path) -> None:
    """Whatever is written to this file, the system has no room for."""
    real = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        wrong = not isinstance(file, int) and Path(file) == full and set(mode) & set("wa")
        return real(FULL if wrong else file, mode, *rest, **options)

    monkeypatch.setattr("io.open", opened)


@needs_full
@pytest.mark.parametrize("name", ["manifest.json", "experiment.toml"])
@pytest.mark.parametrize("existed", [False, True])
def test_no_room_for_a_new_folder(tmp_path: Path, name: str, existed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half made stays; what was there before does."""
    folder = tmp_path / "run"
    folder.mkdir()
    fill(monkeypatch, folder / f"{name}.new")
    if existed:
        (folder / "notes").touch()
    with refused(rf"cannot write {folder}: No space left on device; make room or give another --folder"):
        run(EXPERIMENT, folder)
    assert [path.name for path in folder.iterdir()] == (["notes"] if existed else [])


def test_a_folder_that_was_made_in_vain_goes_away(tmp_path: Path) -> None:
    """Where the system lets no file grow, nothing is left of the attempt."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with refused(rf"cannot write {tmp_path}/run: File too large; give another --folder"):
            run(EXPERIMENT, tmp_path / "run")
        with pytest.raises(OSError, match="File too large"):
            write_whole(tmp_path / "file", bytes(101))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@needs_full
@pytest.mark.parametrize("name", ["checkpoint/even.safetensors.new", "model.safetensors.new"])
def test_no_room_later(stopped: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is to make room and resume; then the result is the same."""
    full = rf"cannot write {stopped}: No space left on device; make room, then `fedsim resume {stopped}` continues .*"
    with monkeypatch.context() as patch:
        fill(patch, stopped / name)
        with refused(full):
            resume(stopped)
    assert torch.equal(resume(stopped).model, run(EXPERIMENT).model)


@needs_full
def test_no_room_for_a_log(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(stopped)
    fill(monkeypatch, stopped / "metrics.jsonl")
    with refused(rf"cannot write {stopped}: No space left on device; make room, then `fedsim resume {stopped}` .*"):
        folder.append("metrics.jsonl", "{}\n")


def test_what_is_not_a_run_folder(tmp_path: Path) -> None:
    with refused(rf"{tmp_path} is not a run folder \(no experiment.toml\); `fedsim run` makes one"):
        resume(tmp_path)


def test_edited_experiment(stopped: Path) -> None:
    path = stopped / "experiment.toml"
    path.write_text(path.read_text().replace("rounds = 4", "rounds = 5"))
    with refused(rf"{path} is not what this run began with: edited, or written by another fedsim; put it back, or .*"):
        resume(stopped)


@pytest.mark.parametrize("content", ["", "{", "7", None])
def test_damaged_manifest(stopped: Path, content: str | None) -> None:
    path = stopped / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with refused(rf"{path}: unreadable manifest \(.+\); put it back"):
        resume(stopped)


@pytest.mark.parametrize("log", ["metrics.jsonl", "ledger.csv"])
def test_short_log(stopped: Path, log: str) -> None:
    path = stopped / log
    path.write_bytes(path.read_bytes()[:-1])
    with refused(rf"{path} has \d+ bytes, but its checkpoint was written at \d+; put the file back, or delete .*"):
        resume(stopped)


def test_damaged_metrics(stopped: Path) -> None:
    path = stopped / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss"', b'"lost"', 1))
    with refused(rf"{path}:1: damaged line; put the file back, or delete {stopped}/checkpoint to start this run .*"):
        resume(stopped)


def test_one_slot_damaged(stopped: Path) -> None:
    for slot in SLOTS:
        path = stopped / "checkpoint" / slot
        content = path.read_bytes()
        path.write_bytes(content.replace(b'"fedsim":"1"', b'"fedsim":"2"'))
        copied = stopped.with_name("copy")
        shutil.copytree(stopped, copied)
        assert torch.equal(resume(copied).model, run(EXPERIMENT).model)
        shutil.rmtree(copied)
        path.write_bytes(content)


def test_checkpoint_of_another_experiment(stopped: Path) -> None:
    write(
        stopped / "checkpoint",
        Checkpoint(9, {"x": torch.zeros(2)}, {"lengths": {"metrics.jsonl": 0, "ledger.csv": 0}}),
        9,
    )
    with refused(
        rf"{stopped}: the checkpoint does not fit its experiment.toml \(tensor server.model .*\); restore the file"
    ):
        resume(stopped)


def test_one_process_at_a_time(stopped: Path) -> None:
    with RunFolder(stopped).alone(), refused(rf"{stopped} is being run by another process; wait for it or stop it"):
        resume(stopped)
    resume(stopped)


def test_a_file_system_without_locks(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert torch.equal(resume(stopped).model, run(EXPERIMENT).model)


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    experiment = Experiment.of(data={"source": "synthetic-linear"}, server={"step": 1e25}, run={"evaluate_every": 1})
    with pytest.raises(
        DivergedError, match=r"^round 1: the loss is not finite with server\.step = 1e\+25; use a smaller"
    ):
        run(experiment, tmp_path / "run")
    with pytest.raises(DivergedError, match=r"^round 1: "):
        resume(tmp_path / "run")


def test_a_comparison_is_resumed(tmp_path: Path) -> None:
    """The baseline of a folder is played once; stopped, it continues."""
    result = run(EXPERIMENT, tmp_path / "run")
    with pytest.raises(StoppedError):
        compare(result, tmp_path / "run", StopAt(1))
    assert (tmp_path / "run" / FOLDER / "experiment.toml").exists()
    resumed, other = compare(result, tmp_path / "run")
    unsaved, same = compare(result)
    assert resumed == unsaved
    assert torch.equal(other.model, same.model)


def test_a_run_that_got_worse_has_nothing_to_compare() -> None:
    worse = Experiment.of(rounds=1, data={"source": "synthetic-linear"}, server={"step": 10.0})
    comparison, _ = compare(run(worse))
    assert (comparison.bytes, comparison.uncompressed_bytes, comparison.saving) == (0, 0, None)


def test_folders_are_made_with_those_above(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_loss_that_grows_without_end_is_divergence_while_it_is_still_finite() -> None:
    data = {"source": "synthetic-linear", "clients": 3, "per_client": 5}
    experiment = Experiment.of(algorithm="sgd", rounds=50, data=data, server={"step": 50.0}, run={"evaluate_every": 1})
    with pytest.raises(DivergedError, match=r"^round \d+: the loss has grown from .* to .*; use a smaller step$"):
        run(experiment)
