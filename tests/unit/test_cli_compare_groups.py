"""``fedsim compare`` of more than two runs: groups over seeds, what they ended with and what a target took."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.reporting.runs import find_runs, groups
from fedsim.reporting.table import flat_row, table
from fedsim.reporting.timed import timed
from fedsim.simulation.run import run
from tests.conftest import Command, Refused

Compare = Callable[[str], tuple[int, str, str]]
SEEDS = (0, 1, 2)
T = 4.302653
"""t(0.975, 2)."""


def tiny(**changes: Any) -> Experiment:
    given = {
        "data": {"source": "synthetic-linear", "clients": 4, "per_client": 10},
        "rounds": 12,
        "run": {"evaluate_every": 2},
    }
    return Experiment.of(**{**given, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of sgd and of artemis in a folder each, and one run of digits that knows its accuracy."""
    place = tmp_path_factory.mktemp("runs")
    for algorithm in ("sgd", "artemis"):
        for seed in SEEDS:
            run(tiny(algorithm=algorithm, seed=seed), place / algorithm / str(seed))
    run(Experiment.of(rounds=3), place / "digits")
    return place


@pytest.fixture
def compare(runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """``compare(arguments)``, in the folder of the runs."""
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda line: command("compare", *line.split())


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_and_intervals_are_those_of_the_files(compare: Compare, runs: Path) -> None:
    """By hand from metrics.jsonl; the default target is the worst final loss, which all runs reached by their end."""
    status, out, err = compare("sgd artemis --json")
    assert (status, err) == (0, "")
    said = json.loads(out)
    lines = {name: [told(runs / name / str(seed)) for seed in SEEDS] for name in ("sgd", "artemis")}
    target = max(one[-1]["loss"] for logs in lines.values() for one in logs)
    assert (said["measure"], said["target"]) == ("loss", target)
    assert [row["label"] for row in said["groups"]] == ["sgd", "artemis"]
    for row in said["groups"]:
        logs = lines[row["label"]]
        assert [row[key] for key in ("seeds", "finished", "diverged", "reached")] == [3, 3, 0, 3]
        for key in ("loss", "up_bytes", "down_bytes", "payload_bits"):
            ends = np.array([one[-1][key] for one in logs], float)
            assert row[f"{key}_mean"] == pytest.approx(ends.mean())
            assert row[f"{key}_half"] == pytest.approx(T * ends.std(ddof=1) / math.sqrt(3), rel=1e-6)
        first = [next(line for line in one if line["loss"] <= target) for one in logs]
        assert row["to_rounds_mean"] == pytest.approx(np.mean([line["round"] for line in first]))
        total = [line["up_bytes"] + line["down_bytes"] for line in first]
        assert row["to_bytes_mean"] == pytest.approx(np.mean(total))
        assert row["to_bytes_half"] == pytest.approx(T * np.std(total, ddof=1) / math.sqrt(3), rel=1e-6)
        assert row["to_seconds_mean"] is row["to_seconds_half"] is row["test_accuracy_mean"] is None


def test_a_table_in_words(compare: Compare) -> None:
    status, out, _ = compare("sgd artemis --target 0.9")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "at the end"
    assert lines[1].split() == ["seeds", "loss", "up", "down", "payload"]
    assert lines[2].split()[:2] == ["sgd", "3"]
    assert "until loss <= 0.9" in lines
    after = lines[lines.index("until loss <= 0.9") + 1 :]
    assert after[0].split() == ["reached", "by", "rounds", "up", "down", "payload"]
    assert after[1].startswith("sgd ")
    assert "±" in after[1]
    assert after[2].split() == ["artemis", "0", "of", "3"]
    assert "3 of 3" in after[1]
    assert lines[-2:] == [
        "mean ± half of the 95 % interval over seeds (Student)",
        "what a target took: at the first evaluation that was there, one every 2 rounds",
    ]


def test_two_runs_are_still_held_against_each_other(compare: Compare) -> None:
    """Unless an option asks for figures."""
    assert "models: different" in compare("sgd/0 sgd/1")[1]
    status, out, _ = compare("sgd/0 sgd/1 --target 1")
    assert status == 0
    assert "until loss <= 1" in out
    assert "models" not in out
    assert len(json.loads(compare("sgd/0 sgd/1 --json")[1])["groups"]) == 1
    assert json.loads(compare("digits --json")[1])["groups"][0]["loss_half"] is None
    assert "until loss" in compare("sgd/0 artemis")[1]


def test_seconds_over_a_network(compare: Compare, runs: Path) -> None:
    status, out, _ = compare("sgd artemis --network 4g")
    assert status == 0
    assert out.splitlines()[1].split()[-1] == "seconds"
    (row, _) = json.loads(compare("sgd artemis --network 4g --json")[1])["groups"]
    ends = [float(run.axis("seconds")[-1]) for run in timed(find_runs([runs / "sgd"]), "4g")]
    assert row["seconds_mean"] == pytest.approx(sum(ends) / 3)
    assert "models" not in compare("sgd/0 sgd/1 --network 4g")[1]


def test_accuracy(compare: Compare) -> None:
    """It is reached from below; a run without it has none."""
    status, out, _ = compare("digits sgd --measure test_accuracy")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("until")]
    assert line.startswith("until test accuracy >= 0.")
    after = out.splitlines()[out.splitlines().index(line) + 1 :]
    assert "1 of 1" in after[1]
    assert "0 of 3" in after[2]
    assert after[-1] == ("not the same problem: these runs differ in data, partition or task, so in what a loss means")
    assert " %" in out


def test_csv(compare: Compare, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert compare(f"sgd artemis --csv {path}")[0] == 0
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [flat_row(row) for row in table(groups(find_runs([runs / "sgd", runs / "artemis"]))).rows]
    assert [line["label"] for line in lines] == ["sgd", "artemis"]
    assert [float(line["loss_mean"]) for line in lines] == [row["loss_mean"] for row in expected]
    assert lines[0]["to_seconds_mean"] == ""
    assert lines[0]["measure"] == "loss"
    assert compare("sgd artemis --csv /nowhere/table.csv")[2].startswith("error: /nowhere/table.csv: No such file")


def test_runs_that_came_to_nothing_are_counted(compare: Compare, runs: Path, tmp_path: Path) -> None:
    """One diverged, one not finished: the mean is over the third, and says so."""
    shutil.copytree(runs / "sgd", tmp_path / "sgd")
    for seed, status in ((0, "diverged"), (1, "running")):
        manifest = tmp_path / "sgd" / str(seed) / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": status}))
    out = compare(f"{tmp_path / 'sgd'} artemis")[1]
    assert "1, 1 diverged, 1 unfinished" in out
    (row,) = table(groups(find_runs([tmp_path / "sgd"]))).rows
    assert (row.ends["loss"].mean, row.ends["loss"].n) == (told(runs / "sgd" / "2")[-1]["loss"], 1)


def test_nothing_to_compare(compare: Compare, refused: Refused, runs: Path) -> None:
    assert compare("nowhere sgd")[2].startswith("error: nowhere is not a run folder (no experiment.toml), nor is there")
    assert compare("sgd --measure test_los")[2].startswith("error: no finished run has a test_los; ")
    with refused(ConfigError, "no finished run has a loss", "--target"):
        table([])
    assert compare("sgd --target nan")[2] == "error: --target nan: expected a finite number\n"


def test_all_of_them_diverged(compare: Compare, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "sgd", tmp_path / "sgd")
    for manifest in (tmp_path / "sgd").glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "diverged"}))
    assert compare(str(tmp_path / "sgd"))[2] == "error: all these runs diverged; run them with a smaller step\n"
