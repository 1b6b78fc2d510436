"""Which samples a client's step uses.

    size 0   all of them
    size b   b distinct ones, drawn afresh in each step (the rule of the published Artemis code)

Sample j of client i has a key in each step, word j of the stream (seed, BATCH, round, step, i). The b smallest keys win
and ties go to the smaller j. So the choice depends on nothing else: not on the cohort, on padding or on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.randomness import Stream
from fedsim.tasks.task import Batch, full_batch

if TYPE_CHECKING:
    from fedsim.data.examples import Federation

Batches = Callable[[Stream], Batch]
"""The batch of one step, from the stream of that step."""

_LAST = 2**63 - 1


def choose(stream: Stream, clients: Tensor, sizes: Tensor, width: int, count: int) -> Tensor:
    """Positions within each client's samples, ascending, int64[n, count].

    clients, sizes: int64[n]; width >= the largest size. A client with fewer than ``count`` samples gets all of them and
    then ``width``, which is no sample.
    """
    places = torch.arange(width, device=clients.device)
    keys = stream.words(clients, width) << 31 | places
    keys = keys.masked_fill(places >= sizes[:, None], _LAST)
    if count == 1:
        return keys.argmin(dim=1, keepdim=True)
    chosen = keys.topk(min(count, width), dim=1, largest=False, sorted=False).indices
    return chosen.masked_fill(chosen >= sizes[:, None], width).sort(dim=1).values


def alone(federation: Federation, clients: Tensor, size: int, dtype: torch.dtype) -> Batches:
    """Batches of one client, int64[1] on the CPU, without padding; views of its samples where all of them are used."""
    shard = federation.shard(int(clients))
    features, targets = shard.features, shard.targets
    count = features.shape[0]
    if size == 0 or size >= count:
        whole = full_batch(features, targets, dtype)
        return lambda stream: whole
    client = clients.to(features.device)
    sizes = torch.full_like(client, count)

    def batch(stream: Stream) -> Batch:
        places = choose(stream, client, sizes, count, size)[0]
        return full_batch(features.index_select(0, places), targets.index_select(0, places), dtype)

    return batch
