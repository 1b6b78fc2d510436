"""Loss against bytes: what each recipe, with the compressors and steps that suit it, pays to come down to a loss.

Bytes are those of all frames, both ways, headers, first models and catching up included. A recipe is played as it is
and in the ``VARIANTS`` that give it finer or sparser messages, each at a few multiples of its step; a run ends when it
has reached the lowest target, or has played its rounds, or has sent what plain ``sgd`` is allowed. One seed.

a9a      logistic regression, d = 124, its 20 published clusters, all of them in every round, full gradients
digits   softmax regression, d = 650, 100 clients with very different labels, 20 of them in a round, full gradients
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedsim import Experiment
from fedsim.algorithms.recipes import RECIPES
from fedsim.errors import ConfigError, DivergedError
from fedsim.experiment import from_table, overlay
from fedsim.ledger import Direction
from fedsim.simulation.setup import prepare
from tests.replication.experiments import CLIENTS
from tests.replication.measure import course, minimum, objective

Table = dict[str, Any]

EVERY = 5
"""Rounds between evaluations."""

LONG = 4
"""Recipes with local steps do more in a round, and get so many times fewer rounds."""


def quantized(up: int, down: int) -> Table:
    """Levels of s-quantization each way."""
    return {"uplink": {"levels": up}, "downlink": {"levels": down}}


def both(**channel: Any) -> Table:
    """The same compressor each way."""
    return {"uplink": channel, "downlink": channel}


def sparse(kind: str, fraction: float, levels: int) -> Table:
    """Some coordinates, with quantized numbers."""
    return {"compressor": kind, "fraction": fraction, "values": {"compressor": "quantize", "levels": levels}}


LEVELS = {f"s={up}/{down}": quantized(up, down) for up, down in ((4, 4), (4, 16), (16, 16))}
ROTATED = {
    f"eden, {bits} bits": both(compressor="eden", bits=bits) | {"server": {"normalise": "registered"}}
    for bits in (2, 4)
}
DRAWN = {"rand-k 1/4, s=16": both(**sparse("rand-k", 0.25, 16))}
CHOSEN = {f"top-k {share:g}, s=16": sparse("top-k", share, 16) for share in (0.1, 0.3)}

VARIANTS: dict[str, dict[str, Table]] = {
    "diana": {"s=4": {"uplink": {"levels": 4}}},
    "artemis": LEVELS | DRAWN,
    "mcm": LEVELS | ROTATED | DRAWN,
    "rand-mcm": LEVELS,
    "dore": {"s=4/4": LEVELS["s=4/4"], "s=16/16": LEVELS["s=16/16"]},
    "ef21": {name: {"uplink": chosen} for name, chosen in CHOSEN.items()},
    "ef21-bc": {name: {"uplink": chosen, "downlink": chosen} for name, chosen in CHOSEN.items()},
    "ef21-p-diana": {f"s=4 / {name}": {"uplink": {"levels": 4}, "downlink": it} for name, it in CHOSEN.items()},
    "stc": {f"{share:g}": both(fraction=share) for share in (0.2, 0.5)},
    "fedpaq": {"s=16": {"uplink": {"levels": 16}}},
    "artemis-rr": {"s=16/16": LEVELS["s=16/16"]},
}
"""Compressors besides a recipe's own, by recipe and name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is learned. tables: of the experiment; targets: F - F*, falling; rounds: at most so many; multiples: of a
    recipe's own step, that are tried.
    """

    name: str
    tables: Table
    targets: tuple[float, ...]
    rounds: int
    multiples: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. setting: its compressors in words; multiple: of its recipe's step."""

    recipe: str
    setting: str
    multiple: float
    experiment: Experiment


@dataclass(frozen=True, slots=True)
class Point:
    """After so many rounds: bytes of all frames up and down so far, and F - F*."""

    rounds: int
    up: int
    down: int
    excess: float

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.up + self.down


@dataclass(frozen=True, slots=True)
class Curve:
    """What came of a trial, evaluation by evaluation. ended: why it was refused or ended early, or nothing."""

    trial: Trial
    points: tuple[Point, ...]
    ended: str = ""

    def reach(self, target: float) -> Point | None:
        """The first point at or below a target."""
        return next((point for point in self.points if point.excess <= target), None)


def problems(libsvm: Path) -> dict[str, Problem]:
    """By name. libsvm: the folder of a9a."""
    a9a = {
        "data": {"source": "libsvm", "path": str(libsvm / "a9a.gz")},
        "partition": {"scheme": "clusters", "clients": CLIENTS, "file": str(libsvm / "a9a.clusters20.txt")},
        "participation": {"scheme": "full"},
    }
    return {
        "a9a": Problem("a9a", a9a, (0.1, 0.03, 0.01, 0.003), 200, (1, 4, 16)),
        "digits": Problem("digits", {}, (1.0, 0.5, 0.3, 0.2), 300, (1, 3, 9, 27, 81)),
    }


def trials(problem: Problem, recipes: Sequence[str] = ()) -> Iterator[Trial]:
    """All of them, or those of some recipes."""
    for recipe in recipes or RECIPES:
        settings = {"as it is": {}} | VARIANTS.get(recipe, {})
        for setting, tables in settings.items():
            for multiple in problem.multiples:
                yield Trial(recipe, setting, multiple, experiment(problem, recipe, tables, multiple))


def experiment(problem: Problem, recipe: str, tables: Table, multiple: float) -> Experiment:
    """A recipe with other compressors and another step. Raises ConfigError for what is refused."""
    own = Experiment.of(algorithm=recipe)
    local = own.local.epochs or own.local.steps > 1
    run = {"evaluate_every": 1 if local else EVERY}
    table: Table = {"algorithm": recipe, "rounds": problem.rounds // (LONG if local else 1), "run": run}
    for layer in (problem.tables, tables, step(own, multiple)):
        table = overlay(table, layer)
    return from_table(table)


def step(own: Experiment, multiple: float) -> Table:
    """``multiple`` of a recipe's step: of the clients' where the server only averages models."""
    if own.local.send == "difference":
        return {"local": {"step": f"{multiple}/L", "batch": own.local.batch or 128}}
    given = own.server.step
    return {"server": {"step": f"{multiple}/L" if isinstance(given, str) else multiple * given}}


def play(trial: Trial, targets: Sequence[float], allowed: int = 0) -> Curve:
    """Run a trial until it has reached the last target or sent more than ``allowed`` bytes (0: any)."""
    points, ended = list[Point](), ""
    try:
        with closing(prepare(trial.experiment)) as setup:
            floor = minimum(trial.experiment)
            for simulation, ledger in course(setup):
                up, down = (ledger.cost(way).frame_bytes for way in (Direction.UP, Direction.DOWN))
                excess = objective(setup, simulation.server.model) - floor
                points.append(Point(simulation.server.round, up, down, excess))
                if excess <= targets[-1] or 0 < allowed < up + down:
                    break
    except (ConfigError, DivergedError) as error:
        ended = str(error)
    return Curve(trial, tuple(points), ended)


def curves(problem: Problem, processes: int, recipes: Sequence[str] = ()) -> list[Curve]:
    """All trials, spread over processes; plain ``sgd`` first, whose bytes are the most that others may send."""
    some = list(trials(problem, recipes))
    plain = [play(trial, problem.targets) for trial in some if trial.recipe == "sgd"]
    allowed = max((curve.points[-1].bytes for curve in plain if curve.points), default=0)
    others = [trial for trial in some if trial.recipe != "sgd"]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return plain + list(pool.map(partial(play, targets=problem.targets, allowed=allowed), others))


def front(some: Iterable[Curve]) -> list[tuple[Point, Trial]]:
    """The Pareto front, by bytes: points than which no other, of any curve, has both fewer bytes and less excess.

    The start, where nothing has been sent, is nobody's.
    """
    every = sorted(
        ((point, curve.trial) for curve in some for point in curve.points if point.bytes),
        key=lambda pair: (pair[0].bytes, pair[0].excess),
    )
    best: list[tuple[Point, Trial]] = []
    for point, trial in every:
        if not best or point.excess < best[-1][0].excess:
            best.append((point, trial))
    return best


def best(some: Iterable[Curve], target: float) -> tuple[Point, Trial] | None:
    """The cheapest way to a target."""
    reached = [(point, curve.trial) for curve in some if (point := curve.reach(target)) is not None]
    return min(reached, key=lambda pair: pair[0].bytes, default=None)


def lines(problem: Problem, some: Sequence[Curve]) -> Iterator[str]:
    """The table of a problem: a line a recipe, cheapest to the last target first; then the front."""
    recipes = dict.fromkeys(curve.trial.recipe for curve in some)
    mine = {name: [curve for curve in some if curve.trial.recipe == name] for name in recipes}
    cheapest = {target: best(some, target) for target in problem.targets}
    ahead: dict[str, int] = {}
    for _, trial in front(some):
        ahead[trial.recipe] = ahead.get(trial.recipe, 0) + 1
    yield f"{problem.name}: kB, both ways, to F - F* = ... (* the fewest)"
    yield f"{'':26s}" + "".join(f"{target:>11g}" for target in problem.targets) + "   rounds  setting of the last one"
    for name in sorted(recipes, key=lambda name: rank(problem, mine[name])):
        cells, last = "", None
        for target in problem.targets:
            found = best(mine[name], target)
            last = found or last
            star = "*" if found and found == cheapest[target] else " "
            cells += f"{found[0].bytes / 1000:10.1f}{star}" if found else f"{'-':>10s} "
        how = f"{last[0].rounds:6d}  {last[1].setting}, step x {last[1].multiple:g}" if last else f"{'-':>6s}"
        yield f"{name:26s}{cells}   {how}"
    shares = ", ".join(f"{name} ({count})" for name, count in sorted(ahead.items(), key=lambda pair: -pair[1]))
    refused: dict[tuple[str, str], list[Curve]] = {}
    for curve in some:
        if not curve.points:
            refused.setdefault((curve.trial.recipe, curve.trial.setting), []).append(curve)
    for (name, setting), group in refused.items():
        steps = ", ".join(f"{curve.trial.multiple:g}" for curve in group)
        yield f"refused: {name}, {setting}, step x {steps}: {group[-1].ended}"
    yield f"on the Pareto front, of {sum(ahead.values())} points: {shares}"


def rank(problem: Problem, some: Sequence[Curve]) -> tuple[int, int]:
    """To sort recipes: how many targets are missed, then the bytes to the last one that is not."""
    reached = [found[0].bytes for target in problem.targets if (found := best(some, target)) is not None]
    return len(problem.targets) - len(reached), reached[-1] if reached else 0


COLUMNS = ("problem", "recipe", "setting", "multiple", "round", "up_bytes", "down_bytes", "excess", "front")


def write(path: Path, found: Mapping[str, Sequence[Curve]]) -> None:
    """Every point of every curve as CSV; ``front`` is 1 on the Pareto front of its problem."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, some in found.items():
            ahead = {(id(trial), point) for point, trial in front(some)}
            for curve in some:
                trial = curve.trial
                for point in curve.points:
                    numbers = (point.rounds, point.up, point.down, f"{point.excess:.6g}")
                    is_front = int((id(trial), point) in ahead)
                    writer.writerow((name, trial.recipe, trial.setting, trial.multiple, *numbers, is_front))


def table(libsvm: Path, processes: int, out: Path, names: str = "", recipes: Sequence[str] = ()) -> int:
    """Print the tables, write ``out``. names: only problems that begin so. Returns 0: nothing is published to miss."""
    found = {}
    for problem in problems(libsvm).values():
        if problem.name.startswith(names):
            found[problem.name] = curves(problem, processes, recipes)
            print("\n".join(lines(problem, found[problem.name])), flush=True)
    write(out, found)
    print(f"every point: {out}")
    return 0
