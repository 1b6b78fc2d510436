"""A round that ends at a deadline: who is late has computed for nothing, as if its upload were lost on the way.

How long an upload takes is known once it is compressed, so it is compressed before it is known whether it arrives. For
who is late nothing changes, at neither end: its memory, error and solver are those of before, and the server takes it
to hold what it held, since nobody has said that the call arrived. So a run is that of a deployment whose replies were
late in the same rounds. Frames down are in the ledger, uploads that were late are not.

Slow clients take part less often than their probability says: the mean over the cohort leans to the quick ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Cohort
from fedsim.ledger import Entry, Lines
from fedsim.randomness import Purpose
from fedsim.simulation.exchange import framed, message_bytes, uplink_lines
from fedsim.simulation.network import columns_of
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State
from fedsim.solvers.local import Solution


def kept(
    setup: Setup, state: State, cohort: Cohort, seen: NDArray[np.int64], done: tuple[Sequence[Lines], Solution]
) -> tuple[Cohort, Solution]:
    """Who is in time, and what they computed; the server's end of the others' links is put back.

    seen: int64[n], the rounds whose models the cohort held; done: what it was sent since, and what it computed.
    """
    assert setup.clock is not None
    lines, solution = done
    t, ids, rows = state.server.round, cohort.clients, state.store.take(cohort.clients)
    noise = setup.stream(Purpose.UPLINK, t)
    payload, _ = artemis.upload(setup.method, rows, solution.direction, ids, setup.step_of(t), noise)
    upload = uplink_lines(t, Entry.UPLOAD, cohort, framed(message_bytes(setup, payload)), 0.0)
    arrives = setup.clock.clients(columns_of([*lines, upload])).seconds <= setup.clock.deadline
    if arrives.all():
        return cohort, solution
    state.store.seen[ids.cpu().numpy()[~arrives]] = seen[~arrives]
    chosen, memories = torch.from_numpy(arrives), zip(solution.memories, arrives.tolist(), strict=True)
    return cohort.only(chosen.to(ids.device)), Solution(
        direction=solution.direction[chosen.to(ids.device)],
        losses=solution.losses,
        samples=solution.samples[chosen],
        gradients=solution.gradients[chosen],
        memories=tuple(memory for memory, arrived in memories if arrived),
    )
