"""Thousands of rounds of 50 clients: memory stays, no file or process is left.

``pytest -m slow tests/flower/test_soak.py -s`` prints what was held; some forty minutes on a quiet machine.

Beside the process that plays the rounds, the worker that computes for the clients is watched where there is one. What
grows by design: the bits of every model update so far (16 bytes a round), and one entry an evaluation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedsim.experiment import Experiment
from tests.flower.federation import QUIET, ROOT
from tests.flower.soak import last_round, sample, slope, soak
from tests.flower.workers import workers

CLIENTS, EVERY = 50, 500
LIMIT = 1.0
"""MB of resident memory per 1 000 rounds."""


def experiment(rounds: int, executor: str) -> Experiment:
    return Experiment.of(
        data={"source": "synthetic-linear", "clients": CLIENTS, "per_client": 4, "features": 4},
        rounds=rounds,
        run={"executor": executor, "evaluate_every": 100},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "rounds"), [("simulator", 20_000), ("flower-in-process", 20_000), ("flower-in-process, worker", 4_000)]
)
def test_a_long_run_holds_no_more(engine: str, rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The slope is of the line through the samples after the first tenth."""
    text, folder = tmp_path / "x.toml", tmp_path / "run"
    text.write_text(experiment(rounds, "auto" if engine == "simulator" else "sequential").toml())
    home = {"FLWR_HOME": str(tmp_path / "flwr"), "PYTHONPATH": str(ROOT)}
    environment, program = os.environ | QUIET | home, [sys.executable, "-m"]
    if engine == "simulator":
        command, others = [*program, "fedsim.cli.main", "run", str(text), "--folder", str(folder)], dict[str, int]()
        found = soak(command, environment, folder / "ledger.csv", EVERY, others)
    else:
        command = [*program, "server.inprocess", str(text), str(folder)]
        with workers(int("worker" in engine)) as helping:
            command += [word for address in helping.addresses for word in ("--worker", address)]
            others = {f"worker {i}": helping.pids[i] for i in range(helping.count)}
            found = soak(command, environment, folder / "ledger.csv", EVERY, others)
    assert found.status == 0, folder.with_suffix(".log").read_text()
    for name, samples in found.samples.items():
        kept = [one for one in samples if one.round >= rounds // 10]
        rise, files = slope(kept), [one.files for one in kept]
        with capsys.disabled():
            print(f"\n{engine}, {name}: {rounds} rounds of {CLIENTS} clients in {found.seconds:.0f} s;", end=" ")
            print(f"{kept[0].resident:.1f} to {kept[-1].resident:.1f} MB, {rise:.3f} MB per 1 000 rounds;", end=" ")
            print(f"{min(files)} to {max(files)} files, {max(one.children for one in kept)} children", end="")
        assert rise < LIMIT
        assert max(files) - min(files) <= 3, "files that are open for a moment"
        assert min(files[len(files) // 2 :]) == min(files), "none is left open"
        assert max(one.children for one in kept) == 0


def test_what_a_soak_sees(tmp_path: Path) -> None:
    """A process that takes 4 MB, a file and a child every 100 rounds is seen to."""
    ledger, code = tmp_path / "run" / "ledger.csv", tmp_path / "leak.py"
    ledger.parent.mkdir()
    code.write_text(
        f"""
import subprocess, sys, time
kept = []
for i in range(1, 11):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept += [b"x" * 4_000_000, child]
    with open({str(ledger)!r}, "a") as file:
        file.write(("round,client\\n" if i == 1 else "") + f"{{100 * i}},0\\n")
    time.sleep(0.4)
"""
    )
    found = soak([sys.executable, str(code)], os.environ, ledger, 100, {"this": os.getpid()})
    samples = found.samples["server"]
    assert found.status == 0
    assert [one.round for one in samples] == list(range(100, 1001, 100))
    assert [one.children for one in samples] == list(range(1, 11))
    assert samples[-1].files - samples[0].files == 9
    assert slope(samples) == pytest.approx(40, rel=0.2)
    assert last_round(ledger) == 1000
    assert last_round(ledger.with_name("none")) == -1


def test_a_sample_of_this_process() -> None:
    with open(os.devnull):
        one = sample(os.getpid(), 7)
    another = sample(os.getpid(), 8)
    assert (one.round, one.files - another.files) == (7, 1)
    assert one.resident == pytest.approx(another.resident, rel=0.1)
