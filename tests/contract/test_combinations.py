"""Every combination of choices runs in every recipe, or is refused with the reason and the way out.

A choice is one line below: its name and what it sets in an experiment. Recipes and orders join by themselves; a new
rate rule, direction or whitening mode without a line fails ``test_no_choice_is_forgotten``. What is refused is said by
``REFUSALS`` and by nothing else: a combination runs exactly when no line of that table speaks of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, get_args

import pytest

import fedsim
from fedsim.algorithms.recipes import RECIPES
from fedsim.algorithms.whitening import Whitening
from fedsim.errors import ConfigError
from fedsim.experiment import TAGS, Experiment, overlay
from fedsim.ledger import Direction, Entry
from fedsim.simulation.run import Result
from fedsim.simulation.setup import prepare
from fedsim.solvers.direction import LocalDirection
from fedsim.solvers.order import FRESH, ORDERS
from fedsim.solvers.rate import RateRule


class Choice(NamedTuple):
    name: str
    tables: Mapping[str, Any]


class Refusal(NamedTuple):
    """says: in the message. of: whether a combination, kind of choice -> name, is refused for this reason."""

    says: str
    of: Callable[[Mapping[str, str]], bool]


OWN = "tests.plugins_example"

CHOICES: dict[str, list[Choice]] = {
    "recipe": [Choice(name, {"algorithm": name}) for name in RECIPES],
    "order": [Choice(name, {"local": {"order": name}}) for name in (FRESH, *ORDERS)],
    "rate": [
        Choice("constant", {"rate": {"rule": "constant"}}),
        Choice("harmonic", {"rate": {"rule": "harmonic", "mu": 60.0}}),
        Choice("salr", {"rate": {"rule": "salr", "descent": 1, "ascent": 1, "period": 2}}),
        Choice("salr at the server", {"rate": {"rule": "salr", "level": "server", "period": 1, "probe": 0.3}}),
        Choice("own", {"rate": {"rule": "own", "factory": f"{OWN}:Warmup", "options": {"steps": 3}}}),
    ],
    "direction": [
        Choice("gradient", {"direction": {"kind": "gradient"}}),
        Choice("momentum", {"direction": {"kind": "momentum", "reset": "never"}}),
        Choice("sam", {"direction": {"kind": "sam"}}),
        Choice("whitened", {"direction": {"kind": "whitened", "refresh": 2}}),
        Choice("own", {"direction": {"kind": "own", "factory": f"{OWN}:Clipped", "options": {"norm": 0.5}}}),
    ],
    "whitening": [
        Choice("off", {"whitening": {"mode": "off"}}),
        Choice("shared", {"whitening": {"mode": "shared", "refresh": 1}}),
        Choice("mixing", {"whitening": {"mode": "mixing"}}),
    ],
    "length": [
        Choice("one step", {"local": {"steps": 1, "epochs": 0}}),
        Choice("several steps", {"local": {"steps": 2, "epochs": 0}}),
        Choice("one epoch", {"local": {"steps": 1, "epochs": 1}}),
    ],
    "send": [
        Choice("direction", {"local": {"send": "direction"}}),
        Choice("difference", {"local": {"send": "difference"}}),
    ],
}

REFUSALS = [
    Refusal("needs an order with passes", lambda c: c["length"] == "one epoch" and c["order"] == FRESH),
    Refusal("would whiten twice", lambda c: c["whitening"] == "shared" and c["direction"] == "whitened"),
    Refusal("mixes what clients whiten", lambda c: c["whitening"] == "mixing" and c["direction"] != "whitened"),
    Refusal(
        "has no effect on a single local step",
        lambda c: c["rate"] in ("harmonic", "salr", "own") and c["length"] == "one step" and c["send"] == "direction",
    ),
    Refusal(
        "needs the server's step before the upload",
        lambda c: c["rate"] == "salr at the server" and c["recipe"] == "double-squeeze",
    ),
    Refusal("and so no pooled moments", lambda c: c["whitening"] != "off" and c["recipe"] == "rand-mcm"),
]

WORLD: dict[str, Any] = {
    "rounds": 2,
    "data": {"source": "synthetic-linear", "clients": 3, "per_client": 5, "features": 2},
    "local": {"batch": 2, "step": 0.02},
    "server": {"step": 0.05},
    "run": {"precision": "float64"},
}
KEYS = [f"{table}.{key}" for table, keys in Experiment().table().items() if isinstance(keys, dict) for key in keys]

Combination = Mapping[str, Choice]


def combinations(kinds: Sequence[str], **fixed: Choice) -> Iterator[Combination]:
    """The full product of the kinds named, each with the choices that are fixed."""
    for chosen in product(*(CHOICES[kind] for kind in kinds)):
        yield {**fixed, **dict(zip(kinds, chosen, strict=True))}


def experiment_of(combination: Combination) -> Experiment:
    tables = WORLD
    for choice in combination.values():
        tables = overlay(tables, dict(choice.tables))
    return Experiment.of(**tables)


def reasons(combination: Combination) -> list[str]:
    names = {kind: choice.name for kind, choice in combination.items()}
    return [refusal.says for refusal in REFUSALS if refusal.of(names)]


def runs_or_is_refused(combination: Combination) -> Result | None:
    """The result, or None where the combination is rightly refused. Every other outcome fails, with its names."""
    names = ", ".join(f"{kind}: {choice.name}" for kind, choice in combination.items())
    expected = reasons(combination)
    try:
        result = fedsim.run(experiment_of(combination))
    except ConfigError as error:
        said = str(error)
        assert any(reason in said for reason in expected), f"{names}: refused for no known reason: {said}"
        assert any(key in said for key in KEYS), f"{names}: {said} names no key"
        assert re.search(r"\b(use|drop|give|set)\b", said), f"{names}: {said} names no way out"
        assert "\n" not in said
        return None
    except Exception as error:
        error.add_note(names)
        raise
    assert not expected, f"{names}: runs, though {expected}"
    assert result.model.isfinite().all(), names
    assert math.isfinite(result.loss), names
    assert result.model.count_nonzero() > 0, f"{names}: the model has not moved"
    totals = result.ledger.totals
    uploads = [totals[Direction.UP, kind] for kind in (Entry.UPLOAD, Entry.MEMORY) if (Direction.UP, kind) in totals]
    assert sum(cost.frames for cost in uploads) == 2 * 3, names
    assert all(cost.frame_bytes > 0 for cost in uploads), names
    return result


def in_turns(recipe: Choice, order: Choice) -> Iterator[Combination]:
    """A third of the product of rate, direction and whitening, another third in the next recipe and the next order.

    Length and send take turns: over the recipes, of which there are at least 18, every combination of local choices
    is met.
    """
    turns = list(combinations(["length", "send"]))
    first = CHOICES["recipe"].index(recipe) + CHOICES["order"].index(order)
    for i, rest in enumerate(combinations(["rate", "direction", "whitening"], recipe=recipe, order=order)):
        if (first + i) % 3 == 0:
            yield {**rest, **turns[(first // 3 + i) % len(turns)]}


@pytest.mark.parametrize("order", CHOICES["order"], ids=lambda choice: choice.name)
@pytest.mark.parametrize("recipe", CHOICES["recipe"], ids=lambda choice: choice.name)
def test_every_combination_runs_or_is_refused_with_the_reason(recipe: Choice, order: Choice) -> None:
    """Together with the next test: every combination of local choices runs or is refused in some recipe."""
    for combination in in_turns(recipe, order):
        runs_or_is_refused(combination)


def test_every_local_combination_is_met_in_some_recipe() -> None:
    """order x rate x direction x whitening x length x send in full."""
    local = [kind for kind in CHOICES if kind != "recipe"]
    met = {
        tuple(combination[kind].name for kind in local)
        for recipe, order in product(CHOICES["recipe"], CHOICES["order"])
        for combination in in_turns(recipe, order)
    }
    assert met == set(product(*([choice.name for choice in CHOICES[kind]] for kind in local)))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CHOICES["recipe"], ids=lambda choice: choice.name)
def test_the_full_product(recipe: Choice) -> None:
    """Every combination in every recipe."""
    for combination in combinations([kind for kind in CHOICES if kind != "recipe"], recipe=recipe):
        runs_or_is_refused(combination)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.says)
def test_every_reason_occurs(refusal: Refusal) -> None:
    """Where it is the only reason, it is the one that is given; a reason that no combination has is stale."""
    alone = next(combination for combination in combinations(list(CHOICES)) if reasons(combination) == [refusal.says])
    with pytest.raises(ConfigError, match=refusal.says):
        prepare(experiment_of(alone))


@pytest.mark.parametrize(
    ("kind", "union"), [("rate", RateRule), ("direction", LocalDirection), ("whitening", Whitening)]
)
def test_no_choice_is_forgotten(kind: str, union: object) -> None:
    met = {choice.tables[kind][TAGS[kind]] for choice in CHOICES[kind]}
    assert met == {part.__struct_config__.tag for part in get_args(union)}


@pytest.mark.parametrize("kinds", [["order"], ["rate"], ["direction", "whitening"], ["length"], ["send"]])
def test_every_choice_has_an_effect(kinds: list[str]) -> None:
    """No two choices of a kind give the same model: none is accepted and then ignored."""
    usual = {"recipe": "sgd", "order": "reshuffle", "rate": "constant", "direction": "gradient", "whitening": "off"}
    usual |= {"length": "several steps", "send": "direction"}
    fixed = {kind: next(c for c in CHOICES[kind] if c.name == name) for kind, name in usual.items()}
    digests: dict[str, str] = {}
    for combination in combinations(kinds, **fixed):
        result = runs_or_is_refused(combination)
        if result is not None:
            name = " ".join(combination[kind].name for kind in kinds)
            assert digests.setdefault(result.digest, name) == name
    assert len(digests) > 1
