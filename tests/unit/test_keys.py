"""What a person is told who mistyped a key or a value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment, load
from fedsim.keys import MAX_WHOLE, SHOWN, check_keys, nearest, shown, unknown_value


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(gt=1, lt=5)] = 2
    names: tuple[str, ...] = ()
    pairs: dict[str, int] = {}
    share: Annotated[float, msgspec.Meta(ge=0.5)] = 1.0


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()


def told(table: dict[str, Any]) -> str:
    try:
        msgspec.convert(table, Outer)
    except msgspec.ValidationError as error:
        return unknown_value(str(error), table, Outer)
    return "accepted"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "c"}, "kind = 'c': expected 'a' or 'b'"),
        ({"inner": {"size": 1}}, "inner.size = 1: expected a whole number > 1 and < 5"),
        ({"inner": {"names": ["x", 3]}}, "inner.names[1] = 3: expected text"),
        ({"inner": {"names": 3}}, "inner.names = 3: expected a list, each item text"),
        ({"inner": {"pairs": 3}}, "inner.pairs = 3: expected another kind of value"),
        ({"inner": {"share": False}}, "inner.share = false: expected a number >= 0.5"),
        ({"inner": {"share": 0.5}}, "accepted"),
    ],
)
def test_what_was_expected(table: dict[str, Any], message: str) -> None:
    assert told(table) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), [1.0, float("nan")]])
def test_numbers_are_finite(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^inner\.share = .*: expected a finite number$"):
        check_keys({"inner": {"share": value}}, Outer, {})


@pytest.mark.parametrize("value", [MAX_WHOLE + 1, -MAX_WHOLE - 1, [3, 10**30]])
def test_numbers_are_countable(value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^inner\.size = .*: expected at most {MAX_WHOLE}$"):
        check_keys({"inner": {"size": value}}, Outer, {})
    check_keys({"inner": {"size": MAX_WHOLE}}, Outer, {})


@given(st.one_of(st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.text()), st.dates(), st.booleans()))
def test_a_shown_value_is_one_short_line(value: object) -> None:
    assert len(shown(value)) <= SHOWN
    assert len(shown(value).splitlines()) == 1


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert nearest("zzz", ["levels", "norm"]) == ""


@given(
    st.permutations(["partition.scheme=shards", "partition.clients=7", "partition.per_client=3", "participation.k=2"])
)
def test_order_of_assignments_does_not_matter(assignments: list[str]) -> None:
    """Also where one of them names the kind that the others are keys of."""
    expected = Experiment.of(
        partition={"scheme": "shards", "clients": 7, "per_client": 3}, participation={"k": 2}, run={"baseline": True}
    )
    assert load(None, assignments) == expected


def test_the_last_of_equal_assignments_counts() -> None:
    assert load(None, ["rounds=3", "uplink.levels=2", "uplink.levels=5", "rounds=4"]) == load(
        None, ["rounds=4", "uplink.levels=5"]
    )
