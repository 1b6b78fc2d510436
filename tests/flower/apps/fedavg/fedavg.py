"""Flower's own FedAvg loop, with no work at the clients: they send back what they got, a little changed.

Run configuration: rounds; nodes; shapes, such as "1000" or "784x128 128 128x10 10", one array each; result, the file
for a line a round: when it began and when it ended.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


class Timed(FedAvg):
    """FedAvg that notes the instants at which its rounds begin and end; nothing else differs."""

    file: Path

    def configure_train(self, server_round: int, *rest: Any) -> Any:
        self.began = time.time()
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        averaged = super().aggregate_train(server_round, replies)
        with self.file.open("a") as file:
            file.write(json.dumps({"round": server_round, "began": self.began, "ended": time.time()}) + "\n")
        return averaged


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of training only: an evaluation would be a second message a round."""
    config, draw = context.run_config, np.random.default_rng(0)
    arrays = [
        draw.standard_normal([int(n) for n in shape.split("x")], dtype=np.float32)
        for shape in str(config["shapes"]).split()
    ]
    nodes = int(config["nodes"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.file = Path(str(config["result"]))
    strategy.start(grid, ArrayRecord(arrays), num_rounds=int(config["rounds"]))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Every client's model differs, so that no upload is another's (Flower stores equal objects once)."""
    shift = np.float32(1e-3 * (1 + int(context.node_config["partition-id"])))
    arrays = [array + shift for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
