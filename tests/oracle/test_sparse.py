"""Quantization in place gives the bits of the torch form: levels, norms, memories, lengths and weighted sums.

Every quantizer goes through it here, also those whose rows are too full for it to pay, by one thread and by several.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Cohort
from fedsim.algorithms.method import Downlink, Method, ServerOptions, Uplink
from fedsim.compression import Identity, Quantize, Sparse, compress_difference, send, sparse, weighted_sums
from fedsim.compression.payload import LevelsLayout
from fedsim.experiment import Experiment
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.engine import play
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state, to_tensors
from fedsim.wire import coding
from tests.oracle.test_kernels import cohorts, finite, octets, same, torch_form

Given = tuple[Tensor, Tensor, Quantize, Stream, Tensor]


@settings(max_examples=400)
@given(cohorts(), st.floats(2.0**-20, 1.0), st.integers(1, 3), st.integers(0, 2**32), st.integers(1, 3))
def test_in_place(cohort: Given, rate: float, threads: int, seed: int, sums: int) -> None:
    rows, old, quantizer, stream, _ = cohort
    generator = torch.Generator().manual_seed(seed)
    clients = torch.randperm(5, generator=generator)[: len(rows)].sort().values
    memories = torch.randn((5, rows.shape[1]), generator=generator, dtype=rows.dtype)
    if seed % 2:
        memories[torch.rand(memories.shape, generator=generator) < 0.3] = -0.0
    else:
        memories[clients] = old
    expected, before = memories.clone(), memories.clone()
    with torch_form():
        found = finite(lambda: compress_difference(quantizer, rows, before[clients], rate, stream, clients))
        bits = None if found is None else coding.size(found[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "SHARE", 1)
        patch.setattr(sparse, "pays", lambda *_: True)
        payload = finite(lambda: send(quantizer, rows, memories, rate, stream, clients, threads))
    if found is None:
        assert payload is None
        return
    expected[clients] = found[1]
    assert payload is not None
    assert bits is not None
    assert same(payload.dense(), found[0])
    assert octets(memories) == octets(expected)
    assert octets(coding.size(payload)) == octets(bits)
    if len(rows):
        weights = torch.rand((sums, len(rows)), generator=generator, dtype=rows.dtype)
        with torch_form():
            slow = weighted_sums(quantizer, found[0], weights)
            assert octets(weighted_sums(quantizer, payload, weights)) == octets(slow)
        assert octets(weighted_sums(quantizer, payload, weights)) == octets(slow)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("tiny", [False, True])
def test_weighted_sums_of_many_clients(n: int, tiny: bool) -> None:
    """Several portions of columns, and products that vanish: -0.0 is left only where every client has it."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn((n, 3000), generator=generator) * (1e-38 if tiny else 1)
    rows[:, :5] = torch.tensor([-1e3, 1e3, -1e-30, 0, -0.0]) * rows.abs().amax()
    weights = torch.rand((2, n), generator=generator) * (1e-9 if tiny else 1)
    quantizer, stream, clients = Quantize(1), Stream(n, Purpose.UPLINK), torch.arange(n)
    payload = send(quantizer, rows, torch.zeros_like(rows), 0.5, stream, clients, 1)
    assert payload is not None
    dense = quantizer.compress(rows, stream, clients)
    assert same(payload.dense(), dense)
    assert octets(weighted_sums(quantizer, payload, weights)) == octets(weighted_sums(quantizer, dense, weights))


def test_what_it_is_for() -> None:
    rows, stream, clients = torch.ones((2, 1000)), Stream(1, Purpose.UPLINK), torch.arange(2)
    memory = torch.zeros_like(rows)
    for compressor in (Identity(), Quantize(1, "linf"), Quantize(16), Quantize(1, bucket=16)):
        assert send(compressor, rows, memory, 0.5, stream, clients, 1) is None
    assert not memory.any()
    with torch_form():
        assert send(Quantize(1), rows, memory, 0.5, stream, clients, 1) is None
    assert isinstance(send(Quantize(1), rows, memory, 0.5, stream, clients, 1), Sparse)
    assert memory.any()


def test_what_does_not_fit_is_refused() -> None:
    rows, stream = torch.ones((2, 1000)), Stream(1, Purpose.UPLINK)
    layout = LevelsLayout(1000, 1, 1000)
    for memory, clients in (
        (torch.zeros(3, 999), torch.arange(2)),
        (torch.zeros(3, 1000, dtype=torch.float64), torch.arange(2)),
        (torch.zeros(3, 1000), torch.arange(3)),
        (torch.zeros(1000, 3).T, torch.arange(2)),
    ):
        with pytest.raises(ValueError, match=r"rows, memories and clients are .*, expected \[n, 1000\], contiguous"):
            sparse.quantize(rows, memory, 0.5, layout, False, stream, clients, 1)
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="but memories are those of 3"):
            sparse.quantize(rows, torch.zeros(3, 1000), 0.5, layout, False, stream, torch.tensor(wrong), 1)
    payload = sparse.quantize(rows, torch.zeros(3, 1000), 0.5, layout, False, stream, torch.arange(2), 1)
    assert payload is not None
    with pytest.raises(ValueError, match="3 weights do not fit 2 rows"):
        sparse.weighted_sums(payload, torch.ones(1, 3))


@pytest.mark.parametrize("memory", ["pp1", "pp2"])
def test_the_server_takes_it_as_the_dense_rows(memory: str) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, clients = torch.randn((3, 1000), generator=generator), torch.tensor([0, 2, 3])
    server = ServerOptions(memory="pp1" if memory == "pp1" else "pp2")
    method = Method(Uplink(Quantize(1), memory=True), Downlink(), server, 1000)
    payload = send(Quantize(1), rows, torch.zeros((4, 1000)), 0.5, Stream(1, Purpose.UPLINK), clients, 1)
    assert payload is not None
    cohort, noise = Cohort(clients, torch.full((3,), 0.25), 0.5), Stream(1, Purpose.DOWNLINK)
    begun = artemis.begin(method, torch.zeros(1000), 4)
    one, other = (artemis.absorb(method, begun, given, cohort, 1.0, noise)[0] for given in (payload, payload.dense()))
    for name in ("model", "memory", "memories"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None and theirs is None) or octets(mine) == octets(theirs)


@pytest.mark.parametrize("rows", ["memory", "disk"])
def test_a_run_is_that_of_real_messages(rows: str) -> None:
    """The engine quantizes in place where messages are counted, and makes and reads every one where they are real."""
    ended = []
    for wire in ("counted", "real"):
        experiment = Experiment.of(
            algorithm="artemis",
            rounds=4,
            data={"source": "synthetic-linear", "clients": 6, "per_client": 20, "features": 500},
            participation={"scheme": "bernoulli", "p": 0.5},
            run={"wire": wire, "rows": rows},
        )
        setup = prepare(experiment)
        state = initial_state(setup)
        bits = [lines.payload_bits.tolist() for _ in range(4) for lines in play(setup, state).lines]
        tensors = {name: octets(part) for name, part in to_tensors(state).items() if name != "digests"}
        ended.append((bits, tensors))
    assert ended[0] == ended[1]
    assert np.sum([sum(each) for each in ended[0][0]]) > 0
