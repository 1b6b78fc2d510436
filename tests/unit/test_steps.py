"""Step sizes: numbers, multiples of 1/L, and what is neither."""

from __future__ import annotations

import math

import pytest

from fedsim.algorithms.steps import scheduled, step_size
from fedsim.errors import ConfigError


def unused() -> float:
    raise AssertionError("a number needs no L")


@pytest.mark.parametrize("value", [0.1, 1, 5e-324, 1e300])
def test_numbers(value: float) -> None:
    found = step_size("server.step", value, unused, unused)
    assert found == value
    assert isinstance(found, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/L", 0.125),
        ("4/L", 0.5),
        (" 2 / L ", 0.25),
        ("1/(2L)", 0.0625),
        ("1/(2*L)", 0.0625),
        ("1/( 2 * L )", 0.0625),
        ("0.5/(.25L)", 0.25),
        ("3./(1.5 L)", 0.25),
        (".5/L", 0.0625),
    ],
)
def test_multiples(text: str, expected: float) -> None:
    assert step_size("server.step", text, lambda: 8.0, unused) == expected


@pytest.mark.parametrize(("text", "expected"), [("theory", 0.5), ("8*theory", 4.0), (" .5 * theory ", 0.25)])
def test_multiples_of_the_largest_step_with_a_theorem(text: str, expected: float) -> None:
    assert step_size("server.step", text, unused, lambda: 0.5) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "L",
        "1",
        "0.1",
        "1/l",
        "-1/L",
        "1/2L",
        "1/(0L)",
        "1/L/2",
        "one/L",
        "1/(L)",
        "L/1",
        "1e2/L",
        "1/L 2/L",
        "theory/2",
    ],
)
def test_texts_that_are_no_step(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.step = ") as caught:
        step_size("server.step", text, lambda: 8.0, unused)
    assert "'4/L' or '1/(2L)'" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0/L", "9" * 400 + "/L"])
def test_steps_that_are_not_positive_and_finite(value: float | str) -> None:
    with pytest.raises(ConfigError, match=r"local\.step = .*: expected a step size > 0"):
        step_size("local.step", value, lambda: 8.0, unused)


def test_no_l() -> None:
    def no_constant() -> float:
        raise ConfigError("a network has no L; give a number")

    with pytest.raises(ConfigError, match=r"server\.step = '1/L': a network has no L"):
        step_size("server.step", "1/L", no_constant, unused)
    with pytest.raises(ConfigError, match=r"server\.step = '1/L': L is 0, because every feature is 0; give a number"):
        step_size("server.step", "1/L", lambda: 0.0, unused)


def test_schedules() -> None:
    assert [scheduled(0.5, "constant", round) for round in (0, 3, 99)] == [0.5, 0.5, 0.5]
    assert [scheduled(0.5, "inverse-sqrt", round) for round in (0, 3, 99)] == [0.5, 0.25, 0.05]
