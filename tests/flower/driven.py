"""Runs on Flower's apps in this process, and what they leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict, UserConfig

from client.app import app as client_app
from fedsim.experiment import Experiment
from fedsim.simulation.spread import MEASURES as SPREAD
from server.app import app as server_app
from server.inprocess import SERVER, InProcessGrid

Order = Callable[[list[Message]], Iterable[Message]]

LINEAR = {"data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 5}}
HALF = {"scheme": "bernoulli", "p": 0.5}
ARTEMIS: dict[str, Any] = {**LINEAR, "participation": HALF, "rounds": 12, "seed": 3}
NASTYA: dict[str, Any] = {**LINEAR, "algorithm": "diana-nastya", "participation": HALF, "rounds": 8, "seed": 3}


def experiment(tables: dict[str, Any], **more: Any) -> Experiment:
    return Experiment.of(**{**tables, "run": {"executor": "sequential", "evaluate_every": 3}, **more})


def config_of(given: Experiment, folder: Path) -> UserConfig:
    return {"experiment": given.toml(), "folder": str(folder)}


def grid_of(given: Experiment, folder: Path, nodes: int, order: Order = list) -> InProcessGrid:
    return InProcessGrid(client_app, config_of(given, folder), nodes, order)


def play(grid: InProcessGrid, given: Experiment, folder: Path) -> None:
    server_app(grid, Context(1, SERVER, {}, RecordDict(), config_of(given, folder)))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


OWN = {"gradients", *SPREAD}
"""What only a simulation knows: the clients' own."""


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OWN} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    assert_same_files(one, other, "model.safetensors", "ledger.csv", "experiment.toml")
    assert metrics(one) == metrics(other)


def assert_same_files(one: Path, other: Path, *names: str) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
