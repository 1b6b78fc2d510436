"""What a page says of groups of runs, as plain tables that JSON can hold: curves, costs, who reaches the target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import FedsimError, one_line
from fedsim.reporting.breakdown import PARTS
from fedsim.reporting.detail import Examined, Size, detail, examine, numbers
from fedsim.reporting.final import Examiner
from fedsim.reporting.runs import AXES, Group, Run, groups
from fedsim.reporting.statistics import Interval, curve, final, reached
from fedsim.simulation.theory import Prediction

EXCESS = "excess_loss"

DRAWN = (
    ("rounds", "Rounds", "Rounds", ""),
    ("formula_bits", "Formula bits", "Formula bits", "bit"),
    ("payload_bits", "Payload bits", "Payload bits", "bit"),
    ("bytes", "Bytes", "Bytes", "B"),
    ("seconds", "Simulated seconds", "Seconds", "s"),
)
"""What curves are drawn against: name in ``AXES``, label, short label, unit."""

MEASURES = {
    EXCESS: ("Excess loss", "training loss minus the smallest there is"),
    "loss": ("Training loss", ""),
    "test_accuracy": ("Test accuracy", ""),
    "test_loss": ("Test loss", ""),
    "average_loss": ("Training loss of the averaged model", ""),
    "memory_distance": ("Memory distance", "mean over clients of ‖gᵢ − hᵢ‖: what is left to compress"),
    "drift": ("Client drift", "mean over clients of ‖gᵢ − ḡ‖: how far their directions are apart"),
}
"""Measures in the order of their charts: key of metrics.jsonl -> label, hint. Other numbers there come after them."""

IN_SUMMARY = (EXCESS, "loss", "test_accuracy")
"""Measures of the table; the loss only where its excess is not known."""

COUNTED = {key for keys in AXES.values() for key in keys}
"""Keys of metrics.jsonl that are costs and no measures."""


@dataclass(frozen=True, slots=True)
class Study:
    """Runs that were read and examined, in groups.

    theory: of each group's first run; smallest: whether every group's F* is known.
    """

    groups: tuple[Group, ...]
    examined: tuple[tuple[Examined, ...], ...]
    theory: tuple[Prediction | None, ...]
    smallest: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A level of a measure that it costs something to reach."""

    measure: str
    value: float


def study(runs: Iterable[Run], examiner: Examiner | None) -> Study:
    """Put runs into groups, and find what needs their ledgers and, with an examiner, their data."""
    found, looked_at, notes, known = [], [], [], examiner is not None
    theory: list[Prediction | None] = []
    for group in groups(runs):
        members = []
        for run in group.runs:  # what needs a run's data is done at once, while it is loaded
            looked = examine(run, examiner)
            try:
                members.append((looked, run if examiner is None else _with_excess(run, examiner)))
            except FedsimError as error:
                known = False
                notes.append(f"{group.label}: no excess loss, because {one_line(str(error))}.")
                members.append((looked, run))
        found.append(replace(group, runs=tuple(run for _, run in members)))
        looked_at.append(tuple(looked for looked, _ in members))
        theory.append(None)
        if examiner is not None and examiner.theory:
            try:
                theory[-1] = examiner.predict(group.runs[0].experiment)
            except FedsimError as error:
                notes.append(f"{group.label}: no theory, because {one_line(str(error))}.")
    if examiner is None:
        notes.append("The runs' data was not looked at: neither the excess loss nor the clients' own losses are shown.")
    return Study(tuple(found), tuple(looked_at), tuple(theory), known, tuple(dict.fromkeys(notes)))


def content(given: Study, title: str, target: Target | None, size: Size) -> dict[str, Any]:
    """What the page draws, for JSON. target: None chooses the loss that every finished run came to."""
    runs = [run for group in given.groups for run in group.runs]
    measures, counted = measures_of(given), axes_of(given)
    axes = [axis for axis in DRAWN if axis[0] in counted]
    goal = target or _common(given, measures)
    tables = [
        _group(group, examined, measures, counted, goal, size) | {"theory": theory and _promise(group, theory)}
        for group, examined, theory in zip(given.groups, given.examined, given.theory, strict=True)
    ]
    return {
        "title": title,
        "version": version("fedsim"),
        "lead": _lead(given),
        "hint": _hint(goal),
        "cards": _cards(tables, goal, measures),
        "target": goal and {"measure": goal.measure, "value": goal.value},
        "axes": [
            {"key": key, "label": label, "short": short, "unit": unit, "reach": key in ("rounds", "bytes", "seconds")}
            for key, label, short, unit in axes
        ],
        "measures": [_measure(key) | {"summary": key in _summarised(measures)} for key in measures],
        "groups": tables,
        "runs": [
            detail(one, f"{group.label}, seed {one.run.experiment.seed}", size)
            for group, examined in zip(given.groups, given.examined, strict=True)
            for one in examined
        ],
        "notes": list(given.notes),
        "live": False,
        "ended": all(run.status != "running" for run in runs),
    }


def _with_excess(run: Run, examiner: Examiner) -> Run:
    """The run with F - F* in its metrics; not below 0, which rounding would otherwise allow."""
    smallest = examiner.smallest(run.experiment)
    lines = [
        {**line, EXCESS: max(float(line["loss"]) - smallest, 0.0)} if "loss" in line else line for line in run.metrics
    ]
    return replace(run, metrics=lines)


def axes_of(given: Study) -> list[str]:
    """What these runs can be drawn against, of ``DRAWN``: what somebody has counted."""
    runs = [run for group in given.groups for run in group.runs]
    return [axis for axis, *_ in DRAWN if any(np.isfinite(run.axis(axis)).any() for run in runs)]


def measures_of(given: Study) -> list[str]:
    """What these runs have measured, in the order of ``MEASURES``, then by name."""
    there = {
        key
        for group in given.groups
        for run in group.runs
        for line in run.metrics
        for key, value in line.items()
        if key not in COUNTED and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return [key for key in MEASURES if key in there] + sorted(there - MEASURES.keys())


def _measure(key: str) -> dict[str, Any]:
    label, hint = MEASURES.get(key, (key.replace("_", " "), ""))
    kind = "accuracy" if key.endswith("accuracy") else "loss"
    return {"key": key, "label": label, "hint": hint, "kind": kind}


def _summarised(measures: Sequence[str]) -> list[str]:
    return [key for key in IN_SUMMARY if key in measures and not (key == "loss" and EXCESS in measures)]


def _group(
    group: Group,
    examined: Sequence[Examined],
    measures: Sequence[str],
    axes: Sequence[str],
    target: Target | None,
    size: Size,
) -> dict[str, Any]:
    totals = [one.traffic.totals() for one in examined if one.traffic is not None]
    goal = None if target is None else reached(group.runs, target.measure, target.value)
    return {
        "label": group.label,
        "runs": [run.experiment.seed for run in group.runs],
        "unfinished": len(group.runs) - len(group.finished),
        "rounds": max((int(run.metrics[-1]["round"]) for run in group.runs if run.metrics), default=0),
        "curves": {
            measure: {axis: drawn for axis in axes if (drawn := _curve(group.runs, axis, measure, size))}
            for measure in measures
            if any(measure in line for run in group.runs for line in run.metrics)
        },
        "final": {measure: _pair(final(group.runs, measure)) for measure in measures},
        "sent": {way: _pair(final(group.runs, f"{way}_bytes")) for way in ("up", "down")},
        "totals": {part: round(float(np.mean([one[part] for one in totals]))) for part in PARTS} if totals else None,
        "reach": None if goal is None else {axis: _pair(cost) for axis, cost in goal.costs.items() if cost.n},
        "reached": None if goal is None else [goal.n, goal.of],
    }


def _curve(runs: Sequence[Run], axis: str, measure: str, size: Size) -> dict[str, Any] | None:
    found = curve(runs, axis, measure)
    if not len(found.axis):
        return None
    kept = np.unique(np.linspace(0, len(found.axis) - 1, size.points).round().astype(int))
    drawn = {"n": found.n, "x": numbers(found.axis[kept]), "mean": numbers(found.mean[kept])}
    return drawn | ({"half": numbers(found.half[kept])} if found.n > 1 else {})


def _promise(group: Group, said: Prediction) -> dict[str, Any]:
    """What theory says, and the course of the excess loss: as expected, or (1 - rate)^k times the first, plus floor."""
    started = [float(excess[0]) for run in group.runs if len(excess := run.values(EXCESS)) and np.isfinite(excess[0])]
    drawn = None
    if said.course and said.optimum is not None:
        rounds, losses = np.array(said.course).T
        drawn = {"x": numbers(rounds), "y": numbers(np.maximum(losses - said.optimum, 0.0))}
    elif said.rate is not None and 0 < said.rate < 1 and started:
        rounds = np.unique(np.linspace(0, group.runs[0].experiment.rounds, 101).round())
        course = np.mean(started) * (1 - said.rate) ** rounds + (said.floor_loss or 0.0)
        drawn = {"x": numbers(rounds), "y": numbers(course)}
    return {
        "theorem": said.theorem,
        "source": said.source,
        "covered": said.covered,
        "reasons": said.reasons,
        "rate": said.rate,
        "floor": said.floor_loss,
        "step": said.step,
        "admissible": said.admissible,
        "measure": EXCESS,
        "curve": drawn,
    }


def _pair(found: Interval) -> list[float | None] | None:
    """Mean and half of an interval; None where there is no value."""
    return numbers(np.array([found.mean, found.half])) if found.n else None


def _common(given: Study, measures: Sequence[str]) -> Target | None:
    """The loss to which every finished run came, sooner or later, rounded up to three digits."""
    measure = EXCESS if given.smallest and EXCESS in measures else "loss"
    lowest = [
        float(np.nanmin(values))
        for group in given.groups
        for run in group.finished
        if np.isfinite(values := run.values(measure)).any()
    ]
    if not lowest or max(lowest) <= 0:
        return None
    unit = 10 ** (np.floor(np.log10(max(lowest))) - 2)
    return Target(measure, float(f"{np.ceil(max(lowest) / unit) * unit:.3g}"))


def _hint(target: Target | None) -> str:
    words = "Means over seeds; ± is half of the 95 % interval (Student's)."
    if target is None:
        return words
    way = "at least" if target.measure.endswith("accuracy") else "at most"
    return f"{words} The target: {_measure(target.measure)['label'].lower()} {way} {target.value:g}."


def _cards(tables: Sequence[dict[str, Any]], target: Target | None, measures: Sequence[str]) -> list[dict[str, str]]:
    """The result in a few large numbers."""
    cards = []
    costs = [(table["reach"]["bytes"][0], table["label"]) for table in tables if (table["reach"] or {}).get("bytes")]
    if target is not None and len(costs) > 1 and min(costs)[0] > 0:
        (least, best), (most, worst) = min(costs), max(costs)
        cards.append(
            {"value": f"{most / least:.1f}×", "text": f"fewer bytes to the target with {best} than with {worst}"}
        )
    for measure in _summarised(measures):
        ends = [(table["final"][measure][0], table["label"]) for table in tables if table["final"][measure]]
        if ends:
            share = measure.endswith("accuracy")
            value, who = max(ends) if share else min(ends)
            text = f"{'highest' if share else 'lowest'} final {_measure(measure)['label'].lower()}: {who}"
            if len(tables) == 1:
                text = f"{_measure(measure)['label'].lower()} after {tables[0]['rounds']} rounds"
            shown = f"{100 * value:.2f} %" if share else f"{value:.3g}".replace("e-0", "e-")
            cards.append({"value": shown, "text": text})
    seeds, unfinished = sum(len(table["runs"]) for table in tables), sum(table["unfinished"] for table in tables)
    methods = f"{len(tables)} method{'s' if len(tables) > 1 else ''}"
    state = "all finished" if not unfinished else f"{unfinished} unfinished"
    return [*cards, {"value": str(seeds), "text": f"run{'s' if seeds > 1 else ''} of {methods}, {state}"}]


def _lead(given: Study) -> str:
    """What all runs have in common, in a line."""
    experiments = [run.experiment for group in given.groups for run in group.runs]
    parts = []
    for name, key in (("data", "source"), ("partition", "scheme"), ("participation", "scheme"), ("task", "kind")):
        tables = [experiment.table()[name] for experiment in experiments]
        if all(table == tables[0] for table in tables):
            said = [Path(str(tables[0].get("path", ""))).name or str(tables[0][key])]
            said += [f"{k} = {v:g}" for k, v in tables[0].items() if k in ("clients", "alpha", "p", "k")]
            parts.append(" ".join(said))
    return one_line(" · ".join(parts))
