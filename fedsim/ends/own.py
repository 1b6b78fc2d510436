"""A client's own data, as its node config names it: the experiment as this machine sees it. Needs no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from fedsim.errors import ConfigError


def bound(experiment: str, config: Mapping[str, Any]) -> str:
    """The text of an experiment whose clients bring their data, with the path of this node's in it; else as it is.

    experiment: TOML text; config: of the node. Raises ConfigError for a node that says nothing of its data, or that is
    not one client's.
    """
    try:
        table = tomllib.loads(experiment)
    except tomllib.TOMLDecodeError:
        return experiment  # to whoever computes, who says what is wrong with it
    data = table.get("data")
    if not isinstance(data, dict) or data.get("source") != "own" or not isinstance(data.get("samples"), list):
        return experiment
    path, clients = config.get("data"), len(data["samples"])
    if path is None:
        if data.get("paths"):
            return experiment
        raise ConfigError("clients bring their own data; start this node with data='/path/of/it' in --node-config")
    number, nodes = config.get("partition-id"), config.get("num-partitions")
    if nodes != clients or type(number) is not int or not 0 <= number < clients:
        raise ConfigError(
            f"partition-id {number} of num-partitions {nodes} brings data, but the experiment has {clients} clients, a "
            f"node for each; start this one with num-partitions={clients}"
        )
    if not str(path).startswith("/"):
        raise ConfigError(f"data = {str(path)!r} in the node config: expected a path that begins with /")
    paths = [str(path) if client == number else "" for client in range(clients)]
    return tomli_w.dumps({**table, "data": {**data, "paths": paths, "test": ""}})
