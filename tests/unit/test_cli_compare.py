"""``fedsim compare``: what it finds equal, what not, and what it cannot read."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import CheckpointError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry, read_totals
from fedsim.simulation.run import run
from fedsim.simulation.sidebyside import differing, read_account, read_bytes, unequal_line
from tests.conftest import Command, Refused

TINY: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": 4, "per_client": 10},
    "rounds": 3,
    "run": {"evaluate_every": 1},
}


def tiny(**changes: Any) -> Experiment:
    return Experiment.of(**{**TINY, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the same with every message made, and one with finer messages."""
    place = tmp_path_factory.mktemp("runs")
    run(tiny(), place / "counted")
    run(tiny(run={"evaluate_every": 1, "wire": "real"}), place / "real")
    run(tiny(uplink={"levels": 4}), place / "finer")
    return place


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the runs, in the current directory."""
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def compare(place: Path, command: Command) -> Command:
    return partial(command, "compare")


def row(out: str, name: str) -> list[str]:
    """The columns of one line of the table."""
    (line,) = [line for line in out.splitlines() if line.startswith(name + "  ")]
    return line.removeprefix(name).replace(",", "").split()


def test_equal_runs(compare: Command) -> None:
    status, out, err = compare("counted", "real")
    assert (status, err) == (0, "")
    assert out.splitlines()[-3:] == [
        "the same experiment, run differently; the keys that differ: run.wire",
        "models: equal to the bit",
        "ledgers: equal to the byte",
    ]
    digest = read_account(Path("counted")).model[:16]
    assert row(out, "model SHA-256") == [digest, digest]
    total = read_totals(Path("counted/ledger.csv"))[Direction.UP, Entry.UPLOAD]
    assert row(out, "up upload: payload bytes") == [str(total.payload_bits // 8)] * 2 + ["1.000"]
    assert row(out, "up upload: frame bytes") == [str(total.frame_bytes)] * 2 + ["1.000"]


def test_itself(compare: Command) -> None:
    status, out, _ = compare("real", "real")
    assert status == 0
    assert "experiment, run differently" not in out


def test_different_runs(compare: Command) -> None:
    status, out, _ = compare("counted", "finer")
    assert status == 1
    said = out.splitlines()[-3:]
    assert said[:2] == ["different experiments; the keys that differ: uplink.levels", "models: different"]
    assert re.fullmatch(r"ledgers: different, first in line \d+ of ledger.csv", said[2])
    one, other, times = row(out, "up upload: payload bytes")
    assert float(times) == pytest.approx(int(other) / int(one), abs=5e-4)
    assert int(other) > int(one)


def test_one_byte_of_a_ledger(compare: Command, place: Path) -> None:
    ledger = place / "real" / "ledger.csv"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("\n", "0\n")
    ledger.write_text("".join(lines))
    status, out, _ = compare("counted", "real")
    assert (status, out.splitlines()[-1]) == (1, "ledgers: different, first in line 5 of ledger.csv")


def test_an_unfinished_run(compare: Command, place: Path) -> None:
    manifest = place / "real" / "manifest.json"
    manifest.write_text(re.sub(r',\s*"model_sha256": "\w+"', "", manifest.read_text()).replace("finished", "running"))
    status, out, _ = compare("counted", "real")
    assert status == 1
    assert out.splitlines()[-2:] == [
        "models: real is not finished; `fedsim resume real` goes on with it",
        "ledgers: equal to the byte",
    ]
    assert row(out, "status") == ["finished", "running"]


def test_messages_and_sockets_where_they_were_counted(compare: Command, place: Path) -> None:
    (place / "real" / "messages.csv").write_text(
        "round,direction,node,clients,frames,frame_bytes,message_bytes\n"
        "0,down,7,4,4,100,500\n0,up,7,4,4,90,410\n1,up,7,4,4,90,400\n1,up,7,4"
    )
    (place / "real" / "sockets.csv").write_text("direction,bytes\nup,2000\ndown,3000\nup,1\n")
    status, out, _ = compare("counted", "real")
    assert status == 0
    assert row(out, "up: Flower message bytes") == ["-", "810"]
    assert row(out, "down: Flower message bytes") == ["-", "500"]
    assert row(out, "up: socket bytes") == ["-", "2001"]
    status, out, _ = compare("real", "real")
    assert row(out, "down: socket bytes") == ["3000", "3000", "1.000"]


def test_names_are_printed_as_they_are(compare: Command, place: Path) -> None:
    (place / "real").rename(place / "[red]:dog:")
    status, out, _ = compare("counted", "[red]:dog:")
    assert (status, "[red]:dog:" in out.splitlines()[1]) == (0, True)


def test_what_cannot_be_compared(compare: Command, place: Path) -> None:
    """One line, exit status 2."""
    (place / "empty").mkdir()
    assert compare("counted", "nowhere")[0] == 2
    assert compare("empty", "counted") == (
        *(2, ""),
        "error: empty is not a run folder (no experiment.toml), nor is there one below; `fedsim run` makes one\n",
    )
    assert compare()[::2] == (2, "error: Missing argument 'RUN...'; see `fedsim compare --help`\n")
    assert compare("counted")[::2] == (
        *(2, "error: counted is one run; give another to compare it with, or a folder of runs\n"),
    )
    (place / "finer" / "ledger.csv").unlink()
    assert compare("counted", "finer")[2] == (
        "error: finer has no ledger.csv; `fedsim resume finer` runs it from its first round\n"
    )
    (place / "real" / "manifest.json").write_text("{")
    assert compare("counted", "real")[2].startswith("error: real/manifest.json: unreadable manifest (")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("direction,bytes\nup,1\nsideways,2\n", 3),
        ("direction,bytes\nup,-1\n", 2),
        ("direction,bytes\nup,1.5\n", 2),
        ("direction,bytes\nup\n", 2),
        ("way,bytes\nup,1\n", 2),
        ("direction,octets\nup,1\n", 2),
    ],
)
def test_counts_that_are_none(tmp_path: Path, refused: Refused, text: str, line: int) -> None:
    path = tmp_path / "sockets.csv"
    path.write_text(text)
    with refused(CheckpointError, f"{path}:{line}: expected a direction (up or down) and whole bytes", "or delete it"):
        read_bytes(path, "bytes")


def test_counts_of_nothing(tmp_path: Path) -> None:
    assert read_bytes(tmp_path / "sockets.csv", "bytes") == {}
    (tmp_path / "sockets.csv").write_text("")
    assert read_bytes(tmp_path / "sockets.csv", "bytes") == {}


def test_totals_of_a_direction(runs: Path) -> None:
    account = read_account(runs / "counted")
    down = [account.totals[Direction.DOWN, kind] for kind in (Entry.MODEL, Entry.UPDATES)]
    assert account.frames(Direction.DOWN) == sum(down, Cost())


def test_differing_keys() -> None:
    assert differing(tiny(), tiny()) == []
    assert differing(tiny(), tiny(seed=3, uplink={"levels": 2})) == ["seed", "uplink.levels"]
    assert {"uplink.compressor", "uplink.levels"} <= set(differing(tiny(), tiny(uplink={"compressor": "identity"})))


def test_unequal_lines(tmp_path: Path) -> None:
    for name, content in (("a", b"1\n2\n3\n"), ("b", b"1\n2\n3"), ("c", b"1\n2\n"), ("d", b"1\nx\n3\n"), ("e", b"")):
        (tmp_path / name).write_bytes(content)
    found = {name: unequal_line(tmp_path / "a", tmp_path / name) for name in "abcde"}
    assert found == {"a": None, "b": 3, "c": 3, "d": 2, "e": 1}
