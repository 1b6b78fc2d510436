"""What one end takes of a prepared experiment."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedsim.compression import ValuesLayout
from fedsim.data import Federation
from fedsim.errors import ConfigError, DataError
from fedsim.experiment import Experiment
from fedsim.network import Untimed
from fedsim.simulation.lossless import needs_all
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State, initial_state


def check(experiment: Experiment) -> None:
    """Raise ConfigError for what only the simulator can do so far."""
    if (found := needs_all(experiment)) is not None:
        alone = ", where clients may still whiten by themselves with direction.kind = 'whitened'"
        raise ConfigError(
            f"{found.key} = {found.value!r} runs in the simulator only; use {found.key} = {found.instead!r} to deploy"
            + (alone if found.key == "whitening.mode" else "")
        )
    if not isinstance(experiment.network, Untimed) and experiment.network.deadline_s:
        raise ConfigError(
            f"network.deadline_s = {experiment.network.deadline_s} is of simulated seconds; drop it to deploy, where "
            "deploy.deadline_s is of real ones"
        )


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
