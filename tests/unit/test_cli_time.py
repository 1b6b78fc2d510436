"""``fedsim time``: a run that was played, over a network that it did not know; and what it cannot read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.cli import main
from fedsim.cli.text import duration
from fedsim.errors import CheckpointError, ConfigError, DataError
from fedsim.experiment import Experiment
from fedsim.simulation.hindsight import network_named, replay
from fedsim.simulation.run import run
from tests.conftest import Refused

Command = Callable[..., tuple[int, str, str]]
TABLES: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": 4, "per_client": 10},
    "participation": {"scheme": "bernoulli", "p": 0.5},
    "rounds": 6,
    "run": {"evaluate_every": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    run(Experiment.of(**TABLES), place / "plain")
    run(Experiment.of(**TABLES, network={"profile": "4g", "deadline_s": 0.47}), place / "timed")
    return place


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path) -> Command:
    def command(*argv: str) -> tuple[int, str, str]:
        monkeypatch.chdir(runs)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["fedsim", "time", *argv])
        status = 0
        try:
            main.main()
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def test_a_folder_of_runs(command: Command) -> None:
    assert command(".", "--network", "4g") == command("plain", "timed", "--network", "4g")


def test_a_run_over_a_network_that_it_did_not_know(command: Command, runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "plain" / "metrics.jsonl").read_text().splitlines()]
    status, out, _ = command("plain", "timed", "--network", "iot", "--target", f"{lines[1]['loss']}", "--target", "0")
    assert status == 0
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()[1:3]]
    assert [row[:3] for row in rows] == [["plain", "iot", "6"], ["timed", "iot", "6"]]
    assert rows[0][6].endswith("(2 rounds)")
    assert rows[0][7] == "not reached"
    assert "what is sent and computed" in out
    played = replay(runs / "plain", network_named("iot"))
    assert played.reached(lines[1]["loss"]) == (2, pytest.approx(played.timing.seconds[:2].sum()))
    assert played.reached(lines[0]["loss"]) == (0, 0.0)


def test_a_runs_own_network_gives_what_the_run_said(runs: Path, command: Command) -> None:
    last = json.loads((runs / "timed" / "metrics.jsonl").read_text().splitlines()[-1])
    played = replay(runs / "timed", None)
    assert played.timing.seconds.sum() == pytest.approx(last["seconds"], rel=1e-12)
    assert played.timing.late.sum() > 0
    status, out, _ = command("timed")
    assert (status, out.splitlines()[1].split()[:3]) == (0, ["timed", "4g", "6"])


def test_a_trace_by_its_path(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    file.write_text("client,up_mbps,down_mbps,latency_s\n" + "".join(f"{i},1,1,0\n" for i in range(4)))
    fast = replay(runs / "plain", network_named(str(file))).timing.seconds.sum()
    file.write_text("client,up_mbps,down_mbps,latency_s\n" + "".join(f"{i},0.5,0.5,0\n" for i in range(4)))
    assert replay(runs / "plain", network_named(str(file))).timing.seconds.sum() == pytest.approx(2 * fast)


def test_what_cannot_be_timed(runs: Path, tmp_path: Path, refused: Refused, command: Command) -> None:
    with refused(ConfigError, "network '5g': expected data-centre, fibre, 4g, iot, or the path of a trace"):
        network_named("5g")
    with refused(ConfigError, "was run without a [network]; say --network"):
        replay(runs / "plain", None)
    with refused(CheckpointError, "is not a run folder"):
        replay(tmp_path, network_named("4g"))
    with refused(DataError, "none.csv: no such file"):
        replay(runs / "plain", network_named("none.csv"))
    status, _, error = command("plain")
    assert (status, error.count("\n")) == (2, 1)
    run(Experiment.of(**TABLES), tmp_path / "other")
    ledger = tmp_path / "other" / "ledger.csv"
    ledger.write_text(ledger.read_text() + "5,4,up,upload,1,1.0,8,41\n")
    with refused(CheckpointError, "it has clients that the experiment has not"):
        replay(tmp_path / "other", network_named("4g"))
    ledger.unlink()
    with refused(CheckpointError, "has no ledger.csv"):
        replay(tmp_path / "other", network_named("4g"))


def test_a_run_says_its_simulated_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.toml"
    file.write_text('rounds = 2\ndata.source = "synthetic-linear"\nnetwork.profile = "4g"\n')
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", str(file), "--folder", str(tmp_path / "run")])
    main.main()
    seconds = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    assert f"  simulated time {duration(seconds)}\n" in capsys.readouterr().out
