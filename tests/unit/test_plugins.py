"""A user's own parts: found by dotted path or by entry point, checked, and refused with a line that helps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fedsim
from fedsim import Experiment, plugins
from fedsim.errors import ConfigError
from fedsim.plugins import made, named
from fedsim.solvers import Here, Notes, Step
from fedsim.solvers.memory import check_notes
from fedsim.solvers.order import FRESH, ORDERS, order_named

WORLD: dict[str, Any] = {
    "algorithm": "sgd",
    "rounds": 3,
    "data": {"source": "synthetic-linear", "clients": 3, "per_client": 10, "features": 4},
    "local": {"steps": 2, "batch": 4, "order": "reshuffle", "step": 0.01},
    "run": {"precision": "float64"},
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module ``own_parts`` that a test may fill."""
    module = ModuleType("own_parts")
    monkeypatch.setitem(sys.modules, "own_parts", module)
    return module


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that offers orders: a real distribution on the path."""
    place = tmp_path / "offering-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(
        "[fedsim.orders]\nbackwards = offering_orders:backwards\nbroken = offering_orders:nothing\n"
    )
    (tmp_path / "offering_orders.py").write_text(
        "import torch\n\ndef backwards(seed, client, n, epoch, clients):\n    return torch.arange(n).flip(0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._offers.cache_clear()
    assert {entry.name for entry in entry_points(group="fedsim.orders")} >= {"backwards", "broken"}
    yield
    plugins._offers.cache_clear()
    sys.modules.pop("offering_orders", None)


def of(**tables: Any) -> Experiment:
    merged = {key: {**WORLD.get(key, {}), **value} for key, value in tables.items()}
    return Experiment.of(**{**WORLD, **merged})


def test_the_example_runs() -> None:
    """All three parts of tests/plugins_example.py in one experiment."""
    experiment = of(
        local={"order": "tests.plugins_example:there_and_back", "epochs": 1, "steps": 1},
        rate={"rule": "own", "factory": "tests.plugins_example:Warmup", "options": {"steps": 10}},
        direction={"kind": "own", "factory": "tests.plugins_example:Clipped", "options": {"norm": 0.5}},
    )
    result = fedsim.run(experiment)
    assert result.loss < result.metrics[0]["loss"]
    assert fedsim.run(experiment).digest == result.digest
    for part in ("rate", "direction"):
        table = {key: value for key, value in experiment.table().items() if key != part}
        assert fedsim.experiment.from_table(table).identifier() != experiment.identifier()
        assert fedsim.run(fedsim.experiment.from_table(table)).digest != result.digest


def test_an_entry_point_is_found_by_its_name(installed: None) -> None:
    order = order_named("backwards")
    assert order is not None
    assert order(0, 0, 4, 0, 1).tolist() == [3, 2, 1, 0]
    with pytest.raises(
        ConfigError, match=r"'backward': unknown \(did you mean 'backwards'\?\); one of: fresh, .*broken"
    ):
        order_named("backward")
    with pytest.raises(ConfigError, match=r"'broken': .*nothing.*; repair or remove 'offering_orders:nothing'"):
        order_named("broken")


@pytest.mark.parametrize("name", [FRESH, *ORDERS])
def test_built_in_orders_need_no_path(name: str) -> None:
    assert order_named(name) is ORDERS.get(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reshufle", "unknown (did you mean 'reshuffle'?); one of: fresh, with-replacement"),
        ("nothing like it", "unknown; one of: fresh"),
        ("no_such_module:order", "No module named 'no_such_module'; the module must be importable from where"),
        ("tests.plugins_example:missing", "has no attribute 'missing'"),
        ("torch:pi", "is of type float, expected a function"),
        (":order", "expected 'package.module:name'"),
        ("torch:", "expected 'package.module:name'"),
        (".relative:order", "expected 'package.module:name'"),
        ("a b:order", "expected 'package.module:name'"),
        ("torch:nn.Module", "expected 'package.module:name'"),
    ],
)
def test_a_wrong_name_is_explained(name: str, said: str, refused: Any) -> None:
    with refused(ConfigError, "local.order", repr(name), said):
        fedsim.run(of(local={"order": name}))


@pytest.mark.parametrize(("part", "tag"), [("rate", "rule"), ("direction", "kind")])
@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        ("Warmup", {}, "unknown; expected 'package.module:name'"),
        ("no_such:Warmup", {}, "No module named 'no_such'"),
        ("tests.plugins_example:Warmup", {"step": 3}, "does not take these options (missing a required argument"),
        ("tests.plugins_example:Warmup", {"steps": 3, "x": 1}, "got an unexpected keyword argument 'x'"),
        ("builtins:dict", {}, "returned dict, which has no method "),
    ],
)
def test_a_part_that_cannot_be_made_is_refused_before_the_first_round(
    part: str, tag: str, factory: str, options: dict[str, Any], said: str, refused: Any
) -> None:
    with refused(ConfigError, f"{part}.factory", repr(factory), said):
        fedsim.simulation.setup.prepare(of(**{part: {tag: "own", "factory": factory, "options": options}}))


def test_what_a_factory_raises_is_named(parts: ModuleType) -> None:
    def broken() -> None:
        raise ZeroDivisionError("mine")

    parts.broken = broken
    with pytest.raises(ConfigError, match=r"failed \(ZeroDivisionError: mine\); mend it"):
        made("rate.factory", "own_parts:broken", {}, "fedsim.rules", ["step"])
    assert named("rate.factory", "own_parts:broken", (), "fedsim.rules") is broken


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n: list(range(n)), "returned list for client"),
        (lambda n: torch.arange(n - 1), "returned torch.int64[9] for client"),
        (lambda n: torch.arange(n)[None], "returned torch.int64[1, 10] for client"),
        (lambda n: torch.arange(n).double(), "returned torch.float64[10] for client"),
        (lambda n: torch.arange(n) + 1, "returned numbers from 1 to 10 for client"),
        (lambda n: torch.arange(n) - 1, "returned numbers from -1 to 8 for client"),
    ],
)
def test_an_order_with_a_wrong_answer_is_named(answer: Any, said: str, parts: ModuleType, refused: Any) -> None:
    parts.order = lambda seed, client, n, epoch, clients: answer(n)
    with refused(
        ConfigError, "local.order = 'own_parts:order'", said, "expected torch.int64[10] with numbers from 0 to 9"
    ):
        fedsim.run(of(local={"order": "own_parts:order"}))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (0.1, "returned 0.1 at step 0"),
        ((0.1, {}), "returned (0.1, {}) at step 0"),
        ((-0.1, {}, 0), "returned (-0.1, {}, 0) at step 0"),
        ((float("nan"), {}, 0), "returned (nan, {}, 0) at step 0"),
        ((float("inf"), {}, 0), "returned (inf, {}, 0) at step 0"),
        ((torch.tensor(0.1), {}, 0), "returned (tensor(0.1000), {}, 0) at step 0"),
        ((0.1, {}, -1), "returned (0.1, {}, -1) at step 0"),
        ((0.1, {"x": 3.0}, 0), "returned notes {'x': 3.0}; expected a dictionary of named tensors"),
        ((0.1, None, 0), "returned notes None; expected a dictionary of named tensors"),
    ],
)
def test_a_rule_with_a_wrong_answer_is_named(answer: Any, said: str, parts: ModuleType, refused: Any) -> None:
    class Own:
        def step(self, k: int, base: float, here: Here, notes: Notes) -> Any:
            return answer

    parts.Own = Own
    with refused(ConfigError, "rate.factory = 'own_parts:Own'", said):
        fedsim.run(of(rate={"rule": "own", "factory": "own_parts:Own"}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"row": torch.zeros(4, dtype=torch.float64)}, "returned a row torch.float64[4]; expected a Step with a row"),
        ({"row": torch.zeros(1, 4)}, "returned a row torch.float32[1, 4]"),
        ({"row": None}, "returned a row None"),
        ({"loss": 0.5}, "returned a loss 0.5"),
        ({"loss": torch.zeros(())}, "returned a loss torch.float32[]"),
        ({"gradients": -1}, "returned gradients = -1"),
        ({"gradients": 1.5}, "returned gradients = 1.5"),
        ({"length": 0.0}, "returned length = 0.0"),
        ({"length": float("nan")}, "returned length = nan"),
        ({"notes": {"x": 1}}, "returned notes {'x': 1}"),
        (None, "returned Tensor; expected a Step with a row torch.float64[1, 5]"),
    ],
)
def test_a_direction_with_a_wrong_answer_is_named(
    changed: dict[str, Any] | None, said: str, parts: ModuleType, refused: Any
) -> None:
    class Own:
        def begin(self, notes: Notes) -> Notes:
            return notes

        def step(self, here: Here, notes: Notes) -> Any:
            row, loss = here.task.gradients(here.model, here.batch)
            right = {"row": row, "loss": loss, "notes": notes, "gradients": 4}
            return row if changed is None else Step(**{**right, **changed})

    parts.Own = Own
    with refused(ConfigError, "direction.factory = 'own_parts:Own'", said):
        fedsim.run(of(direction={"kind": "own", "factory": "own_parts:Own"}))


def test_a_direction_must_begin_with_notes(parts: ModuleType, refused: Any) -> None:
    class Own:
        def begin(self, notes: Notes) -> Any:
            return [1]

        def step(self, here: Here, notes: Notes) -> Any: ...

    parts.Own = Own
    with refused(ConfigError, "direction.factory = 'own_parts:Own' returned notes [1]"):
        fedsim.run(of(direction={"kind": "own", "factory": "own_parts:Own"}))


def test_a_part_lives_for_one_round_of_one_client(parts: ModuleType) -> None:
    """So that what it hides in itself is lost everywhere alike, and only its notes survive, also over a restart."""
    made_so_far = []

    class Own:
        def __init__(self) -> None:
            made_so_far.append(self)
            self.seen: list[int] = []

        def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
            self.seen.append(k)
            return base, {"count": notes.get("count", torch.zeros(())) + 1}, 0

    parts.Own = Own
    fedsim.run(of(rate={"rule": "own", "factory": "own_parts:Own"}))
    assert [own.seen for own in made_so_far if own.seen] == [[0, 1]] * 3 + [[2, 3]] * 3 + [[4, 5]] * 3


def test_notes_are_named_tensors() -> None:
    check_notes("rate.factory", "a:b", {})
    check_notes("rate.factory", "a:b", {"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match="expected a dictionary of named tensors"):
        check_notes("rate.factory", "a:b", {1: torch.zeros(1)})


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"local": {"order": "tests.plugins_example:Clipped"}}, r"local.order = .* failed \(TypeError: .*\); mend it"),
        (
            {"rate": {"rule": "own", "factory": "tests.plugins_example:Warmup", "options": {"steps": 0}}},
            r"rate.factory = .* failed \(ZeroDivisionError: .*\); mend it",
        ),
        (
            {"direction": {"kind": "own", "factory": "tests.plugins_example:Clipped", "options": {"norm": "a"}}},
            r"direction.factory = .* failed \(TypeError: .*\); mend it",
        ),
    ],
)
def test_what_an_own_part_raises_in_a_run_is_named(tables: dict[str, Any], says: str) -> None:
    local = {"steps": 2, "batch": 2, "order": "reshuffle"} | tables.get("local", {})
    experiment = fedsim.Experiment.of(
        rounds=1, data={"source": "synthetic-linear", "clients": 3, "per_client": 5}, **{**tables, "local": local}
    )
    with pytest.raises(ConfigError, match=says):
        fedsim.run(experiment)
