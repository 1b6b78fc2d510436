"""run.compute: what it refuses, and that bfloat16 is close, repeatable and part of what a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim import Experiment
from fedsim.errors import ConfigError
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.setup import prepare
from fedsim.solvers import solve
from tests.conftest import Refused

TANH = {"kind": "module", "factory": "tests.unit.test_executors:tanh"}


def of(compute: str, **tables: Any) -> Experiment:
    tables["run"] = {"compute": compute, **tables.get("run", {})}
    base = {"partition": {"scheme": "dirichlet", "clients": 6}, "participation": {"scheme": "full"}, "rounds": 3}
    return Experiment.of(**{**base, "server": {"step": 0.1}, "local": {"step": 0.1}, "task": TANH, **tables})


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({"run": {"precision": "float64"}}, ["run.compute = 'bfloat16'", "run.precision = 'float64'"]),
        ({"task": {"kind": "softmax"}}, ["run.compute = 'bfloat16'", "'softmax'", "a formula here"]),
        ({"task": {"kind": "mlp"}}, ["run.compute = 'bfloat16'", "'mlp'", "drop run.compute"]),
        ({"run": {"compute": "float16"}}, ["run.compute = 'float16'"]),
    ],
    ids=str,
)
def test_what_is_refused(tables: dict[str, Any], parts: list[str], refused: Refused) -> None:
    with refused(ConfigError, *parts):
        prepare(of("bfloat16", **tables))


@pytest.mark.parametrize("direction", ["gradient", "momentum"])
@pytest.mark.parametrize("send", ["direction", "difference"])
def test_bfloat16_is_near_float32(send: str, direction: str) -> None:
    """An epoch of a client: within 2 percent of its norm, 5 units of bfloat16 (2^-8), and not nearer than 2^-14."""
    found = []
    for compute in ("float32", "bfloat16", "bfloat16"):
        local = {"epochs": 1, "batch": 10, "order": "reshuffle", "step": 0.05, "send": send}
        setup = prepare(of(compute, local=local, direction={"kind": direction}))
        ids, model = torch.arange(6), setup.task.initial(0)
        stream = Stream(0, Purpose.BATCH, 0)
        found.append(solve(setup.task, setup.federation, model.expand(6, -1), ids, setup.plan, stream))
    full, half, again = found
    gaps = (half.direction - full.direction).norm(dim=1) / full.direction.norm(dim=1)
    assert half.direction.dtype == torch.float32
    assert torch.isfinite(half.direction).all()
    assert float(gaps.max()) < 0.02
    assert float(gaps.min()) > 2**-14
    torch.testing.assert_close(half.losses, full.losses, rtol=0.01, atol=0)
    assert torch.equal(half.direction, again.direction)
    assert torch.equal(half.losses, again.losses)


def test_a_run_says_what_it_computed_in(tmp_path: Path) -> None:
    one, other = of("float32"), of("bfloat16")
    assert one.identifier() != other.identifier()
    first, again = fedsim.run(other, tmp_path / "run"), fedsim.run(other)
    assert first.digest == again.digest != fedsim.run(one).digest
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["compute"] == "bfloat16"
