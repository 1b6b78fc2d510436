"""``fedsim report``, ``watch`` and ``gallery``: what they write, print and refuse."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fedsim.cli import main
from fedsim.cli.report import parse_target
from fedsim.reporting import gallery, plots
from fedsim.reporting.content import EXCESS, Study, Target
from fedsim.reporting.runs import find_runs
from fedsim.reporting.statistics import curve
from fedsim.reporting.timed import timed
from fedsim.simulation.hindsight import network_named, replay

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *map(str, words)])
        status = 0
        try:
            main.main()
        except SystemExit as left:
            status = int(left.code or 0)
        return status, *capsys.readouterr()

    return command


def test_report_writes_one_page(cli: Cli, runs: Path) -> None:
    status, out, _ = cli("report", runs, "-o", "x.html")
    assert (status, out) == (0, f"x.html: 6 runs, {Path('x.html').stat().st_size / 1e6:.1f} MB\n")
    assert "<title>artemis · levels 1 · artemis · levels 4 · sgd</title>" in Path("x.html").read_text()
    assert os.listdir() == ["x.html"]


def test_report_over_a_network(cli: Cli, runs: Path) -> None:
    """Runs that were played without one have simulated seconds: those of ``fedsim time``."""
    assert cli("report", runs / "sgd-0", "--no-theory", "--network", "4g")[0] == 0
    assert '"key":"seconds"' in Path("report.html").read_text()
    (found,) = timed(find_runs([runs / "sgd-0"]), "4g")
    played = replay(runs / "sgd-0", network_named("4g"))
    assert found.axis("seconds").tolist() == [
        pytest.approx(played.timing.seconds[: line["round"]].sum()) for line in found.metrics
    ]
    assert found.axis("seconds")[-1] > 0
    status, _, said = cli("report", runs / "sgd-0", "--network", "5g")
    assert (status, said) == (
        2,
        "error: network '5g': expected data-centre, fibre, 4g, iot, or the path of a trace, such as lines.csv\n",
    )


def test_report_without_data(cli: Cli, runs: Path) -> None:
    assert cli("report", runs / "sgd-0", "--no-data", "--title", "Mine", "--target", "test_accuracy=0.9")[0] == 0
    text = Path("report.html").read_text()
    assert "<title>Mine</title>" in text
    assert "was not looked at" in text
    assert EXCESS not in re.findall(r'"measures":(\[.*?\])', text)[0]


def test_report_without_theory(cli: Cli, runs: Path) -> None:
    assert cli("report", runs / "sgd-0", "--no-theory")[0] == 0
    text = Path("report.html").read_text()
    assert EXCESS in text
    assert '"theory":null' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["{runs}", "--target", "low"], "--target low: expected a number"),
        (["{runs}", "-o", "no/where.html"], "no/where.html: No such file"),
    ],
)
def test_report_refuses(cli: Cli, runs: Path, words: list[str], said: str) -> None:
    status, _, err = cli("report", *(word.format(runs=runs / "sgd-0") for word in words))
    assert (status, err.count("\n")) == (2, 1)
    assert said in err


def test_targets() -> None:
    assert parse_target("") is None
    assert parse_target("0.3") == Target("loss", 0.3)
    assert parse_target("test_accuracy=.9") == Target("test_accuracy", 0.9)


def test_export_writes_what_the_statistics_say(cli: Cli, runs: Path, studied: Study) -> None:
    status, out, _ = cli("report", runs, "--export", "paper")
    written = [Path(line) for line in out.splitlines()[1:]]
    assert status == 0
    assert sorted(written) == sorted(Path("paper").iterdir())
    assert Path("paper/bytes.svg") in written
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    with Path(f"paper/{EXCESS}-against-bytes.csv").open() as file:
        table = list(csv.DictReader(file))
    for group in studied.groups:
        found = curve(group.runs, "bytes", EXCESS)
        mine = [line for line in table if line["series"] == group.label]
        np.testing.assert_allclose([float(line["bytes"]) for line in mine], found.axis)
        np.testing.assert_allclose([float(line[EXCESS]) for line in mine], found.mean)
        np.testing.assert_allclose([float(line["high_95"]) - float(line["low_95"]) for line in mine], 2 * found.half)


def test_the_same_runs_give_the_same_pictures(studied: Study, tmp_path: Path) -> None:
    for name in ("one.svg", "other.svg"):
        plots.draw_curves(studied, tmp_path / f"curves-{name}", "bytes", EXCESS, log_x=True)
        plots.draw_bytes(studied, tmp_path / f"bytes-{name}")
    for kind in ("curves", "bytes"):
        assert (tmp_path / f"{kind}-one.svg").read_bytes() == (tmp_path / f"{kind}-other.svg").read_bytes()


def test_a_picture_needs_matplotlib(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = cli("report", runs / "sgd-0", "--export", "paper")
    assert (status, err) == (2, "error: drawing SVG needs matplotlib: pip install 'fedsim[plots]'\n")


def test_gallery(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short runs of each method, played once."""
    monkeypatch.setattr(gallery, "SEEDS", range(2))
    status, out, _ = cli("gallery", "pictures", "--rounds", 20)
    assert status == 0
    assert [line for line in out.splitlines() if line.endswith("svg")] == [
        f"pictures/{name}" for name in gallery.PICTURES
    ]
    before = {path: path.read_bytes() for path in Path("pictures").glob("*.svg")}
    ledgers = {path: path.stat().st_mtime_ns for path in Path("pictures").rglob("ledger.csv")}
    assert len(ledgers) == 10
    assert cli("gallery", "pictures", "--rounds", 20)[0] == 0
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree("pictures/runs/sgd-seed-1")
    assert cli("gallery", "pictures", "--rounds", 20)[0] == 0
    assert {path: path.read_bytes() for path in before} == before


def test_the_committed_pictures_are_those_of_the_gallery() -> None:
    folder = Path(gallery.__file__).parent / "pictures"
    assert {path.name for path in folder.iterdir()} == set(gallery.PICTURES)
    assert all(path.stat().st_size < 200_000 for path in folder.iterdir())


def watching(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsim.cli.main", "watch", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_watch_ends_with_the_run(runs: Path) -> None:
    with watching(runs / "sgd-0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert b"<title>sgd-0</title>" in urllib.request.urlopen(address).read()
        urllib.request.urlopen(f"{address}data.json").read()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == f"ended; `fedsim report {runs / 'sgd-0'}` writes a page to keep\n"


def test_watch_stops_on_ctrl_c(runs: Path) -> None:
    with watching(runs / "sgd-0") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "no longer watched; the run goes on\n", "")


def test_watch_refuses_what_is_no_run(cli: Cli) -> None:
    status, out, err = cli("watch", "nowhere")
    assert (status, out) == (2, "")
    assert err.startswith("error: nowhere is not a run folder")


def test_watch_opens_a_browser(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("fedsim.reporting.live.wait", lambda watched, linger: None)
    status, out, _ = cli("watch", runs / "sgd-0", "--open")
    assert status == 0
    assert opened == [out.split()[0]]
