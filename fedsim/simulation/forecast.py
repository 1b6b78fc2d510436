"""The cost of an experiment before it runs: the cohorts it will draw, messages as long as those of a Gaussian row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedsim.algorithms.artemis import Cohort
from fedsim.compression import Compressor
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry, Ledger, Lines
from fedsim.randomness import Purpose, Stream
from fedsim.simulation import sharpness, whitening
from fedsim.simulation.downlink import deliver, own_lines
from fedsim.simulation.exchange import Lengths, framed, uplink_lines
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import NEVER, State, initial_state
from fedsim.wire import coding
from fedsim.wire.frame import HEADER_BYTES

SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Forecast:
    """totals: by direction and kind. clients: N. round_formula_bits: of a round in which all N take part and miss none.

    uncompressed_bytes: what the same frames would weigh if each carried d float32 numbers.
    """

    totals: dict[tuple[Direction, Entry], Cost]
    clients: int
    round_formula_bits: float
    uncompressed_bytes: int


def forecast(experiment: Experiment) -> Forecast:
    """What the ledger of a run will say, exact but for the length of quantized messages."""
    setup = prepare(experiment)
    state, ledger, d = initial_state(setup), Ledger(), setup.task.dim
    up, down = setup.method.uplink.compressor, setup.method.downlink.compressor
    up_bytes, down_bytes = typical_bytes(up, d), typical_bytes(down, d)
    (up_bits, up_shared), (down_bits, down_shared) = up.formula_bits(d), down.formula_bits(d)
    for t in range(experiment.rounds):
        state.server = replace(state.server, round=t)
        cohort = setup.cohort(t)
        n = len(cohort.clients)
        for lines in [
            *_brought(setup, state, cohort, down_bytes),
            *whitening.expected(setup, state, cohort),
            *sharpness.expected(setup, cohort, t),
        ]:
            ledger.add(lines)
        in_full = setup.synchronised(t)
        if n and (in_full or (t == 0 and experiment.uplink.initial == "gradient")):
            ledger.add(
                uplink_lines(t, Entry.MEMORY, cohort, _lengths(n, d * state.server.model.element_size()), 32.0 * d)
            )
        if n and not in_full:
            ledger.add(uplink_lines(t, Entry.UPLOAD, cohort, _lengths(n, up_bytes), up_bits + up_shared / n))
        state.updates.add(down_bytes + sharpness.step_bytes(setup))
    return Forecast(
        totals=ledger.totals,
        clients=setup.clients,
        round_formula_bits=setup.clients * (up_bits + down_bits) + up_shared + down_shared,
        uncompressed_bytes=ledger.cost().frames * (HEADER_BYTES + 4 * d),
    )


def _brought(setup: Setup, state: State, cohort: Cohort, message: int) -> list[Lines]:
    """The ledger's lines of what comes down. message: bytes of a client's own, where each has one."""
    if not setup.method.downlink.each:
        return deliver(setup, state, cohort)
    known = state.store.seen[cohort.clients.cpu().numpy()] != NEVER
    return own_lines(setup, state, cohort, np.full(int(known.sum()), message))


def typical_bytes(compressor: Compressor, d: int) -> int:
    """Mean length of the encoding of a Gaussian row of ``d`` coordinates; exact where the length does not vary."""
    rows = torch.randn((SAMPLES, d), generator=torch.Generator().manual_seed(0))
    payload = compressor.compress(rows, Stream(0, Purpose.UPLINK), torch.arange(SAMPLES))
    return round(int(coding.size(payload).sum()) / 8 / SAMPLES)


def _lengths(n: int, body: int) -> Lengths:
    return framed(np.full(n, body))
