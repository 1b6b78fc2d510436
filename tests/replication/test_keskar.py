"""Keskar's sharpness where the answer is known: the maximum over a box lies in a corner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.replication.keskar import EPSILON, Vector, sharpness


def at(d: int) -> tuple[np.random.Generator, Vector, Vector]:
    """(generator, a point, how far each of its coordinates may move)."""
    random = np.random.default_rng(d)
    w = random.standard_normal(d)
    return random, w, EPSILON * (np.abs(w) + 1)


@pytest.mark.parametrize("d", [1, 5, 50])
def test_a_linear_function_rises_by_its_slopes_times_the_box(d: int) -> None:
    random, w, reach = at(d)
    g = random.standard_normal(d)
    shift = 2 - g @ w
    assert sharpness(lambda x: (float(shift + g @ x), g), w) == pytest.approx(100 * (reach @ np.abs(g)) / 3, rel=1e-9)


@pytest.mark.parametrize("d", [1, 5, 50])
def test_a_separable_convex_quadratic_is_largest_in_the_corner_away_from_its_minimum(d: int) -> None:
    random, w, reach = at(d)
    a = random.uniform(0.1, 5, d)
    value, corner = (float(a @ point**2) / 2 for point in (w, w + reach * np.sign(w)))
    expected = 100 * (corner - value) / (1 + value)
    assert sharpness(lambda x: (float(a @ x**2) / 2, a * x), w) == pytest.approx(expected, rel=1e-9)


def test_a_coupled_convex_quadratic_is_largest_in_one_of_its_corners() -> None:
    """All 2^8 corners are tried. The gradient at w is not small, so the best one is where a search from w leads."""
    random, w, reach = at(8)
    root = random.standard_normal((8, 8))
    h = root @ root.T
    corners = w + reach * (2.0 * (np.arange(256)[:, None] >> np.arange(8) & 1) - 1)
    values = ((corners @ h) * corners).sum(axis=1) / 2
    here = float(w @ h @ w) / 2
    expected = 100 * (values.max() - here) / (1 + here)
    assert sharpness(lambda x: (float(x @ h @ x) / 2, h @ x), w) == pytest.approx(expected, rel=1e-9)


def test_twice_the_box_doubles_a_linear_rise_and_a_minimum_has_none() -> None:
    _, w, _ = at(5)
    g = np.ones(5)

    def f(x: Vector) -> tuple[float, Vector]:
        return float(g @ x), g

    assert sharpness(f, w, 2 * EPSILON) == pytest.approx(2 * sharpness(f, w), rel=1e-9)
    assert sharpness(lambda x: (float(x @ x) / 2, x), np.zeros(3)) == 0
