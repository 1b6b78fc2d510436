"""The table of orders, rules and directions."""

from __future__ import annotations

import math

import pytest

from fedsim.simulation.setup import prepare
from fedsim.solvers.rate import Harmonic
from fedsim.tasks.layer import packed
from tests.replication import solvers
from tests.replication.solvers import ORDERS, RULES, STEPS, Row


@pytest.fixture(scope="module")
def few() -> list[Row]:
    """The table after two rounds."""
    return list(solvers.rows(rounds=2))


def test_every_combination_has_a_row_of_finite_numbers(few: list[Row]) -> None:
    assert len({(row.direction, row.rule, row.order) for row in few}) == len(few) == 24
    assert len({row.loss for row in few}) == 24
    for row in few:
        assert math.isfinite(row.loss)
        assert math.isfinite(row.excess)
        assert 0 < row.accuracy <= 1
        assert row.wire > row.payload / 8 > 0


def test_whitened_rows_pay_for_their_moments(few: list[Row]) -> None:
    """Each of 20 clients uploads the moments once and receives the pooled ones: the triangle of 65 x 65, in float32."""
    setup = prepare(solvers.experiment("reshuffle", "constant", "whitened"))
    assert packed(setup.whitened) == 65 * 66 // 2
    for row in few:
        assert row.moments == (2 * 20 * 32 * packed(setup.whitened) if row.direction == "whitened" else 0)
        assert row.payload > row.moments


def test_orders_take_the_same_gradients_and_only_probes_take_more(few: list[Row]) -> None:
    """SALR measures at every other step, with 12 gradients of its batch."""
    samples = prepare(solvers.experiment("reshuffle", "constant", "gradient")).federation.sizes.sum()
    for row in few:
        if row.rule != "salr":
            assert row.gradients == 2 * int(samples)
        else:
            assert row.gradients > 6 * 2 * int(samples)
    for direction in STEPS:
        assert len({row.gradients for row in few if row.rule == "salr" and row.direction == direction}) == 1


def test_the_harmonic_rule_begins_with_the_same_step() -> None:
    """1 / mu = local.step: from there on it only shrinks, alike in both directions."""
    for direction in STEPS:
        plan = prepare(solvers.experiment("reshuffle", "harmonic", direction)).plan
        assert isinstance(plan.rate, Harmonic)
        assert plan.rate.mu * plan.step == pytest.approx(1, rel=1e-12)
        assert plan.rate.factor == solvers.DECAY


@pytest.mark.slow
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert solvers.table(rounds=2) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(ORDERS) * len(RULES) * len(STEPS)
