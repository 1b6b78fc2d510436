"""Compiled kernels give the bits of the torch forms: random words, levels, norms, memories, lengths and estimates.

The torch form is what runs where ``kernels.available`` says no; it is made to say so here. Everything is compared as
bytes, on rows with zeros of both signs, denormals, huge and tiny numbers, whole rows of zeros, and cohorts of nobody.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedsim
from fedsim import kernels
from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients
from fedsim.algorithms.method import Downlink, Method, ServerOptions, Uplink
from fedsim.compression import (
    Identity,
    Levels,
    LevelsLayout,
    Payload,
    Quantize,
    compress_difference,
    fused,
    weighted_sums,
)
from fedsim.errors import DivergedError, WireError
from fedsim.experiment import Experiment
from fedsim.flat import tree_sum
from fedsim.randomness import SERVER, Purpose, Stream
from fedsim.wire import coding

Value = TypeVar("Value")


@contextmanager
def torch_form() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda tensor: False)
        patch.setattr(kernels, "installed", lambda: False)
        yield


def both(compute: Callable[[], Value]) -> tuple[Value, Value]:
    """(kernel, torch form)."""
    found = compute()
    with torch_form():
        return found, compute()


def octets(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().numpy().tobytes()


def same(one: Payload, other: Payload) -> bool:
    assert isinstance(one, Levels)
    assert isinstance(other, Levels)
    return (one.layout, octets(one.levels), octets(one.norms)) == (
        other.layout,
        octets(other.levels),
        octets(other.norms),
    )


def test_the_kernels_are_used() -> None:
    """Otherwise this file compares the torch form with itself."""
    assert kernels.available(torch.zeros(1))
    assert not kernels.available(torch.zeros(1, device="meta"))
    with torch_form():
        assert not kernels.available(torch.zeros(1))


CLIENTS = st.lists(st.sampled_from([0, 1, 7, 2**31, SERVER]) | st.integers(0, SERVER), max_size=3).map(
    lambda ids: torch.tensor(ids, dtype=torch.int64)
)
STREAMS = st.builds(
    Stream,
    st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 - 1]) | st.integers(0, 2**63 - 1),
    st.sampled_from(list(Purpose)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**24 - 1),
)
WIDTHS = st.integers(0, 9) | st.sampled_from([1023, 1024, 1025, 3000])


@given(STREAMS, CLIENTS, WIDTHS, st.sampled_from([torch.float32, torch.float64]))
def test_words(stream: Stream, clients: Tensor, width: int, dtype: torch.dtype) -> None:
    one, other = both(lambda: stream.words(clients, width))
    assert octets(one) == octets(other)
    one, other = both(lambda: stream.uniform(clients, width, dtype))
    assert octets(one) == octets(other)


def test_words_of_the_last_blocks() -> None:
    """Philox by plain integers, at client and block numbers far out."""
    from fedsim.kernels import philox

    stream, mask = Stream(2**63 - 12345, Purpose.BATCH, 2**32 - 2, 2**24 - 1), 2**32 - 1
    out = np.zeros(8, np.uint32)
    seed, round, tag = stream.address
    philox.fill(out, seed, np.uint32(SERVER), round, tag, 2**32 - 2)
    for block in range(2):
        c = [2**32 - 2 + block, SERVER, 2**32 - 2, 2 + 256 * (2**24 - 1)]
        k0, k1 = stream.seed & mask, stream.seed >> 32
        for _ in range(10):
            p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [q >> 32 ^ c[1] ^ k0, q & mask, p >> 32 ^ c[3] ^ k1, p & mask]
            k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
        assert out[4 * block : 4 * block + 4].tolist() == c


SPECIAL = {
    torch.float32: [0.0, -0.0, 1e-45, -1e-45, 1e-38, -3e-39, 1.0, -1.0, 1e-20, 1e19, -3e18],
    torch.float64: [0.0, -0.0, 5e-324, -1e-310, 1e-200, -1e-45, 1e-38, 1.0, -1.0, 1e150, 3e38, 1e-60],
}


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Quantize, Stream, Tensor]:
    """(directions, memories, quantizer, stream, clients)."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    clients = draw(CLIENTS)
    d = draw(st.integers(1, 40) | st.sampled_from([1023, 1024, 1025, 2500]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, memory = (torch.randn((len(clients), d), generator=generator, dtype=dtype) for _ in range(2))
    for row in rows:
        match draw(st.integers(0, 5)):
            case 0:
                row *= draw(st.sampled_from([1e-44, 1e-38, 1e-20, 1e30]))
            case 1:
                some = torch.tensor(SPECIAL[dtype], dtype=dtype)
                row[:] = some[torch.randint(len(some), (d,), generator=generator)]
            case 2:
                row[torch.rand(d, generator=generator) < 0.95] = 0
            case 3:
                row.zero_()
    if draw(st.booleans()):
        memory.zero_()
    else:
        memory[:, d // 2 :] = rows[:, d // 2 :]
    quantizer = Quantize(
        draw(st.sampled_from([1, 2, 3, 16, 255, 32767])),
        draw(st.sampled_from(["l2", "linf"])),
        draw(st.sampled_from([0, 1, 2, 3, 7, 64, d, d + 1])),
    )
    return rows, memory, quantizer, draw(STREAMS), clients


def finite(compute: Callable[[], Value]) -> Value | None:
    try:
        return compute()
    except DivergedError:
        return None


@settings(max_examples=400)
@given(cohorts())
def test_compress(cohort: tuple[Tensor, Tensor, Quantize, Stream, Tensor]) -> None:
    rows, _, quantizer, stream, clients = cohort
    one, other = both(lambda: finite(lambda: quantizer.compress(rows, stream, clients)))
    if one is None or other is None:
        assert one is other
        return
    assert same(one, other)
    sizes, slow = both(lambda: coding.size(one))
    assert octets(sizes) == octets(slow)
    assert sizes.tolist() == [8 * len(message) for message in coding.encode(one)]


@settings(max_examples=400)
@given(cohorts(), st.floats(2.0**-20, 1.0))
def test_upload_with_memory(cohort: tuple[Tensor, Tensor, Quantize, Stream, Tensor], rate: float) -> None:
    rows, memory, quantizer, stream, clients = cohort
    method = Method(Uplink(quantizer, memory=True, rate=rate), Downlink(), ServerOptions(), rows.shape[1])
    before = octets(memory), octets(rows)

    def upload() -> tuple[Payload, Clients]:
        return artemis.upload(method, Clients(memory), rows, clients, 1.0, stream)

    one, other = both(lambda: finite(upload))
    assert (octets(memory), octets(rows)) == before
    if one is None or other is None:
        assert one is other
        return
    assert same(one[0], other[0])
    assert one[1].memory is not None
    assert other[1].memory is not None
    assert octets(one[1].memory) == octets(other[1].memory)


@settings(max_examples=300)
@given(cohorts(), st.integers(1, 3), st.booleans())
def test_weighted_sums(cohort: tuple[Tensor, Tensor, Quantize, Stream, Tensor], sums: int, repeated: bool) -> None:
    """Cohorts of 0 to 3 clients, or 5 to 23 when their rows are repeated, of one portion of columns and more."""
    rows, _, quantizer, stream, clients = cohort
    if repeated:
        rows, clients = rows.repeat(7, 1)[: 7 * len(rows) + 2], clients.repeat(7)
    payload = finite(lambda: quantizer.compress(rows, stream, clients))
    if payload is None:
        return
    weights = torch.rand((sums, len(rows)), generator=torch.Generator().manual_seed(1), dtype=rows.dtype)
    one, other = both(lambda: weighted_sums(quantizer, payload, weights))
    assert octets(one) == octets(other)
    decoded, expected = both(lambda: quantizer.decompress(payload, rows.dtype))
    assert octets(decoded) == octets(expected)
    for found, each in zip(one, weights, strict=True):
        decoded = quantizer.decompress(payload, rows.dtype)
        assert octets(found) == octets(tree_sum(each[:, None] * decoded, dim=0) + 0.0)  # a zero has no sign


@pytest.mark.parametrize("clients", [1, 2, 3, 5, 64, 129, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weighted_sums_of_many_clients(clients: int, dtype: torch.dtype) -> None:
    """Plain rows and quantized ones; the columns of 1000 clients are several portions."""
    rows = torch.randn((clients, 333), generator=torch.Generator().manual_seed(clients), dtype=dtype)
    for compressor in (Quantize(3), Quantize(1, bucket=10), Identity("float64"), Identity("float32")):
        payload = compressor.compress(rows, Stream(1, Purpose.UPLINK), torch.arange(clients))
        weights = torch.rand((2, clients), dtype=dtype)
        one, other = both(lambda c=compressor, p=payload, w=weights: weighted_sums(c, p, w))
        assert octets(one) == octets(other)


def test_kernels_refuse_shapes_that_do_not_fit() -> None:
    """They check no bounds themselves."""
    quantizer, noise, rows = Quantize(), Stream(1, Purpose.UPLINK), torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"shapes \[\[2, 5\], \[2, 5\], \[3\]\], expected \[n, 5\] twice and \[n\]"):
        quantizer.compress(rows, noise, torch.arange(3))
    with pytest.raises(ValueError, match=r"\[2, 4\]"):
        quantizer.quantize(rows, torch.ones(2, 4), 0.5, noise, torch.arange(2))
    payload = quantizer.compress(rows, noise, torch.arange(2))
    assert isinstance(payload, Levels)
    with pytest.raises(ValueError, match=r"\['int32\[2, 5\]', 'float32\[2, 1\]'\], which do not fit 3 rows of LevelsL"):
        weighted_sums(quantizer, payload, torch.ones(1, 3))
    with pytest.raises(WireError, match="of another layout"):
        weighted_sums(Quantize(2), payload, torch.ones(1, 2))


def test_plain_rows_that_do_not_fit_their_weights_are_refused() -> None:
    for rows, weights in (
        (torch.ones(2, 5), torch.ones(1, 3)),
        (torch.ones(3, 5), torch.ones(1, 3, dtype=torch.float64)),
    ):
        with pytest.raises(ValueError, match=r"which do not fit weights \[1, 3\]"):
            fused.weighted_rows(rows, weights)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("at", [0, 40, 2047])
def test_diverged(value: float, dtype: torch.dtype, norm: str, at: int) -> None:
    """Not finite anywhere, or a norm beyond float32: refused by both; 3.4e38 twice is too much for the 2-norm alone."""
    rows = torch.ones((3, 2048), dtype=dtype)
    rows[1, at] = rows[1, 1] = value
    quantizer, noise, clients = (
        Quantize(2, "l2" if norm == "l2" else "linf"),
        Stream(1, Purpose.UPLINK),
        torch.arange(3),
    )
    plain = both(lambda: finite(lambda: quantizer.compress(rows, noise, clients)))
    with_memory = both(
        lambda: finite(lambda: compress_difference(quantizer, rows, torch.zeros_like(rows), 0.5, noise, clients))
    )
    passes = norm == "linf" and np.isfinite(value)
    assert [found is not None for found in (*plain, *with_memory)] == 4 * [passes]


def test_rows_in_any_memory_layout() -> None:
    generator, noise, clients = torch.Generator().manual_seed(1), Stream(3, Purpose.UPLINK), torch.arange(8)[::2]
    wide = torch.randn((50, 8), generator=generator)
    for rows in (wide.T[::2], wide[:, 0].expand(4, -1), wide[:4].T[:4].to(torch.float64)):
        for quantizer in (Quantize(3), Quantize(3, bucket=5)):
            one, other = both(
                lambda quantizer=quantizer, rows=rows: compress_difference(
                    quantizer, rows, 0.5 * rows, 0.3, noise, clients
                )
            )
            assert same(one[0], other[0])
            assert octets(one[1]) == octets(other[1])
            assert octets(quantizer.compress(rows, noise, clients).levels) == octets(
                quantizer.compress(rows.contiguous(), noise, clients.contiguous()).levels
            )


@pytest.mark.parametrize("density", [0.0, 0.001, 0.03, 0.3, 1.0])
@pytest.mark.parametrize("levels", [1, 2, 40, 32768])
def test_lengths_of_levels_of_any_density(density: float, levels: int) -> None:
    generator = np.random.default_rng([int(1000 * density), levels])
    for d in (1, 31, 32, 33, 5000):
        drawn = generator.integers(-levels, levels + 1, (4, d)) * (generator.random((4, d)) < density)
        norms = np.ones((4, -(-d // 100)), np.float32)
        norms[0] = 0
        drawn[0] = 0
        layout = LevelsLayout(d, levels, 100)
        payload = Levels(layout, torch.from_numpy(drawn.astype(np.int32)), torch.from_numpy(norms))
        one, other = both(lambda payload=payload: coding.size(payload))
        assert octets(one) == octets(other)
        assert one.tolist() == [8 * len(message) for message in coding.encode(payload)]


NO_NORMS = (float("inf"), float("-inf"), float("nan"), -0.0, -1.0)


@pytest.mark.parametrize(
    ("level", "norm"), [(3, 1.0), (-3, 1.0), (-(2**31), 1.0), (1, 0.0), *((0, norm) for norm in NO_NORMS)]
)
def test_a_payload_that_has_no_length(level: int, norm: float) -> None:
    layout = LevelsLayout(4, levels=2, bucket=2)
    levels = torch.tensor([[0, 0, 0, 0], [1, 0, level, 0]], dtype=torch.int32)
    norms = torch.tensor([[1.0, 1.0], [1.0, norm]])
    payload = Levels(layout, levels, norms)
    messages = []
    for compute in (lambda: coding.size(payload), lambda: coding.encode(payload)):
        with pytest.raises(WireError) as caught:
            compute()
        messages.append(str(caught.value))
    with torch_form(), pytest.raises(WireError) as caught:
        coding.size(payload)
    assert messages == 2 * [str(caught.value)]


@pytest.mark.parametrize("d", [1, 5, 66, 1000])
@pytest.mark.parametrize("s", [1, 2, 16, 2**15])
@pytest.mark.parametrize("bucket", [0, 7])
def test_messages_and_their_damage(d: int, s: int, bucket: int) -> None:
    """Both forms write the same bytes, read the same rows, and refuse the same damaged messages in the same words."""
    random = np.random.default_rng(d + s + bucket)
    quantize, stream, clients = Quantize(s, bucket=bucket), Stream(1, Purpose.UPLINK), torch.arange(3)
    layout = quantize.layout(d)
    rows = torch.from_numpy(random.standard_normal((3, d)).astype(np.float32))
    for scaled in (rows, rows * torch.logspace(0, -9, d), rows * torch.tensor([[1.0], [0.0], [1.0]]), rows.sign()):
        payload = quantize.compress(scaled, stream, clients)
        found, expected = both(lambda p=payload: coding.encode(p))  # type: ignore[misc]
        assert found == expected

        def read(message: bytes) -> str | bytes:
            try:
                levels = coding.decode([message], layout)
            except WireError as error:
                return str(error)
            assert isinstance(levels, Levels)
            return levels.levels.numpy().tobytes()

        for message in found:
            for damaged in (message, *(_damaged(message, random) for _ in range(8))):
                one, other = both(lambda m=damaged: read(m))  # type: ignore[misc]
                assert one == other


def _damaged(message: bytes, random: np.random.Generator) -> bytes:
    """A flipped bit, and perhaps a byte fewer or more."""
    octets = bytearray(message)
    octets[random.integers(len(octets))] ^= 1 << random.integers(8)
    return bytes(octets[: len(octets) - random.integers(2)]) + b"\xff" * int(random.integers(2))


def test_numba_is_imported_by_the_first_kernel_alone() -> None:
    program = """
import sys, torch, fedsim, fedsim.cli.main
from fedsim.randomness import Purpose, Stream
assert "numba" not in sys.modules
stream = Stream(1, Purpose.UPLINK)
stream.words(torch.arange(2), 3)
assert "numba" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def test_a_run_without_numba_is_the_same() -> None:
    """Six rounds with both directions compressed, memories and catch-ups, in a process that cannot import numba."""
    program = """
import sys
sys.modules["numba"] = None
import fedsim
from fedsim.experiment import Experiment
result = fedsim.run(Experiment.of(rounds=6, partition={"clients": 10}, participation={"scheme": "bernoulli", "p": 0.5}))
print(result.digest, result.ledger.cost().frame_bytes)
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    result = fedsim.run(
        Experiment.of(rounds=6, partition={"clients": 10}, participation={"scheme": "bernoulli", "p": 0.5})
    )
    assert found.stdout.split() == [result.digest, str(result.ledger.cost().frame_bytes)]


def test_numba_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    kernels.installed.cache_clear()
    assert not kernels.available(torch.zeros(1))
    kernels.installed.cache_clear()
    monkeypatch.undo()
    assert kernels.available(torch.zeros(1))
