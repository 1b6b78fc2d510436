"""Every decoder and reader under 220 000 damaged inputs; the same in every run. ``python -m tests.fuzz`` has more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.errors import WireError
from fedsim.wire import coding, levels
from tests.fuzz.__main__ import shares
from tests.fuzz.drive import SLOW, Case, Target, drive
from tests.fuzz.targets import TARGETS
from tests.fuzz.wire import LAYOUTS

INPUTS = shares(list(TARGETS.values()), 220_000)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A machine tells its log of every client in trouble."""
    caplog.set_level("CRITICAL", "fedsim")


@pytest.mark.parametrize("name", TARGETS)
def test_only_the_documented_error_comes_out(name: str) -> None:
    tally = drive(TARGETS[name], INPUTS[name], seed=1)
    assert not tally.crashes, "\n".join(f"{data!r}\n{what}" for data, what in tally.crashes.values())
    assert tally.inputs >= INPUTS[name]
    assert 0 < tally.accepted < tally.inputs


def test_there_are_enough() -> None:
    assert sum(INPUTS.values()) >= 200_000


def test_every_code_has_a_target() -> None:
    assert {type(layout) for layout in LAYOUTS.values()} == set(coding.CODES)


def test_the_same_seed_gives_the_same_inputs() -> None:
    seen: list[list[bytes]] = [[], []]
    for inputs in seen:
        case = Case([bytes(range(40)), bytes(range(40, 80))], inputs.append, (), [b"word"], 50)
        drive(Target("", lambda case=case: case), 5000, seed=3)  # type: ignore[misc]
    distinct = [list(dict.fromkeys(inputs)) for inputs in seen]  # one that seemed slow is given again
    assert distinct[0] == distinct[1]
    assert len(distinct[0]) > 1500
    assert max(map(len, seen[0])) <= 50


def test_a_message_that_is_not_canonical_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder without its last comparison accepts what is not the encoding of any row."""
    monkeypatch.setattr(levels, "_canonical", lambda *_: True)
    for name in ("ternary", "buckets"):
        assert drive(TARGETS[f"code, {name}"], 500, seed=1).crashes


def test_other_errors_long_lines_and_slow_inputs_would_be_found() -> None:
    def check(data: bytes) -> None:
        if len(data) > 8:
            raise WireError("two\nlines")
        if data[:1] == b"x":
            raise KeyError(data)
        if data == b"abcdefgh":
            time.sleep(1.5 * SLOW)

    tally = drive(Target("", lambda: Case([b"xyz", b"abcdefgh"], check, (WireError,))), 500, seed=1)
    line, other = (what.splitlines()[-2 if "two" in what else -1] for _, what in sorted(tally.crashes.values())[::-1])
    assert line.startswith("KeyError: ")
    assert other.startswith("AssertionError: a refusal of several lines")
    assert {data for data, _ in tally.slow} == {b"abcdefgh"}


@pytest.mark.slow
def test_compiled_code_reads_within_its_arrays(tmp_path: Path) -> None:
    """numba checks every index here; without a cache of its own it would take machine code that does not."""
    names = [name for name, target in TARGETS.items() if target.case.rows is not None]
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "1000000", "--out", str(tmp_path / "out"), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_guided_by_lines(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs atheris; pip install -e '.[fuzz]'")
    command = [sys.executable, "-m", "tests.fuzz", "--guided", "5", "--inputs", "1000", "--out", str(tmp_path)]
    done = subprocess.run([*command, "frame", "code, buckets"], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "| frame, guided | " in done.stdout
    assert len(list((tmp_path / "code,-buckets").iterdir())) > len(TARGETS["code, buckets"].case.seeds)
