"""A sweep file: a base experiment, a grid over any keys, variants, and seeds; which runs they make.

    base = "x.toml"                 # an experiment's file, beside this one; or its tables as [base]
    seeds = 5                       # 0 to 4; or a list. Left out: the seed of the base

    [grid]                          # every combination
    "uplink.levels" = [1, 4]
    participation = [{scheme = "full"}, {scheme = "bernoulli", p = 0.5}]

    [[variants]]                    # each of them with every combination of the grid
    algorithm = "diana"
    "server.step" = "2/L"

A run is its base, then its variant, then its place in the grid, then its seed; later wins, as with ``--set``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from fedsim.errors import ConfigError
from fedsim.experiment import (
    Experiment,
    Table,
    assigned,
    from_table,
    merged,
    nested,
    overlay,
    parse_toml,
    read_toml,
)
from fedsim.keys import nearest, shown
from fedsim.reporting.runs import identity, told_apart
from fedsim.sweep import presets

KEYS = ("base", "seeds", "grid", "variants")
MOST = 10_000
"""Runs of a sweep: more are taken for a mistake."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep. label: what tells its experiment from the others', the seed apart."""

    experiment: Experiment
    label: str

    @property
    def name(self) -> str:
        """Of its folder: what determines the model, the ledger and which rounds were evaluated."""
        run = self.experiment
        return f"{run.algorithm}-{run.identifier().hex()}-every{run.run.evaluate_every}"

    @property
    def title(self) -> str:
        """The label and the seed."""
        return f"{self.label} · seed {self.experiment.seed}"


def read_sweep(path: Path, assignments: Sequence[str] = ()) -> list[Point]:
    """The runs of a sweep file, or of a preset's name; seed by seed, so that an unfinished sweep has all methods.

    assignments: ``table.key=value``, on top of the base. Raises ConfigError naming the file and what it cannot mean.
    """
    if not path.exists() and str(path) in presets.NAMES:
        table = parse_toml(presets.text(str(path)).encode(), f"{path}: not valid TOML")
    elif not path.exists():
        raise ConfigError(
            f"{path}: no such file{nearest(str(path), presets.NAMES)}; give a sweep's TOML file, or the name of one "
            f"that is built in: {', '.join(presets.NAMES)}"
        )
    else:
        table = read_toml(path)
    return points(table, assignments, path)


def points(table: Table, assignments: Sequence[str], path: Path) -> list[Point]:
    """The runs of a sweep's tables. path: where they stood, for a relative ``base`` and for errors."""
    if unknown := [key for key in table if key not in KEYS]:
        raise ConfigError(
            f"{path}: unknown key {shown(unknown[0])}{nearest(unknown[0], KEYS)}; keys of a sweep: {', '.join(KEYS)}"
        )
    base = overlay(_base(table.get("base", {}), path), assigned(assignments))
    grid, variants = _grid(table.get("grid", {}), path), _variants(table.get("variants", [{}]), path)
    seeds = _seeds(table.get("seeds", [base.get("seed", 0)]), path)
    if (count := prod(map(len, grid.values())) * len(variants) * len(seeds)) > MOST:
        raise ConfigError(f"{path}: {count} runs; give at most {MOST} at a time")
    cells = [
        (variant, dict(zip(grid, values, strict=True))) for variant in variants for values in product(*grid.values())
    ]
    made = [_experiment(base, variant, cell, path) for variant, cell in cells]
    found = [Point(one, label) for one, label in zip(made, told_apart(list(map(identity, made))), strict=True)]
    _refuse_twins(found, path)
    return [
        Point(msgspec.structs.replace(point.experiment, seed=seed), point.label) for seed in seeds for point in found
    ]


def _experiment(base: Table, variant: Table, cell: Table, path: Path) -> Experiment:
    """Of any seed."""
    table = base
    for above in (variant, _tables(cell), {"seed": 0, "run": {"baseline": False}}):
        table = overlay(table, above)
    try:
        return from_table(table)
    except ConfigError as error:
        where = ", ".join([f"{key} = {shown(value)}" for key, value in (variant | cell).items()] or ["the base"])
        raise ConfigError(f"{path}: {where}: {error}") from None


def _refuse_twins(found: Sequence[Point], path: Path) -> None:
    names: dict[str, Point] = {}
    for point in found:
        if (twin := names.setdefault(point.name, point)) is not point:
            raise ConfigError(
                f"{path}: two runs are the same experiment ({twin.label}); leave out a value that occurs twice, or a "
                "key that changes nothing in a run, such as run.workers"
            )


def _base(given: Any, path: Path) -> Table:
    if isinstance(given, str):
        return read_toml(path.parent / given)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: base = {shown(given)}: expected the path of an experiment, or a table [base]")
    return given


def _seeds(given: Any, path: Path) -> list[int]:
    seeds = list(range(given)) if type(given) is int and 0 < given <= MOST else given
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds)
    ):
        raise ConfigError(
            f"{path}: seeds = {shown(given)}: expected their number, at most {MOST}, or a list of whole numbers >= 0"
        )
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds = {shown(given)}: a seed occurs twice; leave it out")
    return seeds


def _grid(given: Any, path: Path) -> dict[str, list[Any]]:
    """Dotted key -> its values; a key may also stand without quotes, which TOML reads as tables in each other."""
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: grid = {shown(given)}: expected a table [grid] of lists")
    grid = dict(_lists(given, ""))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid {key} = {shown(values)}: expected a list of values, for example [1, 4]")
        if key == "seed":
            raise ConfigError(f"{path}: grid seed: seeds are averaged, so give seeds = {shown(values)} above [grid]")
    return grid


def _lists(table: Table, before: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _lists(value, f"{before}{key}.")
        else:
            yield before + key, value


def _variants(given: Any, path: Path) -> list[Table]:
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise ConfigError(f"{path}: variants = {shown(given)}: expected tables [[variants]]")
    return [_tables(one) for one in given]


def _tables(dotted: Table) -> Table:
    """Quoted dotted keys as tables."""
    table: Table = {}
    for key, value in dotted.items():
        table = merged(table, nested(key.split("."), value))
    return table
