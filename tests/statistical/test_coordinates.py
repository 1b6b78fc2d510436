"""Compressors that keep every coordinate: unbiased where they say so, and omega and delta valid and tight.

Seeds are fixed. Were they redrawn, the chance of a failure is below 1e-6 for the comparisons by exact binomial tails
and Bernstein's inequality (SUITE is shared out over them), and 1e-8 for each of those that allow six standard errors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard as matrix
from scipy.optimize import linprog
from scipy.stats import binom, norm
from torch import Tensor

from fedsim.compression import Compressor, Digits, Eden, Half, Natural, NaturalDithering, Quantize, Sign
from fedsim.compression.eden import CENTROIDS, DELTAS, hadamard
from fedsim.errors import ConfigError, DivergedError
from fedsim.randomness import Purpose, Stream
from fedsim.wire import size

SUITE = 1e-6
DRAWS = 20_000
NOISE = Stream(seed=5, purpose=Purpose.UPLINK, round=2)
DTYPES = [torch.float32, torch.float64]
ROUNDING = [
    Natural(),
    NaturalDithering(8),
    NaturalDithering(1),
    NaturalDithering(4, "linf"),
    NaturalDithering(3, bucket=5),
]
generator = np.random.default_rng(7)
ROWS: dict[str, NDArray[np.float64]] = {
    "gaussian": generator.standard_normal(13),
    "equal": np.full(13, -0.7),
    "sparse": np.where(np.arange(13) % 5 == 2, [1.0, -3.0, 0.01] * 4 + [1.0], 0.0),
    "wide": generator.standard_normal(13) * np.exp(4 * generator.standard_normal(13)),
}
COMPARISONS = len(ROUNDING) * len(DTYPES) * len(ROWS)

every_rounding = pytest.mark.parametrize("compressor", ROUNDING, ids=repr)


def many(compressor: Compressor, row: NDArray[Any] | Tensor, draws: int, dtype: torch.dtype) -> NDArray[np.float64]:
    """The same row, compressed for as many clients: float64[draws, d]."""
    rows = torch.as_tensor(row).to(dtype).expand(draws, -1)
    payload = compressor.compress(rows, NOISE, torch.arange(draws))
    return compressor.decompress(payload, torch.float64).numpy()


def scales(compressor: Natural | NaturalDithering, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What powers of two are taken of, for each coordinate: 1, or its bucket's norm in float32."""
    if isinstance(compressor, Natural):
        return np.ones_like(x)
    payload = compressor.compress(torch.from_numpy(np.atleast_2d(x)), NOISE, torch.arange(x.size // x.shape[-1]))
    assert isinstance(payload, Digits)
    found = np.repeat(payload.scales.numpy().astype(np.float64), payload.layout.bucket, axis=1)
    return found[:, : x.shape[-1]].reshape(x.shape)


def neighbours(compressor: Natural | NaturalDithering, y: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The powers of two around numbers >= 0."""
    exponents = np.floor(np.log2(np.where(y > 0, y, 1.0)))
    least = -127 if isinstance(compressor, Natural) else 1 - compressor.levels
    low = np.where(y < 2.0**least, 0.0, 2.0**exponents)
    return low, np.where(y < 2.0**least, 2.0**least, 2.0 ** (exponents + 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
@every_rounding
def test_unbiased_with_the_exact_variance(
    compressor: Natural | NaturalDithering, name: str, dtype: torch.dtype
) -> None:
    """A coordinate of magnitude y norm between two powers of two is the upper one with chance (y - low) / (high - low).

    y is known up to ``blur``, the rounding of the division by the norm and of the draw, so the count of upper ones lies
    between two binomials. ||C(x) - x||^2 is compared with its mean within Bernstein's bound.
    """
    x = torch.from_numpy(ROWS[name]).to(dtype).numpy().astype(np.float64)
    back, norms = many(compressor, x, DRAWS, dtype), scales(compressor, x)
    y = np.abs(x) / np.where(norms > 0, norms, 1.0)
    low, high = neighbours(compressor, y)
    powers = np.abs(back) / np.where(norms > 0, norms, 1.0)
    assert bool(((back == 0) | (np.sign(back) == np.sign(x))).all())
    assert bool(((powers == low) | (powers == high) | (y == high)).all())
    ups = (powers > low).sum(axis=0)
    blur = 2.0**-22 if dtype == torch.float32 else 2.0**-31
    chance, tail = (y - low) / (high - low), SUITE / 4 / COMPARISONS / x.size
    assert bool((binom.cdf(ups, DRAWS, np.clip(chance - blur, 0, 1)) >= tail).all())
    assert bool((binom.sf(ups - 1, DRAWS, np.clip(chance + blur, 0, 1)) >= tail).all())

    errors, gaps = ((back - x) ** 2).sum(axis=1), norms * (high - low)
    expected = (gaps**2 * chance * (1 - chance)).sum()
    variance = (gaps**4 * chance * (1 - chance) * (1 - 2 * chance) ** 2).sum()
    most, log = (gaps**2).sum(), math.log(2 / (SUITE / 2 / COMPARISONS))
    assert abs(errors.mean() - expected) <= math.sqrt(2 * variance * log / DRAWS) + most * (log / 3 / DRAWS + blur)


def relative_variance(compressor: Natural | NaturalDithering, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """E||C(x) - x||^2 / ||x||^2 by the formula that the test above confirms."""
    norms = scales(compressor, rows)
    y = np.abs(rows) / norms
    low, high = neighbours(compressor, y)
    return np.asarray((norms**2 * (high - y) * (y - low)).sum(axis=1) / (rows**2).sum(axis=1))


@pytest.mark.parametrize("d", [1, 2, 5, 17, 64])
@every_rounding
def test_omega_holds_for_the_worst_rows_found(compressor: Natural | NaturalDithering, d: int) -> None:
    rng = np.random.default_rng(d)
    normal = rng.standard_normal((60, d))
    two_valued = np.where(np.arange(d) == 0, 1.0, rng.uniform(0, 0.5, (60, 1)))
    rows = np.concatenate([normal, normal * np.exp(2 * normal[::-1]), two_valued])
    rows = rows[np.argsort(-relative_variance(compressor, rows))[:10]]
    for _ in range(60):
        tried = rows * np.exp(rng.standard_normal(rows.shape) * rng.choice([0.003, 0.03, 0.3]))
        better = relative_variance(compressor, tried) > relative_variance(compressor, rows)
        rows[better] = tried[better]
    assert relative_variance(compressor, rows).max() <= compressor.omega(d) * (1 + 1e-6)


def test_omega_is_tight() -> None:
    assert relative_variance(Natural(), np.full((1, 5), 4 / 3))[0] == pytest.approx(Natural().omega(5), rel=1e-12)
    for s in (3, 5):  # every coordinate half of the least level: b t^2 / 4 = 1
        b, dithering = 4 ** (s - 1) * 4, NaturalDithering(s)
        found = relative_variance(dithering, np.ones((1, b)))[0]
        assert found == pytest.approx(1.0, rel=1e-6)
        assert dithering.omega(b) == 1.125
    found = relative_variance(NaturalDithering(1), np.ones((1, 10_000)))[0]
    assert found == pytest.approx(99.0, rel=1e-4)
    assert NaturalDithering(1).omega(10_000) == 100.125


@pytest.mark.parametrize("compressor", [Natural(), NaturalDithering(8), NaturalDithering(3, bucket=5)], ids=repr)
def test_a_small_variance_is_a_contraction(compressor: Compressor) -> None:
    assert compressor.delta(100) == max(0.0, 1 - compressor.omega(100))


def test_natural_numbers_of_every_size() -> None:
    x = torch.tensor([[1.5, -1.0, 2.0**-127, 2.0**-130, -(2.0**127), 3.0e38 / 2, 0.0]])
    back = torch.from_numpy(many(Natural(), x, 4000, torch.float32))
    assert bool(((back == 0) | (back.abs().log2() == back.abs().log2().round())).all())
    for j in (1, 2, 4, 6):
        assert bool((back[:, j] == x[0, j].double()).all())
    assert 0 < int((back[:, 3] != 0).sum()) < 4000  # 2^-127 with chance 1/8


# -------------------------------------------------------------------------------------------------------- deterministic


@pytest.mark.parametrize("bucket", [0, 4])
def test_the_error_of_scaled_signs(bucket: int) -> None:
    rng, d = np.random.default_rng(3), 14
    for row in (rng.standard_normal(d), np.eye(d)[5], np.ones(d), -np.arange(d, dtype=float)):
        back, b = many(Sign(bucket), row, 1, torch.float64)[0], bucket or d
        parts = [row[at : at + b] for at in range(0, d, b)]
        expected = sum((part**2).sum() - np.abs(part).sum() ** 2 / part.size for part in parts)
        error = ((back - row) ** 2).sum()
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert error <= (1 - Sign(bucket).delta(d)) * (row**2).sum() * (1 + 1e-12)
    assert many(Sign(4), np.array([0.0, -2.0, 0.0, 2.0]), 1, torch.float32).tolist() == [[1.0, -1.0, 1.0, 1.0]]


def test_delta_of_signs_and_halves_is_tight() -> None:
    lone = many(Sign(), np.eye(64)[3], 1, torch.float32)[0]
    assert ((lone - np.eye(64)[3]) ** 2).sum() == pytest.approx(1 - Sign().delta(64), rel=1e-12)
    for half, bits in ((Half(), 8), (Half("float16"), 11)):
        row = np.full(9, 1 + 2.0**-bits)  # halfway between two of them
        error = ((many(half, row, 1, torch.float64)[0] - row) ** 2).sum() / (row**2).sum()
        assert (1 - half.delta(9)) / (1 + 2.0 ** (2 - bits)) <= error <= 1 - half.delta(9)


@pytest.mark.parametrize("half", [Half(), Half("float16")], ids=repr)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e-300])
def test_the_error_of_halves(half: Half, scale: float) -> None:
    if scale == 1e-300 and half.values == "bfloat16":
        return  # beyond float32, which is said
    rows = np.random.default_rng(4).standard_normal((50, 40)) ** 5 * scale
    for row in rows:
        error = ((many(half, row, 1, torch.float64)[0] / scale - row / scale) ** 2).sum()
        assert error <= (1 - half.delta(40)) * ((row / scale) ** 2).sum()


def test_biased_ones_say_so() -> None:
    for compressor in (Sign(), Half(), Half("float16"), Eden(), Eden(4, "unbiased")):
        assert compressor.omega(10) == math.inf
    assert Eden(1, "unbiased").delta(10) == 0.0


# ----------------------------------------------------------------------------------------------------------------- eden


def lloyd_max(bits: int) -> NDArray[np.float64]:
    """Lloyd's iteration for the standard Gaussian, to its fixed point."""
    points = norm.ppf(0.5 + (np.arange(2 ** (bits - 1)) + 0.5) / 2**bits)
    for _ in range(3000):
        edges = np.concatenate([[0.0], (points[1:] + points[:-1]) / 2, [np.inf]])
        points = (norm.pdf(edges[:-1]) - norm.pdf(edges[1:])) / (norm.cdf(edges[1:]) - norm.cdf(edges[:-1]))
    return np.asarray(points)


def second_moment(bits: int) -> float:
    """E q(y)^2 of a Gaussian y; of a fixed point also E y q(y)."""
    points = np.array(CENTROIDS[bits])
    edges = np.concatenate([[0.0], (points[1:] + points[:-1]) / 2, [np.inf]])
    return float((2 * (norm.cdf(edges[1:]) - norm.cdf(edges[:-1])) * points**2).sum())


@pytest.mark.parametrize("bits", CENTROIDS)
def test_centroids(bits: int) -> None:
    assert np.abs(lloyd_max(bits) - np.array(CENTROIDS[bits])).max() < 1e-12
    unbiased = 1 / second_moment(bits) - 1
    assert unbiased == pytest.approx({1: 0.571, 2: 0.133, 3: 0.0358, 4: 0.0096}[bits], rel=3e-3)


def test_hadamard() -> None:
    rows = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(hadamard(rows), rows @ torch.from_numpy(matrix(64)).double(), rtol=0, atol=1e-12)
    assert torch.allclose(hadamard(hadamard(rows)), 64 * rows, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("bits", CENTROIDS)
def test_eden_on_gaussian_rows(bits: int) -> None:
    """The error of both scales, whatever d is; and unbiased means that averages come as near as their variance says."""
    for d, bucket, n in ((512, 0, 600), (4096, 512, 100)):
        rows = torch.randn(n, d, generator=torch.Generator().manual_seed(bits))
        for scale, expected in (("unbiased", 1 / second_moment(bits) - 1), ("least-squares", 1 - second_moment(bits))):
            eden = Eden(bits, scale, bucket)  # type: ignore[arg-type]
            back = eden.decompress(eden.compress(rows, NOISE, torch.arange(n)), torch.float32)
            errors = ((back - rows) ** 2).sum(dim=1) / (rows**2).sum(dim=1)
            assert abs(float(errors.mean()) - expected) <= 6 * float(errors.std()) / math.sqrt(n) + 3 / 512
    row, draws = np.random.default_rng(bits).standard_normal(1024), 2000
    back = many(Eden(bits, "unbiased"), row, draws, torch.float32)
    spread = ((back - row) ** 2).sum(axis=1).mean() / draws
    assert ((back.mean(axis=0) - row) ** 2).sum() <= 1.3 * spread  # 1024 squares: 1 + 6 sqrt(2 / 1024) = 1.27


def test_eden_is_biased_on_rows_of_few_numbers() -> None:
    a, b = 1.0, 0.5
    row = a * np.eye(64)[3] + b * np.eye(64)[40]
    back = many(Eden(1, "unbiased"), row, 50, torch.float64)
    assert np.abs(back[:, 3] - a * (1 + b**2 / a**2)).max() < 1e-6
    assert np.abs(np.delete(back, 3, axis=1)).max() < 1e-6
    assert np.abs(many(Eden(4, "unbiased"), np.eye(64)[3], 50, torch.float64) - np.eye(64)[3]).max() < 1e-6


def test_two_equal_numbers_are_the_worst_row_of_one_bit() -> None:
    row = np.eye(256)[3] + np.eye(256)[40]
    for eden, error in ((Eden(1, "unbiased"), 1.0), (Eden(1), 0.5)):
        back = many(eden, row, 300, torch.float64)
        assert ((back - row) ** 2).sum(axis=1).mean() / 2 == pytest.approx(error, rel=1e-6)
    assert Eden(1).delta(256) == 0.5


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_delta_of_eden_is_a_bound_over_all_laws(bits: int) -> None:
    """The least (E y q)^2 / E q^2 with E y^2 = 1 and E y^4 <= 3, over laws on a fine grid and its thresholds' sides."""
    points = np.array(CENTROIDS[bits])
    edges = (points[1:] + points[:-1]) / 2
    grid = np.concatenate([np.linspace(0, 6, 301), np.geomspace(6, 60, 30), edges - 1e-9, edges + 1e-9])
    q, least = points[np.searchsorted(edges, grid)], 1.0
    for moment in np.linspace(0.3, 1.4, 45):
        found = linprog(
            grid * q, [grid**4], [3.0], [np.ones_like(grid), grid**2, q**2], [1.0, 1.0, moment], method="highs"
        )
        if found.status == 0:
            least = min(least, found.fun**2 / moment)
    assert DELTAS[bits] <= least <= DELTAS[bits] + 0.012


@pytest.mark.parametrize("bits", CENTROIDS)
def test_delta_of_eden_holds_on_rows_of_few_numbers(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in (1, 2, 3, 4, 8):
        for _ in range(4):
            row = np.zeros(64)
            row[rng.choice(64, count, replace=False)] = np.exp(rng.standard_normal(count))
            errors = ((many(Eden(bits), row, 400, torch.float64) - row) ** 2).sum(axis=1) / (row**2).sum()
            assert errors.mean() <= 1 - Eden(bits).delta(64) + 6 * errors.std() / 20 + 1e-9


# ---------------------------------------------------------------------------- what other libraries got wrong, and costs


def test_natural_dithering_is_not_the_identity() -> None:
    row = np.array([0.3, -1.7, 0.05, 0.9])
    back = many(NaturalDithering(8, "linf"), row, 50, torch.float64)
    assert bool((back != row).any(axis=1).all())
    ratios = np.abs(back[back != 0]) / np.float32(1.7)
    assert np.abs(np.log2(ratios) - np.log2(ratios).round()).max() < 1e-6


def test_terngrad_has_a_variance() -> None:
    """TernGrad is one level of the largest magnitude; with omega = 0 its step sizes are those of no compression."""
    d = 49
    row = np.where(np.arange(d) == 0, 1.0, 1 / (1 + math.sqrt(d)))
    errors = ((many(Quantize(1, "linf"), row, 4000, torch.float64) - row) ** 2).sum(axis=1) / (row**2).sum()
    assert Quantize(1, "linf").omega(d) == 3.0
    assert abs(errors.mean() - 3.0) <= 6 * errors.std() / math.sqrt(4000)


SMALL: list[Compressor] = [Quantize(), Quantize(1, "linf"), Quantize(7), Natural(), NaturalDithering(), Sign(), Eden(4)]


@pytest.mark.parametrize("compressor", SMALL, ids=repr)
def test_a_zero_row_is_not_a_nan_and_a_number_is_not_a_word(compressor: Compressor) -> None:
    assert many(compressor, np.zeros(9), 3, torch.float32).tolist() == [[0.0] * 9] * 3
    rows = torch.randn(3, 4096, generator=torch.Generator().manual_seed(2))
    payload = compressor.compress(rows, NOISE, torch.arange(3))
    assert int(size(payload).max()) < 5 * 4096  # not a byte of sign and a word of code
    if compressor != Quantize(1, "linf"):  # the formula is that of the 2-norm
        assert int(size(payload).max()) <= 1.02 * compressor.formula_bits(4096)[0] + 40


def test_formulas() -> None:
    assert Natural().formula_bits(100) == (900.0, 0.0)
    assert NaturalDithering(8).formula_bits(100) == (432.0, 0.0)  # log2 of 8 levels, not 8
    assert NaturalDithering(5, bucket=30).formula_bits(100) == (400.0 + 4 * 32, 0.0)
    assert Sign().formula_bits(100) == (132.0, 0.0)
    assert Sign(30).formula_bits(100) == (228.0, 0.0)
    assert Half().formula_bits(100) == (1600.0, 0.0)
    assert Eden(3).formula_bits(100) == (3.0 * 128 + 64, 0.0)
    assert Eden(3, bucket=32).formula_bits(100) == (3.0 * 128 + 5 * 32, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "compressor", [Natural(), NaturalDithering(), Sign(), Eden(), Half(), Half("float16")], ids=repr
)
def test_rows_that_are_not_finite_are_refused(compressor: Compressor, bad: float) -> None:
    for dtype in DTYPES:
        rows = torch.ones(3, 13, dtype=dtype)
        rows[1, 12] = bad
        with pytest.raises(DivergedError, match="not finite"):
            compressor.compress(rows, NOISE, torch.arange(3))


def test_a_bucket_of_eden_is_a_power_of_two() -> None:
    with pytest.raises(ConfigError, match="bucket = 100 of eden is no power of two"):
        Eden(bucket=100)
