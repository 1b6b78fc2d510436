"""How long real messages are: below the papers' formula everywhere, and near the entropy of long rows.

Seeds are fixed, so a passing test stays so on one version of torch. The closest comparisons are those of heavy tails at
s = 1: 4.5 % above the entropy at d = 1000 where 5 % is allowed, and 1.8 % at d = 10 000 where 2 % is, both of means
over many rows; a single message of few nonzeros may be 3.4 % above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from fedsim.compression import Levels, Quantize
from fedsim.randomness import Purpose, Stream
from fedsim.wire import encode, size
from fedsim.wire.measure import entropy_bits
from tests.benchmarks import messages

NORM_BITS = 32


def gaussian(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(d))


def constant(n: int, d: int) -> Tensor:
    return torch.ones(n, d)


def heavy_tailed(n: int, d: int) -> Tensor:
    """Student's t with 2 degrees of freedom: infinite variance."""
    uniform = torch.rand(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return ((2 * uniform - 1) / (2 * uniform * (1 - uniform)).sqrt()).float()  # its quantile function


def one_hot(n: int, d: int) -> Tensor:
    return torch.eye(d)[torch.randint(0, d, (n,), generator=torch.Generator().manual_seed(d))]


def quantized(quantize: Quantize, rows: Tensor) -> Levels:
    payload = quantize.compress(rows, Stream(11, Purpose.UPLINK, rows.shape[1]), torch.arange(len(rows)))
    assert isinstance(payload, Levels)
    return payload


def entropy(levels: Tensor) -> Tensor:
    """Bits of each row under the frequencies of its own levels: float64[n]."""
    return torch.tensor([entropy_bits(row) for row in levels], dtype=torch.float64)


@pytest.mark.parametrize("rows", [gaussian, constant, heavy_tailed, one_hot])
@pytest.mark.parametrize("s", [1, 2, 4, 8, 16])
def test_messages_are_shorter_than_the_formula(s: int, rows: Callable[[int, int], Tensor]) -> None:
    quantize = Quantize(s)
    for d in (20, 30, 50, 100, 200, 350, 650, 1000, 1500, 2000):
        payload = quantized(quantize, rows(12, d))
        bits = size(payload)
        assert bits.tolist() == [8 * len(message) for message in encode(payload)]
        assert bits.double().mean() <= quantize.formula_bits(d)[0] + NORM_BITS


@pytest.mark.parametrize("rows", [gaussian, heavy_tailed])
@pytest.mark.parametrize(("d", "n"), [(1000, 1000), (3000, 100), (10_000, 30), (100_000, 8)])
def test_sparse_messages_are_near_the_entropy(d: int, n: int, rows: Callable[[int, int], Tensor]) -> None:
    payload = quantized(Quantize(1), rows(n, d))
    assert size(payload).double().mean() <= 1.05 * (entropy(payload.levels).mean() + NORM_BITS)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rows", [gaussian, heavy_tailed])
@pytest.mark.parametrize(("s", "share"), [(1, 1.02), (16, 1.03)])
@pytest.mark.parametrize(("d", "n"), [(10_000, 200), (100_000, 3), (1_000_000, 1)])
def test_long_messages(
    d: int, n: int, s: int, share: float, rows: Callable[[int, int], Tensor], norm: Literal["l2", "linf"]
) -> None:
    payload = quantized(Quantize(s, norm), rows(n, d))
    assert size(payload).double().mean() <= share * (entropy(payload.levels).mean() + NORM_BITS)


@pytest.mark.parametrize(("s", "share"), [(1, 1.02), (16, 1.03)])
def test_long_messages_of_a_gradient(s: int, share: float) -> None:
    """Of a network of 99 985 parameters, whose nonzeros keep to some of its units."""
    (row, _) = messages.mlp()
    payload = quantized(Quantize(s), row.expand(8, -1))
    assert size(payload).double().mean() <= share * (entropy(payload.levels).mean() + NORM_BITS)


def test_the_table_of_messages_has_every_compressor(capsys: pytest.CaptureFixture[str]) -> None:
    """With the bits that are made: those of a gradient of 650 coordinates."""
    (row,) = messages.softmax()
    for compressor in messages.compressors():
        print(messages.line("softmax", compressor, row, at_least=0.0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(messages.compressors()))
    assert all(line.startswith("| softmax | 650 | ") and line.count("|") == 13 for line in lines)


@pytest.mark.parametrize("d", [1000, 3000, 10_000])
def test_a_row_of_one_sign_pays_a_bit_for_each_sign(d: int) -> None:
    payload = quantized(Quantize(1), constant(30, d))
    signs = (payload.levels != 0).sum(dim=1)
    allowed = 1.05 * (entropy(payload.levels).mean() + NORM_BITS)
    assert (size(payload) - signs).double().mean() <= allowed < size(payload).double().mean()
