"""The Flower ClientApp: it hands the frames of a call to whoever computes for this node's clients, and returns theirs.

    node config   partition-id, num-partitions   the node hosts every client that is the first, modulo the second
                  worker = "unix:/path"          a long-lived worker on this machine; this process never imports torch
                  allow-code = true              without a worker: call the Python functions that an experiment names
                  data = "/path"                 what its client brings to experiments with data.source = "own"
    run config    experiment                     TOML text; empty: the default experiment
                  directory                      where an experiment's relative paths begin; empty: where this runs

Without a worker the clients live in this process, and what they must remember in the node's state at Flower, which
outlives the process but not the node. In Flower's simulation, whose nodes have no config of their own, the clients are
the submitter's own processes, and may call what the experiment names.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from importlib.metadata import version
from typing import cast

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from client import records
from client.records import Hello
from fedsim.ends import own
from fedsim.ends.answer import Answer
from fedsim.errors import FedsimError

FAILED = 2
"""Flower's code for a ClientApp that has failed."""

UNNUMBERED = -1
"""The partition of a node whose node config names none."""

log = logging.getLogger("flwr")
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Play this node's part of a round."""
    try:
        answer = _play(context, records.call_of(message.content), message.metadata.ttl)
    except FedsimError as error:
        why = " ".join(str(error).split())
        log.warning("fedsim: %s", why)
        return Message(Error(FAILED, why), reply_to=message)
    return Message(records.of_answer(answer.replies, answer.troubles), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which clients this node hosts, and whether it can serve the experiment, which is then prepared."""
    trouble = ""
    try:
        _play(context, (), message.metadata.ttl)
    except FedsimError as error:
        trouble = str(error)
        log.warning("fedsim: %s", trouble)
    numbers = (context.node_config.get(key, UNNUMBERED) for key in ("partition-id", "num-partitions"))
    partition, partitions = (number if type(number) is int else UNNUMBERED for number in numbers)
    return Message(records.of_hello(Hello(partition, partitions, version("fedsim"), trouble)), reply_to=message)


def _play(context: Context, frames: Sequence[bytes], seconds: float) -> Answer:
    experiment = own.bound(str(context.run_config.get("experiment", "")), context.node_config)
    if worker := context.node_config.get("worker"):
        from fedsim.worker.relay import play

        return play(str(worker), experiment, frames, seconds)
    from fedsim.ends.host import Host
    from fedsim.ends.store import Drawer
    from fedsim.ends.trust import Trust

    if directory := context.run_config.get("directory"):
        os.chdir(str(directory))
    kept = cast(MutableMapping[str, bytes], context.state.config_records.setdefault("fedsim", ConfigRecord()))
    # A host for each call, as another process may have changed what is kept; the prepared experiment is the process's.
    allow_code = context.node_config.get("allow-code") is True or _simulated()
    return Host(lambda run, client: Drawer(kept, run, client), trust=Trust(allow_code)).play(experiment, frames)


def _simulated() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
