"""The table of loss against bytes: what a front is, that every trial can be played, and a small table of digits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim import Experiment
from fedsim.algorithms.recipes import RECIPES
from fedsim.simulation.setup import prepare
from tests.replication import pareto
from tests.replication.pareto import Curve, Point, Trial

DIGITS = pareto.problems(Path())["digits"]


def curve(name: str, *points: tuple[int, float]) -> Curve:
    """A made-up curve of (bytes, excess)."""
    trial = Trial(name, "as it is", 1, Experiment())
    return Curve(trial, tuple(Point(i, 0, octets, excess) for i, (octets, excess) in enumerate(points)))


def test_the_front_holds_what_nothing_beats() -> None:
    """Equal bytes: the smaller excess; equal excess: the fewer bytes; a curve may come back after another."""
    some = [curve("a", (10, 1.0), (20, 0.5), (90, 0.1)), curve("b", (10, 0.9), (30, 0.5), (50, 0.2))]
    found = [(trial.recipe, point.bytes, point.excess) for point, trial in pareto.front(some)]
    assert found == [("b", 10, 0.9), ("a", 20, 0.5), ("b", 50, 0.2), ("a", 90, 0.1)]


def test_the_best_way_to_a_target_is_the_cheapest_that_reaches_it() -> None:
    some = [curve("a", (10, 1.0), (40, 0.4)), curve("b", (10, 1.0), (30, 0.5)), curve("c", (5, 2.0))]
    found = pareto.best(some, 0.5)
    assert found is not None
    assert (found[1].recipe, found[0].bytes) == ("b", 30)
    assert pareto.best(some, 0.3) is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_setting_is_refused(recipe: str) -> None:
    """At a recipe's own step: feedback "step" grows with it, and does not bear the longest."""
    settings = set()
    for trial in pareto.trials(replace(DIGITS, multiples=(1,)), [recipe]):
        prepare(trial.experiment).close()
        settings.add(trial.setting)
    assert settings == {"as it is", *pareto.VARIANTS.get(recipe, {})}


def test_a_small_table_of_digits(tmp_path: Path) -> None:
    """Compression both ways reaches the first target with fewer bytes than none; the file holds every point."""
    problem = replace(DIGITS, targets=(1.0,), multiples=(9,))
    some = pareto.curves(problem, 1, ["sgd", "artemis"])
    plain, compressed = (pareto.best([one for one in some if one.trial.recipe == it], 1.0) for it in ("sgd", "artemis"))
    assert plain is not None
    assert compressed is not None
    assert 3 * compressed[0].bytes < plain[0].bytes
    text = list(pareto.lines(problem, some))
    assert text[2].startswith("artemis")
    assert "*" in text[2]
    pareto.write(tmp_path / "points.csv", {"digits": some})
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(one.points) for one in some)
    assert sum(int(row["front"]) for row in rows) == len(pareto.front(some))


@pytest.mark.slow
def test_every_recipe_on_digits() -> None:
    """The last target costs a fifth of the bytes of sgd in its best step, the clients' first models included."""
    some = pareto.curves(DIGITS, 2)
    plain = pareto.best([one for one in some if one.trial.recipe == "sgd"], DIGITS.targets[-1])
    cheapest = pareto.best(some, DIGITS.targets[-1])
    assert plain is not None
    assert cheapest is not None
    assert 5 * cheapest[0].bytes < plain[0].bytes
