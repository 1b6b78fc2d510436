"""Flower's client. In a module of its own, so that an actor imports it once and keeps the data and the model."""

from __future__ import annotations

import os
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from given import Given
from networks import network, row, tensors, train
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

PROBLEM = "PEERS_PROBLEM"
"""Environment variable with the path of the workload."""

app = ClientApp()


@cache
def held() -> tuple[Given, nn.Module, Tensor, Tensor]:
    torch.set_num_threads(1)
    given = Given.read(os.environ[PROBLEM])
    return given, network(given), *tensors(given)


@app.train()
def local(message: Message, context: Context) -> Message:
    """One client's epoch. The model travels as one array, which is what Flower is fastest with."""
    given, model, features, labels = held()
    client = int(message.content["config"]["client"])  # type: ignore[index,arg-type]
    (received,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    vector_to_parameters(torch.from_numpy(received.copy()), model.parameters())
    some = given.shard(client)
    train(model, features[some], labels[some], given.step, given.batch, given.scale(client))
    reply = {"arrays": ArrayRecord([row(model)]), "metrics": MetricRecord({"num-examples": given.size(client)})}
    return Message(RecordDict(reply), reply_to=message)
