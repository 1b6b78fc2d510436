"""``fedsim run --engine`` as a user calls it: the folder and summary of a simulated run, and errors of one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedsim
from fedsim.cli import engines, flower
from fedsim.cli.flower import QUIET
from fedsim.errors import DeployError
from fedsim.simulation.setup import prepare
from tests.flower.driven import ARTEMIS, NASTYA, assert_same, experiment

ROOT = Path(__file__).resolve().parents[2]
Ended = subprocess.CompletedProcess[str]


def start(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsim.cli.main", *arguments],
        cwd=folder,
        env=os.environ | QUIET | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
    process = start(folder, *arguments, env=env)
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return subprocess.CompletedProcess([], process.returncode, out, err)


def refused(ended: Ended, expected: str) -> None:
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert re.search(expected, ended.stderr), ended.stderr


def written(folder: Path, tables: dict[str, Any], **more: Any) -> fedsim.Experiment:
    given = experiment(tables, **more)
    (folder / "x.toml").write_text(given.toml())
    return given


def tail(text: str) -> list[str]:
    """The summary: losses, bytes and frames, digest."""
    return [line.split("  in ")[0] for line in text.splitlines()[-3:]]


def test_the_apps_in_a_process_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, ARTEMIS)
    served = call(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--nodes", "3", "--folder", "runs/a")
    simulated = call(tmp_path, "run", "x.toml", "--folder", "runs/b")
    assert (served.returncode, served.stderr) == (0, "")
    assert tail(served.stdout) == tail(simulated.stdout)
    assert "round 12/12  loss" in served.stdout
    assert_same(tmp_path / "runs/a", tmp_path / "runs/b")
    assert json.loads((tmp_path / "runs/a/manifest.json").read_text())["engine"] == "flower-in-process"
    again = call(tmp_path, "resume", "runs/a")
    assert again.stdout.splitlines()[0] == "  this run was finished already"
    assert tail(again.stdout) == tail(served.stdout)
    refused(
        call(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--folder", "runs/a"),
        "runs/a holds a run already; `fedsim resume runs/a` continues it",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    """The nodes have forgotten everything, which the server heals: the model is that of an uninterrupted run."""
    given = written(tmp_path, {**ARTEMIS, "rounds": 150})
    process = start(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--folder", "a")
    end = time.monotonic() + 60
    while time.monotonic() < end and _rounds(tmp_path / "a") < 10:
        time.sleep(0.02)
    process.send_signal(how)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    if how is not signal.SIGKILL:
        assert process.returncode == 130
        assert err == "stopped: `fedsim resume a` goes on from the last complete round\n"
    else:
        _kill_the_apps(tmp_path / "a")
    assert 10 <= _rounds(tmp_path / "a") < 150
    ended = call(tmp_path, "resume", "a")
    assert (ended.returncode, ended.stderr) == (0, "")
    simulated = fedsim.run(given)
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["model_sha256"] == simulated.digest


def _rounds(folder: Path) -> int:
    try:
        return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["round"])
    except (OSError, IndexError, ValueError):
        return 0


def _kill_the_apps(folder: Path) -> None:
    """The process of the apps outlives the command that was killed."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                command = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if b"server.inprocess" in command and str(folder).encode() in command:
                os.kill(int(place.name), signal.SIGKILL)
                time.sleep(0.5)


def test_a_run_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    written(tmp_path, {**ARTEMIS, "server": {"step": 1e30}})
    refused(
        call(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--folder", "a"),
        r"^error: round \d+: .*server.step = 1e\+30; use a smaller step",
    )


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "config.toml").write_text('[superlink.gone]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    return {"FLWR_HOME": str(folder)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--engine flwr", r"--engine flwr: no such engine.*; give one of simulator, flower-in-process"),
        ("--engine flower", "--engine flower needs --superlink NAME"),
        ("--superlink gone", "--superlink is for --engine flower only; leave it out for simulator"),
        ("--engine flower --superlink gone --nodes 3", "--nodes is not for --engine flower"),
        ("--engine flower-in-process --gpus-per-client 0.5", "--gpus-per-client is for --engine flower-simulation"),
        (
            "--engine flower --superlink here",
            r"--superlink here: no such connection in \S+config.toml \(it has gone\); add \[superlink.here\]",
        ),
        (
            "--engine flower --superlink gone",
            r"no SuperLink at 127.0.0.1:9; start `flower-superlink` there, or correct \[superlink.gone\] in \S+config",
        ),
    ],
)
def test_mistakes_are_one_line(options: str, expected: str, tmp_path: Path, home: dict[str, str]) -> None:
    """And leave nothing that would be in the way of the next attempt."""
    written(tmp_path, ARTEMIS)
    refused(call(tmp_path, "run", "x.toml", "--folder", "a", *options.split(), env=home), expected)
    assert not (tmp_path / "a").exists()


def test_a_superlink_that_is_gone_in_the_middle(
    tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes its ServerApp with it; the run folder has all complete rounds."""
    monkeypatch.setenv("FLWR_HOME", home["FLWR_HOME"])
    job = engines.Run(flower.Flower("gone", flower.environment()), "1")
    with pytest.raises(DeployError, match=r"^no SuperLink at 127.0.0.1:9; start .*; then `fedsim resume a` goes on"):
        engines._watch(Console(), job, Path("a"), experiment(ARTEMIS), fresh=True)


def test_a_run_whose_server_app_died_with_a_superlink_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What flwr 1.41 says of it a minute later; an app that has failed has its own way out."""
    said = "No heartbeat received from the task"
    link = flower.Flower("here", {})
    monkeypatch.setattr(link, "status", lambda number: ("finished:failed", said))
    assert engines.Run(link, "7").failure() == (
        f"Flower's run 7 is finished, failed ({said}); `fedsim resume` goes on from the last complete round"
    )
    said = "Traceback:\n  x\nServerApp failed with exception: no node is connected; start one"
    assert engines.Run(link, "7").failure() == "no node is connected; start one"


def test_a_run_that_flower_started_is_flowers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text('{"engine": "flower"}')
    refused(call(tmp_path, "resume", "a"), "a was run by `flwr run`, not by fedsim; the same `flwr run` with -c")
    (tmp_path / "a" / "submission.json").write_text("{")
    refused(call(tmp_path, "resume", "a"), r"a/submission.json: unreadable \(.*\); put it back")


def test_what_flower_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(flower, "version", version)
    with pytest.raises(DeployError, match=r"^flwr is not installed for \S+; pip install 'fedsim\[flower\]'$"):
        flower.check()
    for wrong in ("1.40.2", "1.43.0", "2.0"):
        versions["flwr"] = wrong
        with pytest.raises(DeployError, match=rf"^flwr {wrong} is installed, expected 1.41 or 1.42; pip install"):
            flower.check()
    for right in ("1.41.0", "1.42.3"):
        versions["flwr"] = right
        flower.check()
    with pytest.raises(DeployError, match=r"^ray is not installed for \S+; pip install 'fedsim\[flower-simulation\]'$"):
        flower.check(ray=True)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeployError, match=r"^there is no flwr command beside /nowhere/python; pip install"):
        flower.check()
    flower.check(command=False)


def test_flowers_processes_find_their_commands_and_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    env = flower.environment()
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert env["FLWR_TELEMETRY_ENABLED"] == "1", "the user's own setting stands"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["artemis", "diana-nastya"])
def test_flowers_simulation_on_ray(name: str, tmp_path: Path) -> None:
    """Two actors (one a core) or more: the same folder as a simulated run, and no process left."""
    written(tmp_path, {"artemis": ARTEMIS, "diana-nastya": NASTYA}[name])
    before = _flower_processes()
    served = call(tmp_path, "run", "x.toml", "--engine", "flower-simulation", "--nodes", "3", "--folder", "a")
    assert (served.returncode, served.stderr) == (0, "")
    simulated = call(tmp_path, "run", "x.toml", "--folder", "b")
    assert tail(served.stdout) == tail(simulated.stdout)
    assert_same(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "a/manifest.json").read_text())["engine"] == "flower-simulation"
    end = time.monotonic() + 30
    while _flower_processes() - before and time.monotonic() < end:
        time.sleep(0.2)
    assert _flower_processes() - before == set()


@pytest.mark.slow
def test_flowers_simulation_with_relative_paths_that_fails(tmp_path: Path) -> None:
    """The data lies where the command was given, which is not where Flower's processes run."""
    (tmp_path / "few.svm").write_text("".join(f"{1 if i % 2 else -1} 1:{i} 2:{i * i % 7}\n" for i in range(40)))
    tables = {
        "rounds": 3,
        "data": {"source": "libsvm", "path": "few.svm"},
        "partition": {"scheme": "iid", "clients": 4},
    }
    written(tmp_path, {**tables, "participation": {"scheme": "full"}})
    served = call(tmp_path, "run", "x.toml", "--engine", "flower-simulation", "--folder", "a")
    assert (served.returncode, served.stderr) == (0, "")
    written(tmp_path, {**tables, "participation": {"scheme": "full"}, "server": {"step": 1e30}})
    refused(
        call(tmp_path, "run", "x.toml", "--engine", "flower-simulation", "--folder", "b"),
        r"^error: round \d+: .*server.step = 1e\+30; use a smaller step",
    )


def _flower_processes() -> set[int]:
    found = set()
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                command = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if re.search(rb"flower-super|flwr-simulation|raylet|gcs_server", command):
                found.add(int(place.name))
    return found


def test_what_cannot_be_deployed_leaves_nothing(tmp_path: Path) -> None:
    """And is one line, before anything is submitted."""
    written(tmp_path, {**ARTEMIS, "algorithm": "artemis-whitened"})
    ended = call(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--folder", "a")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: whitening.mode = 'shared' runs in the simulator only; use whitening.mode")
    assert not (tmp_path / "a").exists()


def test_the_summary_tells_what_is_missing(tmp_path: Path) -> None:
    """A bound that no client keeps: all replies are refused, and the last line says where that is written."""
    given = written(
        tmp_path, {**ARTEMIS, "rounds": 2, "participation": {"scheme": "full"}, "deploy": {"longest": 1e-9}}
    )
    ended = call(tmp_path, "run", "x.toml", "--engine", "flower-in-process", "--folder", "a")
    taken = (tmp_path / "a" / "ledger.csv").read_text().count(",up,upload,")
    absent = 2 * prepare(given).clients - taken
    assert absent > 10
    last = ended.stdout.splitlines()[-1]
    assert last == f"  {absent} replies are missing: a/incidents.csv says whose and why"
