"""SALR's table: its arms, its differences and its control."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from fedsim.solvers import Here, Notes
from fedsim.solvers.rate import Salr
from fedsim.tasks import Softmax
from fedsim.tasks.task import Batch
from tests.replication import salr
from tests.replication.salr import BASE, COSTLY, OWN_BASE, OWN_NORM, OWN_SALR, SALR, Case, GradientNorm

TINY = Case("digits", {"source": "digits"}, hidden=8, rounds=2)


def test_an_interval_is_students() -> None:
    values = [0.3, -1.2, 2.5, 0.9, 0.1]
    known = ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = salr.interval(values)
    assert (mean - half, mean + half) == pytest.approx((known.low, known.high), rel=1e-12)


def heres() -> list[Here]:
    """Batches of a convex task at one model."""
    task = Softmax().build((4,), 3, torch.float64, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    model = torch.randn((1, task.dim), generator=random, dtype=torch.float64)

    def batch(scale: float) -> Tensor:
        return scale * torch.randn((1, 6, 4), generator=random, dtype=torch.float64)

    targets, weights = torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.full((1, 6), 1 / 6, dtype=torch.float64)
    return [Here(task, model, Batch(batch(scale), targets, weights)) for scale in (1.0, 0.1, 9.0, 0.7, 2.0, 0.3)]


def test_the_control_is_what_salr_measures_with_a_short_probe() -> None:
    """S = 2 n gamma ||g|| + O(gamma^3), so the factors agree; they differ from batch to batch."""
    short, control = Salr(probe=1e-4, period=1, cap=2.0), GradientNorm(period=1, cap=2.0)
    notes: Notes = {}
    others: Notes = {}
    seen = []
    for k, here in enumerate(heres()):
        expected, notes, _ = short.step(k, 0.5, here, notes)
        found, others, cost = control.step(k, 0.5, here, others)
        assert found == pytest.approx(expected, rel=1e-4)
        assert cost == 6
        seen.append(found)
    assert seen[0] == 0.5
    assert max(seen) == 1.0, "the cap is reached"
    assert len(set(seen)) == len(seen)


def test_the_control_measures_every_other_step() -> None:
    control, steps, costs = GradientNorm(period=2, cap=5.0), [], []
    notes: Notes = {}
    for k, here in enumerate(heres()):
        eta, notes, cost = control.step(k, 0.5, here, notes)
        steps.append(eta)
        costs.append(cost)
    assert costs == [6, 0, 6, 0, 6, 0]
    assert steps[0::2] == steps[1::2]
    assert len(notes["history"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("wire", salr.WIRES)
def test_the_arms_differ_in_what_they_should(wire: str) -> None:
    found = salr.arms(TINY, wire, 0.2, 0.1, 0)
    assert set(found) == {BASE, COSTLY, SALR, OWN_BASE, OWN_SALR, OWN_NORM}
    base, probed, control = found[BASE], found[OWN_SALR], found[OWN_NORM]
    assert all(math.isfinite(value) for arm in found.values() for value in astuple(arm))
    assert all(arm.sharpness >= 0 for arm in found.values())
    # At the same batches: 12 gradients of the batch for SALR, 1 for the control.
    assert probed.gradients - base.gradients == pytest.approx(12 * (control.gradients - base.gradients))
    assert found[COSTLY].gradients == pytest.approx(probed.gradients, abs=base.gradients / TINY.rounds / 2 + 1e-9)
    assert found[COSTLY].bytes > base.bytes
    if wire == "exact":  # artemis sends the whole model once, then updates
        assert found[COSTLY].bytes / base.bytes == pytest.approx(found[COSTLY].gradients / base.gradients)
    assert found[SALR].gradients == probed.gradients
    assert found[OWN_BASE].gradients == base.gradients
    for arm in (SALR, OWN_BASE, OWN_SALR, OWN_NORM):
        assert found[arm].bytes == pytest.approx(base.bytes, rel=0.1)
        assert found[arm].loss != base.loss


@pytest.mark.slow
def test_the_table_has_every_arm_and_every_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert salr.table([TINY], seeds=(0, 1), grid=(0.1, 0.2)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(salr.WIRES) * (2 + 6 + 6)
    assert not any("nan" in line for line in printed)
