"""Flower's simulation on Ray: its FedAvg, an actor for each core, and no evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flower_client import PROBLEM
from flower_client import app as client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from given import Clock, Given, finish


class Rounds(FedAvg):
    """FedAvg with the cohorts that are given; any node can play any client, because none keeps a state."""

    def __init__(self, given: Given) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self.given, self.clock = given, Clock()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        cohort = self.given.cohorts[server_round - 1].tolist()
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < len(cohort):
            nodes = sorted(grid.get_node_ids())
        if server_round == 1:
            self.clock.start()
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})}),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
            )
            for node, client in zip(nodes, cohort, strict=False)
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        found = super().aggregate_train(server_round, replies)
        self.clock.tick()
        return found


def main() -> None:
    path = str(Path(sys.argv[1]).resolve())
    os.environ[PROBLEM] = path
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    given, ended = Given.read(path), []
    strategy, server_app, cores = Rounds(given), ServerApp(), len(os.sched_getaffinity(0))

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        result = strategy.start(grid, ArrayRecord([given.initial]), num_rounds=given.rounds)
        ended.extend(result.arrays.to_numpy_ndarrays())

    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(given.offsets) - 1,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores, "include_dashboard": False},
        },
    )
    finish(sys.argv[2], strategy.clock, np.asarray(ended[0]), "flwr", f"ray, {cores} actors")


if __name__ == "__main__":
    main()
