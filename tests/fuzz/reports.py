"""Targets that read sweeps, and run folders as comparisons and reports do."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from fedsim.errors import CheckpointError, ConfigError
from fedsim.experiment import Experiment
from fedsim.reporting.runs import AXES, read_run
from fedsim.simulation.run import run
from fedsim.sweep.grid import read_sweep
from tests.fuzz.drive import Case, Target
from tests.fuzz.files import written


def _sweep(data: bytes) -> None:
    """The runs of a sweep have names and titles of their own."""
    points = read_sweep(written("sweep.toml", data))
    assert len({point.name for point in points}) == len({point.title for point in points}) == len(points)


_SWEEPS = [
    b'seeds = 2\n[base]\nrounds = 3\n[grid]\nalgorithm = ["sgd", "artemis"]\n"server.step" = ["1/L", 0.5]\n',
    b'seeds = [3, 1]\n[grid]\nuplink.levels = [1, 4]\n[[variants]]\nalgorithm = "diana"\n[[variants]]\nrounds = 7\n',
    b'[grid]\nparticipation = [{scheme = "full"}, {scheme = "bernoulli", p = 0.5}]\n',
    b'base = "sweep.toml"\n',
]
_WORDS = [
    b"[grid]\n",
    b"[[variants]]\n",
    b"seeds = ",
    b"[1, 4]",
    b"[]",
    b"[base]\n",
    b'"a.b"',
    b" = ",
    b"9" * 30,
    b"{",
    b"}",
]


@cache
def _whole() -> Path:
    """A finished run."""
    folder = written("runs/none", b"").with_name("whole")
    if not folder.exists():
        data = {"source": "synthetic-linear", "clients": 3, "per_client": 4}
        run(Experiment.of(data=data, rounds=2, run={"evaluate_every": 1}), folder)
        shutil.rmtree(folder / "checkpoint")
    return folder


def _metrics(data: bytes) -> None:
    """What is read has as many values as lines, on every axis."""
    folder = _whole()
    (folder / "metrics.jsonl").write_bytes(data)
    found = read_run(folder)
    for axis in AXES:
        assert found.axis(axis).shape == found.values("loss").shape == (len(found.metrics),)


_LINES = [
    b'{"round": 0, "loss": 2.5, "up_bytes": 0, "down_bytes": 3}\n{"round": 1, "loss": 1e-3, "payload_bits": 8}\n',
    b'{"round": 2, "loss": null, "formula_bits": "many", "gradients": true}\n',
    b'{"round": 1, "loss": ' + b"9" * 1000 + b"}\n",
    b"[" * 2000 + b"\n",
]
_JSON = [b"NaN", b"Infinity", b"1e999", b"null", b"{", b"[", b'"round":', b'"loss":', b'"up_bytes":', b"9" * 400, b"\n"]

TARGETS = [
    Target("sweep", lambda: Case(_SWEEPS, _sweep, (ConfigError,), _WORDS, 2500), 0.1),
    Target("metrics of a run", lambda: Case(_LINES, _metrics, (CheckpointError,), _JSON, 2500), 0.2),
]
