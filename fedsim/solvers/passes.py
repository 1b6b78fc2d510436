"""A client's walk through its samples, pass after pass, in batches of b: see ``order`` for the short last batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from fedsim.solvers.order import Order
from fedsim.solvers.transfer import sent
from fedsim.tasks.task import Batch

if TYPE_CHECKING:
    from fedsim.data import Federation


def steps_of_a_pass(n: int, size: int) -> int:
    """Batches in a pass over n samples; size 0, or more than n: one batch of all."""
    return 1 if size == 0 else -(-n // size)


def walk(
    federation: Federation, client: int, size: int, order: Order, seed: int, dtype: torch.dtype
) -> Callable[[int], Batch]:
    """Number of a client's step, counted over all rounds -> its batch, of one row. A pass is ordered when it begins."""
    shard = federation.shard(client)
    n = len(shard)
    steps, device = steps_of_a_pass(n, size), shard.features.device
    b = min(size, n) or n
    current, places = -1, torch.zeros(0, dtype=torch.int64)

    def batch(k: int) -> Batch:
        nonlocal current, places
        epoch, j = divmod(k, steps)
        if epoch != current:
            current, places = epoch, sent(order(seed, client, n, epoch, federation.clients).numpy(), device)
        some = places[j * b : (j + 1) * b]
        weights = torch.full((1, 1), steps / n, dtype=dtype, device=device).expand(1, some.shape[0])
        return Batch(shard.features.index_select(0, some)[None], shard.targets.index_select(0, some)[None], weights)

    return batch
