"""What one end takes of a prepared experiment."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedsim.algorithms.whitening import Off
from fedsim.compression import ValuesLayout
from fedsim.data import Federation
from fedsim.errors import ConfigError, DataError
from fedsim.experiment import Experiment
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State, initial_state
from fedsim.solvers.rate import Salr


def check(experiment: Experiment) -> None:
    """Raise ConfigError for what only the simulator can do so far."""
    if not isinstance(experiment.whitening, Off):
        mode = experiment.whitening.__struct_config__.tag
        raise ConfigError(
            f"whitening.mode = {mode!r} runs in the simulator only; use whitening.mode = 'off' to deploy, "
            "where clients may still whiten by themselves with direction.kind = 'whitened'"
        )
    for key, value, deployed in (
        ("downlink.memory", experiment.downlink.memory, "none"),
        ("uplink.correction", experiment.uplink.correction, 1.0),
        ("uplink.synchronise", experiment.uplink.synchronise, 0.0),
    ):
        if value != deployed:
            raise ConfigError(f"{key} = {value!r} runs in the simulator only; use {key} = {deployed!r} to deploy")
    if isinstance(experiment.rate, Salr) and experiment.rate.level == "server":
        raise ConfigError("rate.level = 'server' runs in the simulator only; use rate.level = 'client' to deploy")


def part_of(setup: Setup, client: int) -> Setup:
    """What a client needs: its own samples, solved by themselves, which is the sequential reference.

    Raises DataError when they are elsewhere.
    """
    own = own_samples(setup.federation, client)
    if not len(own.targets):
        raise DataError(f"client {client}'s data is not here; start its node with data='/path/of/it' in --node-config")
    return replace(setup, federation=own, plan=replace(setup.plan, chunk=1), workers=None, kept=[])


def own_samples(federation: Federation, client: int) -> Federation:
    """A federation in which all other clients have nothing, and this one copies of its samples."""
    shard = federation.shard(client)
    offsets = torch.zeros(federation.clients + 1, dtype=torch.int64)
    offsets[client + 1 :] = len(shard)
    return Federation(
        shard.features.clone(), shard.targets.clone(), offsets, None, shard.classes, f"{federation.name}, {client}"
    )


def whole(setup: Setup) -> ValuesLayout:
    """A model or a memory as it is sent in full."""
    return ValuesLayout(setup.task.dim, setup.weights.dtype)


def server_state(setup: Setup) -> State:
    """Before the first round: error rows are the clients' own, and under pp1 the method itself keeps the memories."""
    state = initial_state(setup)
    memory = state.store.memory if state.server.memories is None else None
    return State(state.server, replace(state.store, memory=memory, error=None), state.updates)
