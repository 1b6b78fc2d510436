"""Trackers, the real packages with stores in files: they hold what metrics.jsonl says, once, whatever happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import CheckpointError, ConfigError, DivergedError, StoppedError
from fedsim.experiment import Experiment, load
from fedsim.simulation import trackers
from fedsim.simulation.comparison import uncompressed
from fedsim.simulation.run import resume, run
from tests.conftest import Refused

Points = dict[str, list[tuple[int, float]]]
"""Measure -> (round, value), in the order in which the store has them."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def tiny(*names: str, **changes: Any) -> Experiment:
    given = {
        "data": {"source": "synthetic-linear", "clients": 4, "per_client": 10},
        "rounds": 20,
        "run": {"evaluate_every": 2, "checkpoint_every": 6, "trackers": list(names)},
    }
    return Experiment.of(**{**given, **changes})


def in_tensorboard(folder: Path) -> Points:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    util = pytest.importorskip("tensorboard.util.tensor_util")
    found: Points = {}
    for file in sorted((folder / "tensorboard").glob("events*")):
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("experiment"):
                    found.setdefault(value.tag, []).append((event.step, util.make_ndarray(value.tensor).item()))
    return found


def in_mlflow(folder: Path) -> Points:
    client = pytest.importorskip("mlflow").MlflowClient()
    number = (folder / "mlflow.id").read_text()
    assert client.get_run(number).data.params["uplink.levels"] == "1"
    names = client.get_run(number).data.metrics
    return {name: [(one.step, one.value) for one in client.get_metric_history(number, name)] for name in names}


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a LevelDB log of 32 KiB blocks, after a header of 7 bytes."""
    block, at, parts = 2**15, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a header of 7 bytes: CRC, length, kind
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def in_wandb(folder: Path) -> Points:
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found: Points = {}
    for file in (folder / "wandb").glob("offline-run-*/*.wandb"):
        for data in records(file.read_bytes()):
            record = messages.Record.FromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                if not name.startswith("_"):
                    found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return found


READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "wandb": in_wandb,
}
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each tracker that is installed, with no way to a network."""
    tracker = str(request.param)
    pytest.importorskip(PACKAGES[tracker], reason=f"needs {tracker}; pip install 'fedsim[{tracker}]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return tracker


def told(folder: Path) -> Points:
    """What metrics.jsonl says."""
    found: Points = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for key, value in line.items():
            if key != "round":
                found.setdefault(key, []).append((line["round"], value))
    return found


def follows(name: str, folder: Path) -> bool:
    """Whether a store holds what metrics.jsonl says and nothing else. W&B writes a finished run a moment later."""
    end = time.monotonic() + (30 if name == "wandb" else 0)
    while (same := READERS[name](folder) == told(folder)) is False and time.monotonic() < end:
        time.sleep(0.05)
    return same


class Until:
    """An observer that stops the run after a round."""

    def __init__(self, last: int, how: Callable[[], None]) -> None:
        self.last, self.how = last, how

    def started(self, *_: Any) -> None: ...

    def played(self, round: int, *_: Any) -> None:
        if round == self.last:
            self.how()

    def evaluated(self, *_: Any) -> None: ...


def stop() -> None:
    raise StoppedError("here")


def test_a_run_that_was_stopped_and_resumed(name: str, tmp_path: Path) -> None:
    """Every evaluation once, in order, to the last bit, as if it had not been stopped."""
    folder = tmp_path / "run"
    for last in (5, 11):
        with pytest.raises(StoppedError):
            (run if last == 5 else lambda _, *rest: resume(*rest))(tiny(name), folder, Until(last, stop))
    resume(folder)
    assert [round for round, _ in told(folder)["loss"]] == list(range(0, 21, 2))
    assert follows(name, folder)
    resume(folder)  # there is nothing left to do
    assert follows(name, folder)


def test_a_run_that_was_killed(name: str, tmp_path: Path) -> None:
    """After round 11 of a process that had evaluated rounds 6, 8 and 10 since its last checkpoint."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom fedsim.simulation.run import run\n"
        "from tests.unit.test_trackers import Until, tiny\n"
        f"run(tiny({name!r}), Path('run'), Until(11, lambda: os.kill(os.getpid(), {int(signal.SIGKILL)})))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = tmp_path / "run"
    resume(folder)
    assert follows(name, folder)
    assert len(told(folder)["loss"]) == 11


def test_a_run_that_diverges(name: str, tmp_path: Path) -> None:
    """It is closed, with what there was."""
    folder = tmp_path / "run"
    with pytest.raises(DivergedError):
        run(tiny(name, server={"step": "40/L"}), folder)
    assert follows(name, folder)
    if name == "mlflow":
        import mlflow

        assert mlflow.MlflowClient().get_run((folder / "mlflow.id").read_text()).info.status == "FAILED"


def test_a_tracker_is_no_part_of_the_experiment(tmp_path: Path) -> None:
    """The same name, the same bits; not in its uncompressed baseline."""
    plain, named = tiny(), load(None, ['run.trackers=["tensorboard"]'])
    assert named.run.trackers == ("tensorboard",)
    assert tiny("wandb", "mlflow").identifier() == plain.identifier()
    assert uncompressed(named).run.trackers == ()
    assert trackers.of(plain, None) == []


def test_what_cannot_be_tracked(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ConfigError, "run.trackers[0] = 'tensorbord': expected 'mlflow' or 'tensorboard' or 'wandb'"):
        tiny("tensorbord")
    with refused(ConfigError, "run.trackers = ['tensorboard'], but they follow a run folder"):
        run(tiny("tensorboard"))
    for tracker in READERS:
        monkeypatch.setitem(sys.modules, PACKAGES[tracker], None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.delitem(sys.modules, f"fedsim.simulation.trackers.{tracker}", raising=False)
        with refused(ConfigError, f"run.trackers: {tracker} is not installed here", f"pip install 'fedsim[{tracker}]'"):
            run(tiny(tracker), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails(name: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and the run goes on from there."""
    folder = tmp_path / "run"
    tracker = trackers.of(tiny(name), folder)[0]
    log = type(tracker.store).log

    def full(self: Any, round: int, values: Any) -> None:
        if round == 8:
            raise OSError(28, "No space left on device")
        log(self, round, values)

    monkeypatch.setattr(type(tracker.store), "log", full)
    with refused(ConfigError, f"run.trackers: {name} failed (OSError: [Errno 28] No space", "fedsim resume"):
        run(tiny(name), folder)
    monkeypatch.undo()
    for key, value in (
        ("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}"),
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
        ("WANDB_MODE", "offline"),
    ):
        monkeypatch.setenv(key, value)
    resume(folder)
    assert follows(name, folder)


def test_a_store_that_cannot_be_opened(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written; and links in a run folder from elsewhere lead nowhere."""
    pytest.importorskip("mlflow", reason="needs mlflow; pip install 'fedsim[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense:/x")
    with refused(ConfigError, "run.trackers: mlflow cannot be used (", "leave it out"):
        run(tiny("mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_link_is_not_followed(refused: Refused, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard; pip install 'fedsim[tensorboard]'")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(elsewhere)
    with refused(ConfigError, "run.trackers: tensorboard failed", "a symbolic link"):
        run(tiny("tensorboard"), tmp_path / "run")
    assert (elsewhere / "events.out.tfevents.1").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"../../x", b"a\nb", b"\xff", b"x" * 65])
def test_a_name_that_is_none(content: bytes, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "wandb.id").write_bytes(content)
    with refused(CheckpointError, "wandb.id: not the name of a run in a tracker; delete it"):
        trackers.remembered(tmp_path / "wandb.id", lambda: "")
