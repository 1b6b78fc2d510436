"""Means and 95 % intervals over seeds: of final values, of curves, and of what it cost to get somewhere.

The interval is Student's: mean ± t(0.975, n - 1) s / sqrt(n), s^2 = sum (x - mean)^2 / (n - 1). It holds for values
that are normally distributed over seeds; with one value there is none.

    symbol    here              meaning
    n         Interval.n        number of seeds
    t         scipy.stats.t     quantile of Student's distribution, so that 2.5 % lie on either side
    s         deviation         standard deviation over seeds
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy.stats import t

from fedsim.reporting.runs import AXES, Run, Series

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """mean ± half over n seeds, in the unit of the values. half: NaN for n = 1, both for n = 0."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


@dataclass(frozen=True, slots=True)
class Curve:
    """A measure against an axis: float64[k] each; half is NaN where there is one seed. n: seeds."""

    axis: Series
    mean: Series
    half: Series
    n: int


@dataclass(frozen=True, slots=True)
class Reach:
    """What it took until a measure first reached a target.

    costs: axis -> mean and interval over the seeds that reached it; n: those; of: all seeds. Where n < of the means
    leave out the seeds that were slowest, and so flatter.
    """

    costs: dict[str, Interval]
    n: int
    of: int


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval of values that are independent.

    >>> found = interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.3027
    >>> found.mean, round(found.half, 4), found.n
    (2.0, 2.4841, 3)
    """
    row = np.fromiter(values, np.float64)
    if not len(row):
        return Interval(nan, nan, 0)
    mean, half = _over_seeds(row[:, None])
    return Interval(float(mean[0]), float(half[0]), len(row))


def _over_seeds(rows: Series) -> tuple[Series, Series]:
    """float64[n, k] -> means float64[k] and half widths float64[k], NaN for n = 1."""
    n = len(rows)
    mean = rows.mean(axis=0)
    if n == 1:
        return mean, np.full_like(mean, nan)
    deviation = rows.std(axis=0, ddof=1)
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) / sqrt(n) * deviation


def final(runs: Iterable[Run], measure: str) -> Interval:
    """Over runs, of their last evaluation. Those that have no such measure do not count."""
    ends = [values[-1] for run in runs if len(values := run.values(measure)) and np.isfinite(values[-1])]
    return interval(ends)


def curve(runs: Sequence[Run], axis: str, measure: str) -> Curve:
    """The mean of a measure against an axis, where all runs have been: nothing is drawn beyond the shortest.

    Seeds come to an evaluation at different costs. Their values are interpolated linearly, between the evaluations
    before and after, at the places of the run that has most of them. For a falling convex curve that is never below
    what an evaluation there would have found. Runs that lack the measure or the axis do not count.
    """
    found = [points for run in runs if len((points := _points(run, axis, measure))[0])]
    if not found:
        empty = np.zeros(0)
        return Curve(empty, empty, empty, 0)
    begin, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    densest = max((x for x, _ in found), key=len)
    inside = densest[(densest > begin) & (densest < end)]
    grid = np.unique(np.concatenate(([begin], inside, [end]))) if begin <= end else np.zeros(0)
    mean, half = _over_seeds(np.stack([np.interp(grid, x, y) for x, y in found]))
    return Curve(grid, mean, half, len(found))


def _points(run: Run, axis: str, measure: str) -> tuple[Series, Series]:
    x, y = run.axis(axis), run.values(measure)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def reach(run: Run, measure: str, target: float) -> dict[str, float] | None:
    """What a run had come to, axis by axis, at the first evaluation at which a measure had reached a target.

    A loss is reached from above (at most the target), an accuracy from below (at least). None: never. The true crossing
    lies between the evaluation before and this one: costs are overstated by at most ``run.evaluate_every`` rounds.
    """
    values = run.values(measure)
    there = np.flatnonzero(values >= target if measure.endswith("accuracy") else values <= target)
    return {axis: float(run.axis(axis)[there[0]]) for axis in AXES} if len(there) else None


def reached(runs: Sequence[Run], measure: str, target: float) -> Reach:
    """``reach`` over seeds. An axis that nobody counted (simulated seconds) has the interval of no values."""
    found = [costs for run in runs if (costs := reach(run, measure, target)) is not None]
    over = {axis: interval(x for one in found if np.isfinite(x := one[axis])) for axis in AXES}
    return Reach(over, len(found), len(runs))
