"""What every compressor promises. A new one adds a line to COMPRESSORS, and a worst row to WORST if one is known.

The statistical tests are fixed by their seeds. Their false-alarm rates (of a correct operator, over seeds) add up to at
most 1e-6: SUITE is shared out over all their comparisons, which use exact binomial tails and Bernstein's inequality.
"""

from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from fedsim.compression import (
    Bernoulli,
    Compressor,
    Digits,
    Eden,
    Half,
    Identity,
    Levels,
    LevelsLayout,
    LowRank,
    Natural,
    NaturalDithering,
    Payload,
    PermK,
    PerTensor,
    Quantize,
    RandK,
    Sign,
    SparseTernary,
    TopK,
)
from fedsim.compression.payload import parts, row
from fedsim.errors import DivergedError, WireError
from fedsim.randomness import Purpose, Stream
from fedsim.wire import decode, encode, longest

COMPRESSORS: list[Compressor] = [
    Identity(),
    Identity("float64"),
    Quantize(),
    Quantize(1, "linf"),
    Quantize(2),
    Quantize(4, "linf"),
    Quantize(16),
    Quantize(32767, "linf"),
    Quantize(3, bucket=5),
    Quantize(1, "linf", bucket=4),
    Quantize(1, bucket=1),
    RandK(0.25),
    RandK(0.25, unbiased=False),
    RandK(0.25, values=Identity("float64")),
    RandK(0.75, values=Quantize(2)),
    RandK(0.25, values=Quantize(4, "linf", bucket=3)),
    RandK(0.75, unbiased=False, values=Quantize(16)),
    Bernoulli(0.25),
    PermK(3),
    TopK(0.01),
    TopK(0.25),
    TopK(1.0),
    TopK(0.75, values=Quantize(3)),
    SparseTernary(0.25),
    SparseTernary(1.0),
    LowRank(1),
    LowRank(2, columns=3),
    *(Natural(), NaturalDithering(), NaturalDithering(1), NaturalDithering(127, "linf"), NaturalDithering(3, bucket=5)),
    *(Sign(), Sign(4), Half(), Half("float16")),
    *(PerTensor(sizes=(4, 7)), PerTensor(Quantize(4, "linf", 3), (1, 2, 30)), PerTensor(TopK(0.25), (6, 6))),
    *(PerTensor(Eden(2), (5, 9)), PerTensor(Bernoulli(0.25), (8, 8)), PerTensor(LowRank(), (9, 4)), PerTensor(Sign())),
    *(Eden(), Eden(2, "unbiased"), Eden(3, bucket=4), Eden(4, "unbiased", bucket=16), Eden(1, bucket=1)),
]
ALONE = [Quantize(1, bucket=1)]
"""Alone in its bucket, a number is its norm."""
QUANTIZERS = [compressor for compressor in COMPRESSORS if isinstance(compressor, Quantize)]
DTYPES = [torch.float32, torch.float64]
SUITE = 1e-6
NOISE = Stream(seed=4, purpose=Purpose.UPLINK, round=6)
LARGEST = float(np.float32(5e37))  # 30 such coordinates have a norm below float32's largest number, 3.4e38

every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
few = settings(max_examples=25, deadline=None)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(rows float[n, d], clients int64[n]): zeros, denormals, numbers up to 5e37, single and double."""
    n, d = draw(st.integers(0, 4)), draw(st.integers(1, 30))
    if draw(st.booleans()):
        numbers = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-2, 2, width=32) | st.just(0.0)
        rows = draw(hnp.arrays(np.float32, (n, d), elements=numbers, fill=st.just(0.0)))
    else:
        numbers = st.floats(-LARGEST, LARGEST) | st.floats(-2, 2) | st.just(0.0)
        rows = draw(hnp.arrays(np.float64, (n, d), elements=numbers, fill=st.just(0.0)))
    clients = draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n))
    return torch.from_numpy(rows), torch.tensor(clients, dtype=torch.int64)


def same(one: Payload, other: Payload) -> bool:
    """Equal layouts and equal bytes (so that 0.0 is not -0.0, and NaN is itself)."""
    bytes_of = [
        [
            part.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().tobytes()
            for part in parts(payload).values()
        ]
        for payload in (one, other)
    ]
    return one.layout == other.layout and bytes_of[0] == bytes_of[1]


# ----------------------------------------------------------------------------------------------------- every compressor


@every_compressor
@few
@given(cohort=cohorts())
def test_shapes_and_types(compressor: Compressor, cohort: tuple[Tensor, Tensor]) -> None:
    rows, clients = cohort
    payload = compressor.compress(rows, NOISE, clients)
    assert payload.layout == compressor.layout(rows.shape[1])
    assert all(part.shape[0] == rows.shape[0] for part in parts(payload).values())
    for dtype in DTYPES:
        back = compressor.decompress(payload, dtype)
        assert (back.shape, back.dtype) == (rows.shape, dtype)
        assert bool(torch.isfinite(back).all())


@every_compressor
@few
@given(cohort=cohorts())
def test_a_row_is_the_same_alone_and_in_a_cohort(compressor: Compressor, cohort: tuple[Tensor, Tensor]) -> None:
    rows, clients = cohort
    before = rows.clone()
    payload = compressor.compress(rows, NOISE, clients)
    back = compressor.decompress(payload, rows.dtype)
    for i in range(len(rows)):
        alone = compressor.compress(rows[i : i + 1].clone(), NOISE, clients[i : i + 1])
        assert same(alone, row(payload, i))
        assert compressor.decompress(alone, rows.dtype)[0].numpy().tobytes() == back[i].numpy().tobytes()
    assert same(compressor.compress(rows, NOISE, clients), payload)
    assert rows.numpy().tobytes() == before.numpy().tobytes()  # not written to


@every_compressor
@few
@given(cohort=cohorts())
def test_what_crosses_the_wire_is_what_was_sent(compressor: Compressor, cohort: tuple[Tensor, Tensor]) -> None:
    rows, clients = cohort
    payload = compressor.compress(rows, NOISE, clients)
    messages = encode(payload)
    assert same(decode(messages, compressor.layout(rows.shape[1])), payload)
    assert all(len(message) <= longest(payload.layout) for message in messages)


@every_compressor
def test_zero_rows_stay_zero(compressor: Compressor) -> None:
    rows = torch.randn(4, 11, generator=torch.Generator().manual_seed(1))
    rows[1], rows[3] = 0.0, -0.0
    payload = compressor.compress(rows, NOISE, torch.arange(4))
    back = compressor.decompress(payload, torch.float32)
    assert not back[1].any()
    assert not back[3].any()
    assert bool(back[0].any())
    if isinstance(payload, Levels) or (isinstance(payload, Digits) and payload.layout.bucket):
        seed = 4 if isinstance(payload, Digits) and payload.layout.seeded else 0
        assert encode(payload)[1][seed:] == bytes(4 * payload.layout.buckets)


@every_compressor
def test_a_payload_of_another_kind_is_refused(compressor: Compressor) -> None:
    rows, ids = torch.ones(1, 4), torch.arange(1)
    levels = compressor.levels if isinstance(compressor, Quantize) else 1
    others: list[Compressor] = [Quantize(levels % 7 + 1)]
    if isinstance(compressor, Quantize):
        others.append(Identity())
    for other in others:
        with pytest.raises(WireError, match=f"^{type(compressor).__struct_config__.tag} "):
            compressor.decompress(other.compress(rows, NOISE, ids), torch.float32)


@every_compressor
def test_the_noise_belongs_to_the_client_and_the_round(compressor: Compressor) -> None:
    rows = torch.linspace(0.1, 3, 30).repeat(3, 1)
    payload = compressor.compress(rows, NOISE, torch.tensor([5, 6, 5]))
    assert same(row(payload, 0), row(payload, 2))
    elsewhere = [
        row(payload, 1),
        compressor.compress(rows[:1], NOISE.at(7), torch.tensor([5])),
        compressor.compress(rows[:1], Stream(4, Purpose.DOWNLINK, 6), torch.tensor([5])),
    ]
    alone = compressor in ALONE
    compressor = compressor.of if isinstance(compressor, PerTensor) else compressor
    random = not isinstance(compressor, Identity | Sign | Half | TopK | SparseTernary) and not alone
    random |= isinstance(compressor, TopK) and isinstance(compressor.values, Quantize)
    assert [same(row(payload, 0), other) for other in elsewhere] == [not random] * 3


# ------------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_is_exact_but_for_the_type_on_the_wire(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=dtype) * 10
    exact = Identity("float64").compress(rows, NOISE, torch.arange(3))
    assert torch.equal(Identity("float64").decompress(exact, dtype), rows)
    narrow = Identity().compress(rows, NOISE, torch.arange(3))
    error = Identity().decompress(narrow, dtype) - rows
    assert bool((error.abs() <= rows.abs() * 2.0**-24).all())
    assert (dtype == torch.float32) == torch.equal(Identity().decompress(narrow, dtype), rows)


def test_identity_carries_what_is_not_finite() -> None:
    rows = torch.tensor([[math.nan, math.inf, -math.inf, 1e300]], dtype=torch.float64)
    back = Identity("float64").decompress(Identity("float64").compress(rows, NOISE, torch.arange(1)), torch.float64)
    assert back.numpy().tobytes() == rows.numpy().tobytes()


def test_identity_has_no_variance_and_costs_32_bits_a_number() -> None:
    for values in ("float32", "float64"):
        assert Identity(values).omega(100) == 0.0
        assert Identity(values).delta(100) == 1.0
        assert Identity(values).formula_bits(100) == (3200.0, 0.0)


# --------------------------------------------------------------------------------------------------------- quantization


def spread(quantizer: Quantize, norms: NDArray[Any], d: int) -> NDArray[Any]:
    """Norms of buckets -> the norm of every coordinate, float64."""
    size = min(quantizer.bucket, d) or d
    return np.repeat(norms.astype(np.float64), size, axis=-1)[..., :d]


@every_quantizer
@few
@given(cohort=cohorts())
def test_levels_are_neighbours_of_the_number(quantizer: Quantize, cohort: tuple[Tensor, Tensor]) -> None:
    """Each level is one of the two around s |x| / norm, with x's sign; norms are at least every |x| and hardly more."""
    rows, clients = cohort
    payload = quantizer.compress(rows, NOISE, clients)
    assert isinstance(payload, Levels)
    d, s = rows.shape[1], quantizer.levels
    x, norms = rows.numpy().astype(np.float64), spread(quantizer, payload.norms.numpy(), d)
    levels = payload.levels.numpy()
    assert bool((np.abs(x) <= norms).all())
    assert bool((np.abs(levels) <= s).all())
    assert bool(((levels == 0) | (np.sign(levels) == np.sign(x))).all())
    scaled = s * np.divide(np.abs(x), norms, out=np.zeros_like(x), where=norms > 0)
    slack = 4 * s * (2.0**-24 if rows.dtype == torch.float32 else 2.0**-53)  # the rounding of s |x| / norm
    assert bool((np.abs(np.abs(levels) - scaled) <= 1 + slack).all())


@pytest.mark.parametrize("dtype", DTYPES)
@every_quantizer
def test_norms_are_rounded_up(quantizer: Quantize, dtype: torch.dtype) -> None:
    d = 13
    x = np.exp(8 * np.random.default_rng(2).standard_normal((200, d)))
    rows = torch.from_numpy(x).to(dtype)
    payload = quantizer.compress(rows, NOISE, torch.arange(200))
    assert isinstance(payload, Levels)
    size = min(quantizer.bucket, d) or d
    starts = range(0, d, size)
    assert payload.norms.shape == (200, len(starts))
    wide = rows.numpy().astype(np.longdouble)
    for b, start in enumerate(starts):  # the last bucket has 13 mod size coordinates
        bucket = wide[:, start : start + size]
        exact = bucket.max(axis=1) if quantizer.norm == "linf" else np.sqrt((bucket * bucket).sum(axis=1))
        found = payload.norms[:, b].numpy().astype(np.longdouble)
        assert bool((found >= exact * (1 - np.longdouble(2.0) ** -52)).all())
        assert bool((found <= exact * (1 + np.longdouble(2.0) ** -22)).all())


def test_a_bucket_as_long_as_the_row_is_the_row() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    whole = Quantize(2).compress(rows, NOISE, torch.arange(3))
    for bucket in (8, 9, 1000):
        assert same(Quantize(2, bucket=bucket).compress(rows, NOISE, torch.arange(3)), whole)
        assert Quantize(2, bucket=bucket).omega(8) == Quantize(2).omega(8)
        assert Quantize(2, bucket=bucket).formula_bits(8) == Quantize(2).formula_bits(8)
    assert Quantize(2, bucket=3).layout(8) == LevelsLayout(8, 2, 3)


def test_a_zero_bucket_stays_zero_beside_others() -> None:
    rows = torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0]])
    payload = Quantize(4, bucket=2).compress(rows, NOISE, torch.arange(1))
    assert isinstance(payload, Levels)
    assert payload.norms.tolist()[0][1:] == [0.0, 3.0]
    assert payload.levels.tolist()[0][2:] == [0, 0, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draw_decides_to_the_last_bit(dtype: torch.dtype) -> None:
    """With norm 1 and s = 1, x_j = u_j is rounded down and the next number up: levels are l + [u_j < f]."""
    draws = NOISE.uniform(torch.tensor([3]), 1000, dtype)
    draws[0, 0] = 1.0  # the norm
    above = torch.nextafter(draws, torch.full_like(draws, 2.0))
    above[0, 0] = 1.0
    for quantizer in (Quantize(1, "linf"), Quantize(1, "linf", bucket=1000)):
        for rows, level in ((draws, 0), (above, 1), (-draws, 0), (-above, -1)):
            payload = quantizer.compress(rows, NOISE, torch.tensor([3]))
            assert isinstance(payload, Levels)
            assert payload.norms.tolist() == [[1.0]]
            assert set(payload.levels[0, 1:].tolist()) == {level}


# rows of 13 coordinates: 5 + 5 + 3 in buckets of 5
def rows_to_repeat() -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng(7)
    sparse = np.zeros(13)
    sparse[[2, 7, 8]] = [1.0, -3.0, 0.01]
    return {
        "gaussian": generator.standard_normal(13),
        "equal": np.full(13, -0.7),
        "sparse": sparse,
        "wide": generator.standard_normal(13) * np.exp(4 * generator.standard_normal(13)),
    }


DRAWS = 20_000
COMPARISONS = len(QUANTIZERS) * len(DTYPES) * len(rows_to_repeat())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", rows_to_repeat())
@every_quantizer
def test_unbiased_with_the_exact_variance(quantizer: Quantize, name: str, dtype: torch.dtype) -> None:
    """20 000 draws of one row.

    With r = s|x|/norm, a level is floor(r) or the next, the upper one with chance r - floor(r): E C(x) = x. r is known
    up to ``blur``: it is computed in the row's type, and its fraction is compared with multiples of 2^-24 or 2^-32. So
    the sum of the draws lies between two binomials, those of r - blur and of r + blur.
    The mean of ||C(x) - x||^2 is sum (norm / s)^2 f (1 - f), f = r - floor(r), within Bernstein's bound.
    """
    x = torch.from_numpy(rows_to_repeat()[name]).to(dtype)
    payload = quantizer.compress(x.expand(DRAWS, -1), NOISE, torch.arange(DRAWS))
    assert isinstance(payload, Levels)
    assert bool((payload.norms == payload.norms[0]).all())
    exact, s = x.numpy().astype(np.float64), quantizer.levels
    norms = spread(quantizer, payload.norms[0].numpy(), len(x))
    r = s * np.divide(np.abs(exact), norms, out=np.zeros_like(exact), where=norms > 0)

    sums = np.abs(payload.levels.numpy().astype(np.int64)).sum(axis=0)
    blur = s * 2.0**-23 + 2.0**-24 if dtype == torch.float32 else s * 2.0**-52 + 2.0**-32
    tail = SUITE / 4 / COMPARISONS / len(x)
    for bound, side in ((np.maximum(r - blur, 0), binom.cdf), (r + blur, lambda k, n, p: binom.sf(k - 1, n, p))):
        ups = sums - DRAWS * np.floor(bound)
        assert bool((side(ups, DRAWS, bound - np.floor(bound)) >= tail).all())

    errors = ((quantizer.decompress(payload, torch.float64).numpy() - exact) ** 2).sum(axis=1)
    gaps, f = norms / s, r - np.floor(r)
    expected = (gaps**2 * f * (1 - f)).sum()
    variance = (gaps**4 * f * (1 - f) * (1 - 2 * f) ** 2).sum()  # of ||C(x) - x||^2
    most, log = (gaps**2).sum(), math.log(2 / (SUITE / 2 / COMPARISONS))
    allowed = math.sqrt(2 * variance * log / DRAWS) + most * log / (3 * DRAWS)
    assert abs(errors.mean() - expected) <= allowed + blur * most


def relative_variance(quantizer: Quantize, rows: NDArray[Any]) -> NDArray[Any]:
    """E||C(x) - x||^2 / ||x||^2 of rows float64[k, d] by the formula that the test above confirms."""
    total, d, s = np.zeros(len(rows)), rows.shape[1], quantizer.levels
    size = min(quantizer.bucket, d) or d
    for start in range(0, d, size):
        part = np.abs(rows[:, start : start + size])
        norms = part.max(axis=1) if quantizer.norm == "linf" else np.sqrt((part**2).sum(axis=1))
        scaled = s * np.divide(part, norms[:, None], out=np.zeros_like(part), where=norms[:, None] > 0)
        chance = scaled - np.floor(np.minimum(scaled, s))
        total += (norms / s) ** 2 * (chance * (1 - chance)).sum(axis=1)
    return np.asarray(total / (rows**2).sum(axis=1))


@pytest.mark.parametrize("d", [1, 2, 5, 17, 64])
@every_quantizer
def test_omega_holds_for_the_worst_rows_found(quantizer: Quantize, d: int) -> None:
    """Gaussian, heavy-tailed, sparse and two-valued rows, then 200 steps uphill from the 20 worst."""
    generator = np.random.default_rng(d)
    normal = generator.standard_normal((300, d))
    two_valued = np.where(np.arange(d) == 0, 1.0, generator.uniform(0, 2, (300, 1)) / quantizer.levels)
    rows = np.concatenate(
        [normal, normal * np.exp(2 * normal[::-1]), normal * (generator.random((300, d)) < 0.2) + 1e-9, two_valued]
    )
    rows = rows[np.argsort(-relative_variance(quantizer, rows))[:20]]
    start = relative_variance(quantizer, rows).max()
    for _ in range(200):
        tried = rows * np.exp(generator.standard_normal(rows.shape) * generator.choice([0.003, 0.03, 0.3]))
        better = relative_variance(quantizer, tried) > relative_variance(quantizer, rows)
        rows[better] = tried[better]
    worst = relative_variance(quantizer, rows).max()
    assert worst >= start
    assert worst <= quantizer.omega(d) * (1 + 1e-9)


# quantizer, d, a row, its exact relative variance, and how many times more omega claims
WORST = [
    *((Quantize(), d, [1.0] * d, math.sqrt(d) - 1, math.sqrt(d) / (math.sqrt(d) - 1)) for d in (4, 9, 66, 1000)),
    *(
        (Quantize(1, "linf"), d, [1.0] + [1 / (1 + math.sqrt(d))] * (d - 1), (math.sqrt(d) - 1) / 2, 1.0)
        for d in (4, 66)
    ),
    (Quantize(1, "linf", bucket=9), 18, ([1.0] + [0.25] * 8) * 2, 1.0, 1.0),
    (Quantize(1, bucket=9), 18, [1.0] * 18, 2.0, 1.5),
    *((Quantize(s), 4 * s * s, [1.0] * (4 * s * s), 1.0, 2.0) for s in (1, 2, 5)),
    (Quantize(16, "linf"), 64, [1.0] + [1 / 32] * 63, 63 / (1024 + 63), 1.08),
]


@pytest.mark.parametrize(("quantizer", "d", "worst", "variance", "factor"), WORST)
def test_omega_is_tight(quantizer: Quantize, d: int, worst: list[float], variance: float, factor: float) -> None:
    found = relative_variance(quantizer, np.array([worst]))[0]
    assert found == pytest.approx(variance, rel=1e-9)
    assert found <= quantizer.omega(d) * (1 + 1e-12)
    assert quantizer.omega(d) <= factor * found * (1 + 1e-9)


@every_quantizer
@pytest.mark.parametrize("d", [1, 5, 64, 10_000])
def test_a_contraction_is_a_small_variance(quantizer: Quantize, d: int) -> None:
    assert quantizer.delta(d) == max(0.0, 1.0 - quantizer.omega(d))


def test_omega_by_hand() -> None:
    assert Quantize(1).omega(66) == math.sqrt(66)
    assert Quantize(16).omega(66) == 66 / 256
    assert Quantize(2).omega(10_000) == 50.0
    assert Quantize(2, bucket=100).omega(10_000) == 5.0
    assert Quantize(1, "linf").omega(66) == (math.sqrt(66) - 1) / 2
    assert Quantize(2, "linf").omega(9) == 9 / 16
    assert Quantize(2, "linf").omega(10_000) == 50.0


@pytest.mark.parametrize(
    ("d", "diana", "artemis"),
    [(66, 44478, 4477), (82, 55049, 5139), (20, 13836, 2071), (124, 82696, 6673), (301, 198442, 11604)],
)
def test_the_published_bits_of_a_round(d: int, diana: int, artemis: int) -> None:
    """20 clients, s = 1: the numbers of the published plots (their axis, read from the code's formula)."""
    message, shared = Quantize().formula_bits(d)
    assert round(20 * (message + 32 * d) + shared) == diana
    assert round(2 * (20 * message + shared)) == artemis


def test_buckets_add_up_in_the_formula() -> None:
    message, shared = Quantize(2, bucket=5).formula_bits(13)
    expected = 2 * Quantize(2).formula_bits(5)[0] + Quantize(2).formula_bits(3)[0]
    assert message == pytest.approx(expected, rel=1e-14)
    assert shared == 32.0


# ----------------------------------------------------------------------------------------------------------- magnitudes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1.2e-38, 1e-20, 1e20, 1e38])
@every_quantizer
def test_any_float32_magnitude(quantizer: Quantize, scale: float, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.5, -1.0, 0.0, 1.0, 1.0, 0.25, 1.0]], dtype=dtype) * scale
    payload = quantizer.compress(rows, NOISE, torch.arange(1))
    assert isinstance(payload, Levels)
    back = quantizer.decompress(payload, dtype)
    norms = torch.from_numpy(spread(quantizer, payload.norms.numpy(), 7))
    assert bool((norms > 0)[rows != 0].all())
    assert bool(((back - rows).abs() <= norms / quantizer.levels * (1 + 1e-6)).all())
    assert same(decode(encode(payload), payload.layout), payload)


def test_below_float32s_smallest_number_the_norm_is_that_number() -> None:
    rows = torch.tensor([[1e-300, -1e-320]], dtype=torch.float64)
    payload = Quantize(3).compress(rows, NOISE, torch.arange(1))
    assert isinstance(payload, Levels)
    assert payload.norms.tolist() == [[2.0**-149]]
    assert payload.levels.tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_quantizer
def test_rows_that_are_not_finite_are_refused(quantizer: Quantize, bad: float, dtype: torch.dtype) -> None:
    for i, j in ((0, 0), (1, 12), (2, 6)):
        rows = torch.ones(3, 13, dtype=dtype)
        rows[i, j] = bad
        with pytest.raises(DivergedError, match="not finite"):
            quantizer.compress(rows, NOISE, torch.arange(3))


def test_norms_beyond_float32_are_refused() -> None:
    large = torch.tensor([[3e38, 3e38]])
    with pytest.raises(DivergedError, match=r"exceeds 3\.4e38"):
        Quantize().compress(large, NOISE, torch.arange(1))
    assert bool(
        torch.isfinite(
            Quantize(1, "linf").decompress(Quantize(1, "linf").compress(large, NOISE, torch.arange(1)), torch.float32)
        ).all()
    )
    top = float(torch.finfo(torch.float32).max)
    for number in (1e39, 1e200, math.nextafter(top, math.inf)):
        for norm in ("l2", "linf"):
            with pytest.raises(DivergedError):
                Quantize(1, norm).compress(torch.tensor([[number]], dtype=torch.float64), NOISE, torch.arange(1))
    exact = Quantize().compress(torch.tensor([[top]], dtype=torch.float64), NOISE, torch.arange(1))
    assert Quantize().decompress(exact, torch.float64).tolist() == [[top]]
