"""Run folders read back, and those that are one experiment but for the seed put together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import CheckpointError, ConfigError
from fedsim.experiment import HOW, Experiment
from fedsim.keys import nearest, shown
from fedsim.simulation.folder import RunFolder, read_metrics
from fedsim.simulation.sidebyside import flat

Series = NDArray[np.float64]

AXES: dict[str, tuple[str, ...]] = {
    "rounds": ("round",),
    "formula_bits": ("formula_bits",),
    "payload_bits": ("payload_bits",),
    "bytes": ("up_bytes", "down_bytes"),
    "up_bytes": ("up_bytes",),
    "down_bytes": ("down_bytes",),
    "gradients": ("gradients",),
    "seconds": ("seconds",),
}
"""What a measure can be drawn against: name -> keys of metrics.jsonl whose sum it is."""

APART = ("seed", "deploy", "data.paths", "data.test", *(f"run.{key}" for key in HOW))
"""Keys and tables in which two runs of one experiment may differ: its seed, where data lies, how to run."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, finished or not. metrics: a line an evaluation, in order of rounds; none before the first."""

    path: Path
    experiment: Experiment
    manifest: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def status(self) -> str:
        """ "finished", "diverged", or "running": being run, or stopped and to be resumed."""
        return str(self.manifest.get("status", "unknown"))

    @property
    def finished(self) -> bool:
        """Whether it played all its rounds."""
        return self.status == "finished"

    def values(self, name: str) -> Series:
        """A measure such as "loss" or "test_accuracy" at every evaluation, float64[k]; NaN where there is none.

        Raises CheckpointError for a value that is no number.
        """
        return np.array([self._number(line, name) for line in self.metrics], np.float64)

    def axis(self, name: str) -> Series:
        """What the run had come to at every evaluation, float64[k]: one of ``AXES``; NaN where nobody counted.

        Costs are totals since the first round, in bits or bytes as the name says; seconds are simulated. Raises
        ConfigError for another name.
        """
        if name not in AXES:
            raise ConfigError(f"axis {name!r}: unknown{nearest(name, AXES)}; one of {', '.join(AXES)}")
        total = np.zeros(len(self.metrics))
        for key in AXES[name]:
            total += self.values(key)
        return total

    def _number(self, line: Mapping[str, Any], name: str) -> float:
        value = line.get(name, np.nan)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > sys.float_info.max:
            raise CheckpointError(
                f"{self.path / 'metrics.jsonl'}: {name} = {shown(value)} in round {line['round']} is no number; "
                "put the file back"
            )
        return float(value)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one experiment that differ in the seed. label: short, and no other group's of the same list."""

    label: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that played all their rounds."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def problem(self) -> str:
        """What is learned from what: equal where a loss means the same."""
        table = self.runs[0].experiment.table()
        here = {key: value for key, value in table["data"].items() if key not in ("paths", "test")}
        return repr((here, table["partition"], table["task"]))


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not; a last line that is being written, or never was, does not count.

    Raises CheckpointError for a folder that is missing, damaged or not a run's.
    """
    folder = RunFolder(path)
    experiment, manifest = folder.experiment(), folder.facts()
    logged = path / "metrics.jsonl"
    try:
        return Run(path, experiment, manifest, read_metrics(logged, unfinished=True) if logged.exists() else [])
    except OSError as error:
        raise CheckpointError(f"{logged}: unreadable ({error.strerror}); put it back") from None


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at and below some paths, each once, in the order of their names.

    A run's own folder is that run; what lies inside it (an uncompressed baseline) counts only where it is named itself.
    Raises CheckpointError for a path at and below which there is no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        below = folders(path)
        if not below:
            raise CheckpointError(
                f"{path} is not a run folder (no experiment.toml), nor is there one below; `fedsim run` makes one"
            )
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in found.values()]


def folders(path: Path) -> list[Path]:
    """The run folders at and below a path, by name; not those within another."""
    found = []
    for place, below, files in os.walk(path):
        below.sort()
        if "experiment.toml" in files:
            found.append(Path(place))
            below.clear()
    return found


def groups(runs: Iterable[Run]) -> list[Group]:
    """Runs that are the same experiment, on the same engine, but for the seed; in the order in which they first come.

    Of several runs with the same seed one stays: the first that is finished, or else that got furthest. A label is
    the recipe and the keys in which groups of that recipe differ, such as "artemis · levels 4".
    """
    kinds: dict[str, dict[int, Run]] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        table = identity(run.experiment, str(run.manifest.get("engine", "simulator")))
        key = repr(sorted(table.items()))
        tables[key] = table
        same, seed = kinds.setdefault(key, {}), run.experiment.seed
        same[seed] = max(same.get(seed, run), run, key=_progress)
    labels = told_apart(list(tables.values()))
    return [
        Group(label, tuple(seeds[seed] for seed in sorted(seeds)))
        for label, seeds in zip(labels, kinds.values(), strict=True)
    ]


def _progress(run: Run) -> tuple[bool, int]:
    return run.finished, len(run.metrics)


def identity(experiment: Experiment, engine: str = "simulator") -> dict[str, Any]:
    """What a group's runs have in common: dotted keys -> values."""
    table = dict(flat(experiment.table())) | {"engine": engine}
    return {key: value for key, value in table.items() if key not in APART and key.split(".")[0] not in APART}


def told_apart(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each table of dotted keys, in the same order: its recipe, and the keys in which others differ."""
    labels = [""] * len(tables)
    order = sorted(range(len(tables)), key=lambda i: str(tables[i]["algorithm"]))
    for recipe, members in groupby(order, key=lambda i: str(tables[i]["algorithm"])):
        numbers = list(members)
        for i, label in zip(numbers, _of_recipe(recipe, [tables[i] for i in numbers]), strict=True):
            labels[i] = label
    return labels


def _of_recipe(recipe: str, tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of tables that all name the same recipe.

    Keys that all of them have come first; those of some, such as a compressor's own, only where the others do not tell
    all tables apart.
    """
    keys = sorted({key for table in tables for key in table}, key=_place)
    differ = [key for key in keys if len({repr(table[key]) for table in tables if key in table}) > 1]
    common = [key for key in differ if all(key in table for table in tables)]
    labels = [_label(recipe, table, common) for table in tables]
    return labels if len(set(labels)) == len(labels) else [_label(recipe, table, differ) for table in tables]


def _place(key: str) -> tuple[int, str]:
    """Keys in the order of an experiment's tables."""
    names = Experiment.__struct_fields__
    first = key.split(".")[0]
    return (names.index(first) if first in names else len(names)), key


def _label(recipe: str, table: Mapping[str, Any], keys: Sequence[str]) -> str:
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    said = [f"{name} {_value(table[key])}" for key, name in zip(keys, names, strict=True) if key in table]
    return " · ".join([recipe, *said])


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
