"""Groups of runs in a table: what they ended with, and what it took them to reach the same loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import ConfigError
from fedsim.reporting.runs import AXES, Group
from fedsim.reporting.statistics import Interval, Reach, final, reached

ENDS = ("loss", "test_loss", "test_accuracy", *(key for keys in AXES.values() for key in keys if key != "round"))
"""Measures and costs at the end of a run, as metrics.jsonl names them; once each."""


@dataclass(frozen=True, slots=True)
class Row:
    """A group. runs: seeds; finished, diverged: how many of them did; ends: over the finished ones, at their end."""

    label: str
    runs: int
    finished: int
    diverged: int
    ends: Mapping[str, Interval]
    reach: Reach


@dataclass(frozen=True, slots=True)
class Table:
    """Groups side by side. target: of the measure; reaching it is what ``Row.reach`` is about."""

    measure: str
    target: float
    rows: tuple[Row, ...]


def table(groups: Sequence[Group], measure: str = "loss", target: float | None = None) -> Table:
    """Compare groups. target: None for the worst value with which any finished run ended, so that all of them reach it.

    Raises ConfigError when no run has the measure, or for a target that is no number.
    """
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"--target {target}: expected a finite number")
    ends = [float(values[-1]) for group in groups for run in group.finished if len(values := run.values(measure))]
    known = [end for end in ends if math.isfinite(end)]
    if target is None and not known:
        statuses = {run.status for group in groups for run in group.runs}
        if statuses == {"diverged"}:
            raise ConfigError("all these runs diverged; run them with a smaller step")
        raise ConfigError(
            f"no finished run has a {measure}; finish one, or give a --measure that metrics.jsonl has and a --target"
        )
    if target is None:
        target = min(known) if measure.endswith("accuracy") else max(known)
    return Table(measure, target, tuple(_row(group, measure, target) for group in groups))


def _row(group: Group, measure: str, target: float) -> Row:
    ends = {name: final(group.finished, name) for name in dict.fromkeys((measure, *ENDS))}
    diverged = sum(run.status == "diverged" for run in group.runs)
    reach = reached(group.runs, measure, target)
    return Row(group.label, len(group.runs), len(group.finished), diverged, ends, reach)


def flat_row(row: Row) -> dict[str, Any]:
    """A row as one level of names and numbers, for CSV and JSON; None where there is no number.

    loss_mean, loss_half (half of the 95 % interval) ... at the end; reached (seeds), to_bytes_mean ... to the target.
    """
    found: dict[str, Any] = {"label": row.label, "seeds": row.runs, "finished": row.finished, "diverged": row.diverged}
    costs = {f"to_{axis}": cost for axis, cost in row.reach.costs.items()}
    for name, value in row.ends.items():
        found |= _numbers(name, value)
    found["reached"] = row.reach.n
    for name, value in costs.items():
        found |= _numbers(name, value)
    return found


def _numbers(name: str, value: Interval) -> dict[str, float | None]:
    pair = {f"{name}_mean": value.mean, f"{name}_half": value.half}
    return {key: number if np.isfinite(number) else None for key, number in pair.items()}
