"""What of the comparison with peers can be tested without them: the file they read, the judgement, the processes."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.peers import venvs
from tests.benchmarks.peers.problem import Played, export, fedsim_rounds
from tests.benchmarks.peers.table import Pair, distances, merged, table, verdict

ROUNDS = 3


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lr10 as a peer's script reads it."""
    spec = importlib.util.spec_from_file_location("given", venvs.INSIDE / "given.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["given"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("peers") / "lr10.npz"
    export("lr10", ROUNDS, path)
    yield module.Given.read(str(path))
    del sys.modules["given"]


def federated_averaging(given: Any, backwards: bool = False) -> np.ndarray:
    """Softmax regression on what the file says, in float64; backwards: samples in the opposite order."""
    model = given.initial.astype(np.float64)
    inputs = given.features.shape[1]
    for cohort in given.cohorts:
        ends, sizes = [], [given.size(client) for client in cohort]
        for client in cohort:
            features, labels = given.features[given.shard(client)], given.labels[given.shard(client)]
            if backwards:
                features, labels = features[::-1], labels[::-1]
            weights = model[: given.classes * inputs].reshape(given.classes, inputs).copy()
            biases = model[given.classes * inputs :].copy()
            for start in range(0, len(labels), given.batch):
                x, y = features[start : start + given.batch].astype(np.float64), labels[start : start + given.batch]
                odds = np.exp(x @ weights.T + biases)
                slopes = odds / odds.sum(1, keepdims=True) - np.eye(given.classes)[y]
                weights -= given.step * given.scale(client) * slopes.T @ x
                biases -= given.step * given.scale(client) * slopes.sum(0)
            ends.append(np.concatenate([weights.ravel(), biases]))
        model = np.average(ends, axis=0, weights=sizes)
    return model.astype(np.float32)


def test_the_file_says_all_that_the_rounds_depend_on(given: Any) -> None:
    played = fedsim_rounds("lr10", ROUNDS)
    assert given.cohorts.shape == (ROUNDS, 10)
    assert len(played.seconds) == ROUNDS
    assert distances(federated_averaging(given), played.parameters)[0] < 1e-6


def test_another_order_of_the_samples_is_other_work(given: Any) -> None:
    assert verdict(federated_averaging(given, backwards=True), fedsim_rounds("lr10", ROUNDS).parameters) == "OTHER WORK"


def test_the_parts_of_a_network_are_as_large_as_the_file_says(tmp_path: Path) -> None:
    export("mlp10", 1, tmp_path / "mlp10.npz")
    with np.load(tmp_path / "mlp10.npz") as stored:
        assert stored["initial"].shape == (784 * 128 + 128 + 128 * 62 + 62,)
        assert stored["offsets"].shape == (101,)
        assert stored["features"].shape == (stored["offsets"][-1], 784)


def test_one_unit_on_the_other_side_of_a_kink_is_told_from_other_work() -> None:
    expected = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    kink = expected.copy()
    kink[:100] += 0.01
    everywhere = expected + np.float32(0.001)
    assert verdict(expected + np.float32(1e-6), expected) == "same"
    assert verdict(kink, expected) == "same but for a kink"
    assert verdict(everywhere, expected) == "OTHER WORK"
    assert verdict(expected[:-1], expected) == "OTHER WORK"
    assert verdict(np.full_like(expected, np.nan), expected) == "OTHER WORK"


def test_blocks_of_one_setting_are_compared_with_the_blocks_beside_them() -> None:
    row = np.ones(3, dtype=np.float32)
    pairs = [
        Pair(Played("peer", setting, [seconds, 9.0], row), Played("fedsim", "sequential", [beside, 9.0], row))
        for setting, seconds, beside in (("one", 0.5, 0.2), ("two", 0.4, 0.1), ("one", 0.3, 0.1))
    ]
    one, two = merged(pairs)
    assert (one.peer.seconds, one.fedsim.seconds) == ([0.5, 9.0, 0.3, 9.0], [0.2, 9.0, 0.1, 9.0])
    assert (two.peer.seconds, two.fedsim.seconds) == ([0.4, 9.0], [0.1, 9.0])
    lines = table("lr10", pairs).splitlines()
    assert lines[2].split() == ["peer", "one", "300.00", "9000.00", "100.00", "3.00", "0.0e+00", "same"]
    assert lines[3].split() == ["peer", "two", "400.00", "9000.00", "100.00", "4.00", "0.0e+00", "same"]
    assert table("lr10", []) == "lr10: no peer ran"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a text as the script of a peer."""
    monkeypatch.setattr(venvs, "INSIDE", tmp_path)

    def play(text: str, limit: float = 30) -> dict[str, Any]:
        (tmp_path / venvs.PEERS["pfl"].script).write_text(text)
        return venvs.run(Path(sys.executable), "pfl", (), tmp_path / "a.npz", tmp_path / "b.npy", limit)

    return play


def test_what_a_script_prints_is_read(scripted: Any) -> None:
    said = scripted('print("chatter")\nprint(\'{"peer": "p 1", "setting": "s", "seconds": [0.5]}\')\nprint("more")')
    assert said == {"peer": "p 1", "setting": "s", "seconds": [0.5]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name", "pfl: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("print('no result')", "pfl: stopped without a word"),
    ],
)
def test_a_script_that_fails_is_told_in_one_line(scripted: Any, text: str, reason: str) -> None:
    with pytest.raises(venvs.MissingError) as caught:
        scripted(text)
    assert str(caught.value) == reason


def test_nothing_is_left_of_a_script_that_takes_too_long(scripted: Any, tmp_path: Path) -> None:
    child = (
        "import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    )
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\ntime.sleep(60)"
    with pytest.raises(venvs.MissingError, match="not done after 3 s"):
        scripted(child + note, limit=3)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not alive(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def alive(pid: int) -> bool:
    """Whether a process runs, a zombie excepted."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
