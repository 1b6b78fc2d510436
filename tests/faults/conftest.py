"""Real ``fedsim`` processes, killed, interrupted or refused a write, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ZYGOTE = Path(__file__).with_name("zygote.py")
LOGS = ("model.safetensors", "ledger.csv", "metrics.jsonl")


@dataclass(frozen=True)
class Done:
    """How a process ended. status: its exit status, or minus the signal that killed it."""

    status: int
    out: str
    err: str
    seconds: float


@dataclass
class Fedsim:
    """``cli("run", ...)`` is a fresh process with that command line, forked from one that has imported everything."""

    process: subprocess.Popen[str]
    scratch: Path
    cwd: Path

    def __call__(self, *argv: object, **request: Any) -> Done:
        """request: signals, module, fault, as in zygote.py."""
        out, err = self.scratch / "out", self.scratch / "err"
        request |= {"argv": list(map(str, argv)), "cwd": str(self.cwd), "out": str(out), "err": str(err)}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Done(answer["status"], out.read_text(), err.read_text(), answer["seconds"])

    def run(self, experiment: Path, folder: Path, *options: object, **request: Any) -> Done:
        return self("run", experiment, "--folder", folder, *options, **request)

    def resume(self, folder: Path, **request: Any) -> Done:
        return self("resume", folder, **request)

    def steps(self, *argv: object, root: Path, **request: Any) -> list[str]:
        """The steps by which an undisturbed process changes the files under ``root``, such as "fsync ledger.csv"."""
        log = self.scratch / "steps"
        done = self(*argv, fault={"root": str(root), "log": str(log)}, **request)
        assert done.status == 0, done.err
        found: list[str] = json.loads(log.read_text())
        return found

    @staticmethod
    def outcome(folder: Path) -> dict[str, bytes]:
        """The bytes of a finished run that must not depend on what happened on the way; the baseline's too."""
        assert json.loads((folder / "manifest.json").read_bytes())["status"] == "finished"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert not [path for path in files if path.suffix == ".new"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name in LOGS}


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield process
    process.communicate()
    assert process.returncode == 0


@pytest.fixture(scope="session")
def cli(zygote: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Fedsim:
    scratch = tmp_path_factory.mktemp("processes")
    return Fedsim(zygote, scratch, scratch)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a moment that uses every part of the state: memories, errors, average, batches, absences."""
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(
        """
        algorithm = "artemis"
        seed = 3
        rounds = 3
        data = { source = "synthetic-linear", clients = 5, per_client = 20, features = 4 }
        participation = { scheme = "k-of-n", k = 3 }
        local = { steps = 2, batch = 4, step = 0.01 }
        uplink = { levels = 2, feedback = "step" }
        downlink = { feedback = "step" }
        server = { step = 0.02, average = true }
        run = { checkpoint_every = 1, evaluate_every = 1 }
        """
    )
    return path
