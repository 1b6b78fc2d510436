"""kill -9 to SuperNodes with their workers, and to the SuperLink: what Flower's own processes make of it.

Three of each on loopback: ``pytest -m slow tests/flower/test_kills_deployed.py -s``.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.ends.store import Store
from fedsim.experiment import Experiment
from tests.faults.conftest import Fedsim
from tests.flower.deployed import Deployment, deployment, instants_of, watched
from tests.flower.driven import experiment, grid_of, play, rows
from tests.flower.test_kills import absences, assert_same, without
from tests.flower.workers import known

MACHINES, CLIENTS = 3, 6
SMALL: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": CLIENTS, "per_client": 20, "features": 20},
    "participation": {"scheme": "bernoulli", "p": 0.5},
}


def assert_unforgotten(machines: Deployment, given: Experiment, folder: Path) -> None:
    """Every client that was called has on disk what the server knows of it, to the bit."""
    for client in range(CLIENTS):
        kept = machines.federation.folder / f"clients-{client % MACHINES}"
        standing = Store(kept, given.identifier(), client).load(torch.device("cpu"))
        assert standing is not None
        assert standing.sender.pending is not None
        end, held = standing.sender.pending
        assert known(folder, client).same(end, held.rows.memory), client


@pytest.mark.slow
def test_machines_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Back at once, after ten seconds, and only when the round has ended without it."""
    given, folder = experiment({**SMALL, "rounds": 12, "seed": 5}), tmp_path / "deployed"
    draw, said = random.Random(7), list[str]()
    with deployment(tmp_path / "f", machines=MACHINES) as machines, watched(folder / "ledger.csv") as instants:
        number = machines.submit(given, folder)
        for machine, away in zip(draw.sample(range(MACHINES), MACHINES), (0.0, 10.0, 100.0), strict=True):
            # In the middle of a round in which one of its clients is called.
            round = next(t for t in range(max(1, len(instants) + 1), 12) if called(given, t, machine))
            instants_of(instants, round, seconds=480)
            time.sleep(draw.uniform(0.0, 4.0))
            machines.kill(machine)
            killed = time.time()
            while len(instants) <= round and time.time() < killed + away:
                time.sleep(0.1)
            back = time.time()
            machines.start(machine)
            instants_of(instants, round + 1, seconds=480)
            said.append(
                f"back after {back - killed:.1f} s: the round lasted {instants[round] - instants[round - 1]:.1f} s"
            )
        machines.federation.wait(number).completed()
        assert_unforgotten(machines, given, folder)
    undisturbed = sorted(b - a for a, b in pairwise(instants))[: len(instants) // 2]
    expected = tmp_path / "expected"
    play(grid_of(given, expected, MACHINES, without(absences(folder))), given, expected)
    assert_same(folder, expected)
    with capsys.disabled():
        print(f"\n3 of 3 machines killed came back, {len(absences(folder))} replies lost; other rounds", end=" ")
        print(f"{undisturbed[len(undisturbed) // 2]:.1f} s; {'; '.join(said)}")


def called(given: Experiment, round: int, machine: int) -> bool:
    from fedsim.ends.host import alone

    return any(client % MACHINES == machine for client in alone(given).cohort(round).clients.tolist())


@pytest.mark.slow
def test_superlink_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its database, and started again; ``fedsim resume`` goes on with the next round, bitwise."""
    given, folder, text = experiment({**SMALL, "rounds": 7, "seed": 6}), tmp_path / "deployed", tmp_path / "x.toml"
    text.write_text(given.toml())
    draw, said = random.Random(8), list[str]()
    with deployment(tmp_path / "f", machines=MACHINES, database=True) as machines:
        link = machines.federation

        def fedsim(*words: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "fedsim.cli.main", *map(str, words)]
            return subprocess.Popen(
                command, env=link.environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        process = fedsim("run", text, "--engine", "flower", "--superlink", "here", "--folder", folder)
        with watched(folder / "ledger.csv") as instants:
            for round in (1, 3, 5):
                instants_of(instants, round, seconds=480)
                time.sleep(draw.uniform(0.0, 4.0))
                complete, killed = len(instants), time.time()
                link.link.kill()
                if round == 3:  # the command may not notice that it was gone, only that the run has failed
                    link.start_link()
                out, _ = process.communicate(timeout=240)
                assert (process.returncode, "`fedsim resume deployed` goes on" in out) == (2, True), out
                if round != 3:
                    link.start_link()
                up = time.time()
                process = fedsim("resume", folder)
                instants_of(instants, complete + 1, seconds=480)
                said.append(f"up again after {up - killed:.1f} s, next round {instants[complete] - up:.1f} s later")
            out, _ = process.communicate(timeout=480)
        assert process.returncode == 0, out
        assert_unforgotten(machines, given, folder)
    expected = tmp_path / "expected"
    play(grid_of(given, expected, MACHINES), given, expected)
    assert Fedsim.outcome(folder) == Fedsim.outcome(expected)
    assert rows(folder / "incidents.csv") == []
    with capsys.disabled():
        print(f"\n3 of 3 killed SuperLinks: the resumed run is bitwise the undisturbed one; {'; '.join(said)}")
