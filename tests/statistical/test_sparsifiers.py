"""Compressors that choose coordinates: constants that hold and are reached, laws of the draws, and others' known bugs.

The seeds are fixed. Over seeds, the false-alarm rates of the statistical tests add up to at most 1e-6: SUITE is shared
out over COMPARISONS, more than there are, which use exact binomial tails or Hoeffding's inequality.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from fedsim.compression import Bernoulli, Compressor, LowRank, PermK, Quantize, RandK, SparseTernary, TopK
from fedsim.compression.chosen import Drawn, Placed
from fedsim.compression.payload import Factors, parts
from fedsim.errors import DivergedError
from fedsim.randomness import SERVER, Purpose, Stream
from fedsim.wire import decode, encode, size

SUITE = 1e-6
COMPARISONS = 1000
TAIL = SUITE / COMPARISONS / 2
DRAWS = 20_000
NOISE = Stream(8, Purpose.UPLINK, 3)
Rows = NDArray[np.float64]


def decoded(compressor: Compressor, rows: Rows, noise: Stream = NOISE) -> Rows:
    """What each of n clients' rows becomes, float64[n, d]."""
    payload = compressor.compress(torch.from_numpy(rows), noise, torch.arange(len(rows)))
    return compressor.decompress(payload, torch.float64).numpy()


def draws(compressor: Compressor, row: Rows) -> Rows:
    """DRAWS decoded messages of one row, each by a client of its own."""
    return decoded(compressor, np.broadcast_to(row, (DRAWS, len(row))).copy())


def is_binomial(count: int, chance: float, blur: float = 0.0, of: int = DRAWS) -> bool:
    """Whether a count may be of so many draws of this chance, known up to ``blur``."""
    low, high = max(chance - blur, 0.0), min(chance + blur, 1.0)
    return bool(binom.cdf(count, of, high) >= TAIL and binom.sf(count - 1, of, low) >= TAIL)


def rounds(perm: PermK, rows: Rows, count: int) -> Rows:
    """float64[count, N, d]: what clients 0 to N - 1 decode to in each of some rounds."""
    return np.stack([decoded(perm, rows, NOISE.at(each)) for each in range(count)])


def errors(found: Rows, rows: Rows) -> Rows:
    """||C(x) - x||^2 / ||x||^2 of each row."""
    return np.asarray(((found - rows) ** 2).sum(axis=-1) / (rows**2).sum(axis=-1))


# -------------------------------------------------------------------------------------------------------- what is drawn

POWERS = 2.0 ** np.arange(6)  # float32 holds their multiples, and each sum tells the set


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_every_set_of_k_has_the_same_chance(k: int, unbiased: bool) -> None:
    """15 or fewer sets of 6; that all are sets of k, without repetition, and scaled by d / k, is exact."""
    found = draws(RandK(k / 6, unbiased), POWERS)
    scale = 6 / k if unbiased else 1.0
    np.testing.assert_allclose(found, np.where(found != 0, scale * POWERS, 0), rtol=2**-23)
    assert set((found != 0).sum(axis=1).tolist()) == {k}
    for some in combinations(range(6), k):
        mask = np.isin(np.arange(6), some)
        assert is_binomial(int(((found != 0) == mask).all(axis=1).sum()), 1 / math.comb(6, k))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_a_mask_is_of_independent_coordinates(p: float) -> None:
    """All 16 masks of 4 coordinates."""
    found = draws(Bernoulli(p), POWERS[:4])
    np.testing.assert_allclose(found, np.where(found != 0, POWERS[:4] / p, 0), rtol=2**-22)
    for mask in np.ndindex(2, 2, 2, 2):
        chance = math.prod(p if kept else 1 - p for kept in mask)
        assert is_binomial(int(((found != 0) == np.array(mask)).all(axis=1).sum()), chance, 2.0**-31)


@pytest.mark.parametrize(("parts_", "d"), [(1, 3), (3, 6), (3, 7), (4, 2)])
def test_blocks_of_an_order_are_dealt_out(parts_: int, d: int) -> None:
    """Each coordinate goes to one client, each as likely, and for d = 6 every pair of them; clients go by N."""
    perm = PermK(parts_)
    found = rounds(perm, np.ones((parts_, d)), 2000)
    assert ((found != 0).sum(axis=1) == 1).all()
    assert set(np.unique(found)) <= {0.0, parts_}
    for client in range(parts_):
        for j in range(d):
            assert is_binomial(int((found[:, client, j] != 0).sum()), 1 / parts_, of=2000)
        for pair in combinations(range(6), 2) if (parts_, d) == (3, 6) else ():
            mask = np.isin(np.arange(6), pair)
            assert is_binomial(int(((found[:, client] != 0) == mask).all(axis=1).sum()), 1 / 15, of=2000)
    ids = torch.tensor([1, 1 + parts_, 1 + 7 * parts_])
    again = perm.decompress(perm.compress(torch.ones(3, d), NOISE, ids), torch.float64)
    assert torch.equal(again[0], again[1])
    assert torch.equal(again[0], again[2])


def test_the_order_is_that_of_the_round_and_the_purpose() -> None:
    orders = set()
    for noise in (NOISE, NOISE.at(4), Stream(9, Purpose.UPLINK, 3), Stream(8, Purpose.DOWNLINK, 3)):
        payload = PermK(5).compress(torch.ones(7, 40), noise, torch.arange(7))
        assert isinstance(payload, Drawn)
        assert len(set(payload.seeds.tolist())) == 1
        assert payload.numbers.tolist() == [0, 1, 2, 3, 4, 0, 1]
        orders.add(int(payload.seeds[0]))
    assert len(orders) == 4


@pytest.mark.parametrize("compressor", [RandK(0.25), Bernoulli(0.25)], ids=repr)
def test_clients_and_rounds_draw_apart(compressor: Compressor) -> None:
    """Sets of different clients meet as often as independent ones: a coordinate is in both with chance 1 / 16."""
    one = draws(compressor, np.ones(8)) != 0
    for other in (np.roll(one, 1, axis=0), decoded(compressor, np.ones((DRAWS, 8)), NOISE.at(4)) != 0):
        for j in range(8):
            assert is_binomial(int((one[:, j] & other[:, j]).sum()), 1 / 16)


# ----------------------------------------------------------------------------------------------- unbiased: the variance


@pytest.mark.parametrize(
    "row", [np.ones(6), POWERS, np.array([0, 0, -3.0, 0.01, 0, 7])], ids=["equal", "wide", "zeros"]
)
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_omega_of_equally_likely_sets_is_exact(k: int, row: Rows) -> None:
    """Summed over all sets of k, with the outcomes and chances that the tests above confirm: reached by every row."""
    sets = np.array([np.isin(np.arange(6), some) for some in combinations(range(6), k)])
    assert np.allclose((sets * row * 6 / k).mean(axis=0), row, rtol=1e-14)
    assert errors(sets * row * 6 / k, row).mean() == pytest.approx(RandK(k / 6).omega(6), rel=1e-13, abs=1e-15)
    assert errors(sets * row, row).mean() == pytest.approx(1 - RandK(k / 6, False).delta(6), rel=1e-13, abs=1e-15)
    assert PermK(6 // k).omega(6) == pytest.approx(RandK(k / 6).omega(6), rel=1e-13)  # a block is such a set


def test_omega_of_a_mask_is_exact() -> None:
    for p in (1.0, 0.3, 1e-3):
        assert Bernoulli(p).omega(9) == pytest.approx(p * (1 / p - 1) ** 2 + 1 - p, rel=1e-6)


def test_equal_rows_lose_nothing_together() -> None:
    """PermK, N = 5, with and without N | d: the mean over all clients is the row, whatever the order."""
    for d in (3, 10, 13):
        row = np.random.default_rng(d).standard_normal(d).astype(np.float32).astype(np.float64)
        means = rounds(PermK(5), np.tile(row, (5, 1)), 50).mean(axis=1)
        np.testing.assert_allclose(means, np.tile(row, (50, 1)), rtol=2**-22)


def test_rows_that_differ_lose_their_spread_and_a_part_of_a_cohort_the_rest() -> None:
    """E||mean C_i(x_i) - mean x_i||^2 = mean ||x_i||^2 - ||mean x_i||^2; (N / m - 1) ||x||^2 for m of N equal rows."""
    rows = np.random.default_rng(0).standard_normal((4, 8))
    found = rounds(PermK(4), rows, 4000)
    expected = (rows**2).sum() / 4 - (rows.mean(axis=0) ** 2).sum()
    measured = ((found.mean(axis=1) - rows.mean(axis=0)) ** 2).sum(axis=1)
    most = ((np.abs(rows).max(axis=0) + np.abs(rows.mean(axis=0))) ** 2).sum()
    assert abs(measured.mean() - expected) <= most * math.sqrt(math.log(1 / TAIL) / 2 / 4000)
    alone = rounds(PermK(4), np.ones((4, 8)), 20)[:, :3].mean(axis=1)
    np.testing.assert_allclose(errors(alone, np.ones(8)), 4 / 3 - 1, rtol=1e-12)


@pytest.mark.parametrize("s", [1, 2])
def test_a_composition_is_unbiased_with_the_variance_of_both(s: int) -> None:
    """Rows of equal magnitudes, k = 4 of 12: s |y_j| / ||y|| = s / 2, so a coordinate is other than zero with chance
    (1 / 3) (s / 2), and then 3 ||y|| / s. E||C(x)||^2 = 3 ||x||^2 (1 + 2 / s - 1); omega says 2 / s for 2 / s - 1.
    """
    compressor = RandK(1 / 3, values=Quantize(s))
    row = np.array([1.0, -1.0] * 6)
    found = draws(compressor, row)
    high = 3 * 2 / s
    assert set(np.unique(found)) <= {-high, 0.0, high}
    for j in range(12):
        assert is_binomial(int((found[:, j] == high * row[j]).sum()), s / 6, 2.0**-22)
    claimed = compressor.omega(12)
    assert claimed == pytest.approx(3 * (1 + Quantize(s).omega(4)) - 1)
    exact = 3 * 2 / s - 1
    most = ((high + 1) ** 2 * 12) / 12
    assert abs(errors(found, row).mean() - exact) <= most * math.sqrt(math.log(1 / TAIL) / 2 / DRAWS)
    assert exact <= claimed <= exact + 3 + 1e-12


def test_constants_by_hand() -> None:
    assert RandK(0.1).omega(1000) == 9.0
    assert RandK(0.1).delta(1000) == 0.0
    assert RandK(0.8).delta(10) == pytest.approx(0.75)
    assert RandK(0.1, values=Quantize(2)).omega(1000) == pytest.approx(10 * (1 + 5) - 1)
    assert RandK(0.1, unbiased=False).omega(1000) == math.inf
    assert RandK(0.1, unbiased=False).delta(1000) == 0.1
    assert RandK(0.1, unbiased=False, values=Quantize(20)).delta(1000) == pytest.approx(0.1 * (1 - 0.25))
    assert RandK(1.0, unbiased=False).omega(7) == 0.0
    assert Bernoulli(0.25).omega(3) == 3.0
    assert Bernoulli(0.8).delta(3) == pytest.approx(0.75)
    assert Bernoulli(1e-20).layout(3) == Bernoulli(2.0**-32).layout(3)
    assert (PermK(1).omega(9), PermK(1).delta(9), PermK(4).omega(9), PermK(4).delta(9)) == (0.0, 1.0, 3.0, 0.0)
    assert (TopK(0.1).omega(50), TopK(0.1).delta(50), TopK(1.0).omega(50)) == (math.inf, 0.1, 0.0)
    assert TopK(0.5, values=Quantize(4)).delta(8) == 0.5 * 0.75
    assert TopK(0.5, values=Quantize(1)).delta(8) == 0.0
    assert (SparseTernary(0.5).delta(64), SparseTernary(0.1).delta(100)) == (1 / 32, 0.1)
    assert (SparseTernary().omega(2), SparseTernary().omega(1), SparseTernary().delta(1)) == (math.inf, 0.0, 1.0)
    assert (LowRank(2).delta(100), LowRank(2).omega(100), LowRank(10).delta(100), LowRank(10).omega(100)) == (
        0.2,
        math.inf,
        1.0,
        0.0,
    )
    assert LowRank(3, columns=20).delta(40) == 1.0  # 2 rows of 20: both are kept


# ---------------------------------------------------------------------------------------------- biased: the contraction


def test_the_largest_are_kept_and_of_equal_ones_the_first() -> None:
    generator = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        for _ in range(50):
            d = int(generator.integers(1, 40))
            k = int(generator.integers(1, d + 1))
            rows = generator.integers(-3, 4, (5, d)).astype(dtype)
            rows[0] = -0.0
            payload = TopK(k / d).compress(torch.from_numpy(rows), NOISE, torch.arange(5))
            assert isinstance(payload, Placed)
            for row, found in zip(rows, payload.places.tolist(), strict=True):
                assert found == sorted(sorted(range(d), key=lambda j: (-abs(row[j]), j))[:k])
                assert payload.places.dtype == torch.int32


def uphill(compressor: Compressor, d: int, steps: int = 150) -> float:
    """The largest ||C(x) - x||^2 / ||x||^2 found, for a compressor without noise."""
    generator = np.random.default_rng(d)
    normal = generator.standard_normal((200, d))
    spike = np.where(np.arange(d) == 0, 1.0, generator.uniform(0, 0.05, (50, 1)))
    rows = np.concatenate([normal, normal * np.exp(2 * normal[::-1]), np.ones((1, d)), spike])
    worst = errors(decoded(compressor, rows), rows)
    for _ in range(steps):
        tried = rows * np.exp(generator.standard_normal(rows.shape) * generator.choice([0.003, 0.03, 0.3]))
        found = errors(decoded(compressor, tried), tried)
        better = found > worst
        rows[better], worst[better] = tried[better], found[better]
    return float(worst.max())


@pytest.mark.parametrize("d", [1, 2, 7, 30])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("kind", [TopK, SparseTernary])
def test_delta_holds_for_the_worst_rows_found(kind: type[TopK | SparseTernary], fraction: float, d: int) -> None:
    compressor = kind(fraction)
    assert uphill(compressor, d) <= 1 - compressor.delta(d) + 1e-6


@pytest.mark.parametrize(("d", "k"), [(2, 1), (12, 3), (12, 12), (30, 5), (30, 20)])
def test_delta_is_reached(d: int, k: int) -> None:
    """By equal magnitudes, or one that dwarfs the others."""
    equal, spike = np.ones((1, d)), np.where(np.arange(d) == 0, 1.0, 1e-6)[None]
    assert errors(decoded(TopK(k / d), equal), equal)[0] == pytest.approx(1 - k / d, abs=1e-12)
    worst = max(errors(decoded(SparseTernary(k / d), row), row)[0] for row in (equal, spike))
    assert worst == pytest.approx(1 - SparseTernary(k / d).delta(d), abs=1e-5)


@pytest.mark.parametrize("compressor", [TopK(0.25, values=Quantize(4)), RandK(0.25, False, Quantize(4))], ids=repr)
def test_delta_of_a_composition(compressor: TopK | RandK) -> None:
    """Rows of equal magnitudes and a Gaussian one; 4 of 16 coordinates in 4 levels: delta is 0.25 (1 - 4 / 16)."""
    assert compressor.delta(16) == pytest.approx(0.25 * 0.75)
    for row in (np.ones(16), np.random.default_rng(5).standard_normal(16)):
        found = errors(draws(compressor, row), row)
        allowed = 1.25 * math.sqrt(math.log(1 / TAIL) / 2 / DRAWS)  # an error is at most 1 + 4 / 16
        assert found.mean() <= 1 - compressor.delta(16) + allowed


def test_stc_sends_the_best_multiple_of_its_signs() -> None:
    rows = np.array([[4.0, -2.0, 1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, -3.0, 1.0, 0.0], np.zeros(6)])
    expected = [[7 / 3, -7 / 3, 7 / 3, 0, 0, 0], [0, 0, 0, -2, 2, 0], [0] * 6]
    np.testing.assert_allclose(decoded(SparseTernary(0.5), rows), expected, rtol=2**-23)
    tiny = torch.tensor([[1e-300, -1e-310, 0.0]], dtype=torch.float64)
    payload = SparseTernary(1.0).compress(tiny, NOISE, torch.arange(1))
    assert encode(payload) == [bytes(4)]


# ------------------------------------------------------------------------------------------------------------- low rank


def test_low_rank_is_a_projection() -> None:
    """What is left is orthogonal to what is sent, and no longer than the row; columns are orthonormal or zero."""
    generator = np.random.default_rng(2)
    for d, rank, columns in ((1, 1, 0), (2, 5, 0), (13, 2, 0), (100, 3, 0), (100, 3, 7), (30, 4, 30), (1000, 4, 0)):
        rows = generator.standard_normal((20, d)) * np.exp(generator.standard_normal((20, d)) * 2)
        compressor = LowRank(rank, columns)
        payload = compressor.compress(torch.from_numpy(rows), NOISE, torch.arange(20))
        assert isinstance(payload, Factors)
        products = payload.left.double() @ payload.left.double().mT
        assert bool(((products - torch.eye(payload.layout.rank)).abs() < 1e-6).all())
        found = compressor.decompress(payload, torch.float64).numpy()
        sent, left = (found**2).sum(axis=1), ((rows - found) ** 2).sum(axis=1)
        whole = (rows**2).sum(axis=1)
        assert (left <= whole * (1 + 1e-6)).all()
        if d == payload.layout.rows * payload.layout.columns:  # no padding is cut off
            np.testing.assert_allclose(sent, (payload.right.double().numpy() ** 2).sum(axis=(1, 2)), rtol=1e-5)
            np.testing.assert_allclose(sent + left, whole, rtol=1e-5)


@pytest.mark.parametrize(("rank", "true"), [(1, 1), (3, 1), (3, 2), (4, 4), (6, 6)])
def test_a_matrix_of_low_rank_crosses_whole(rank: int, true: int) -> None:
    """Columns in the span of those before them are zero, so that nothing is sent twice."""
    generator = np.random.default_rng(rank)
    row = (generator.standard_normal((6, true)) @ generator.standard_normal((true, 6))).reshape(1, 36)
    payload = LowRank(rank).compress(torch.from_numpy(row), NOISE, torch.arange(1))
    assert isinstance(payload, Factors)
    assert (payload.left[0].abs().amax(dim=1) > 0).tolist() == [i < true for i in range(rank)]
    np.testing.assert_allclose(LowRank(rank).decompress(payload, torch.float64).numpy(), row, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_delta_of_low_rank_holds_on_average_and_is_reached(rank: int) -> None:
    """||C(x)||^2 / ||x||^2 is in [0, 1]. Orthogonal matrices lose 1 - r / columns at every start."""
    generator = np.random.default_rng(rank)
    orthogonal = np.linalg.qr(generator.standard_normal((8, 8)))[0].reshape(1, 64)
    exact = errors(decoded(LowRank(rank), orthogonal), orthogonal)[0]
    assert exact == pytest.approx(1 - LowRank(rank).delta(64), abs=1e-6)
    lone = np.zeros(64)
    lone[11] = 1.0
    decaying = (np.diag(0.9 ** np.arange(8.0))).reshape(64)
    tall = np.concatenate([np.eye(5).reshape(25), np.ones(5)])  # 6 rows of 5
    for row in (lone, decaying, tall, generator.standard_normal(64)):
        lost = errors(draws(LowRank(rank), row), row).mean()
        assert lost <= 1 - LowRank(rank).delta(len(row)) + 1e-6 + math.sqrt(math.log(1 / TAIL) / 2 / DRAWS)


# ------------------------------------------------------------------------------------------------------- bugs of others


def test_magnitudes_are_compared_not_numbers() -> None:
    """Top-k without abs keeps the largest numbers."""
    assert decoded(TopK(1 / 3), np.array([[-5.0, 1.0, 2.0]])).tolist() == [[-5.0, 0.0, 0.0]]
    assert decoded(SparseTernary(1 / 3), np.array([[-5.0, 1.0, 2.0]])).tolist() == [[-5.0, 0.0, 0.0]]


@pytest.mark.parametrize("d", [1, 2, 5, 64, 1000])
def test_no_place_is_drawn_twice(d: int) -> None:
    """With replacement, k = d would leave a row of 1000 coordinates whole with chance 10^-433."""
    row = np.linspace(1, 2, d).astype(np.float32).astype(np.float64)[None]
    assert decoded(RandK(1.0), row).tolist() == row.tolist()
    assert decoded(PermK(1), row).tolist() == row.tolist()
    assert decoded(Bernoulli(1.0), row).tolist() == row.tolist()
    for fraction in (0.1, 0.5, 0.9):
        found = decoded(RandK(fraction), np.repeat(row, 20, axis=0))
        assert ((found != 0).sum(axis=1) == max(1, round(fraction * d))).all()


@pytest.mark.parametrize(("d", "fraction"), [(100, 0.01), (1000, 0.01), (1000, 0.2), (100_000, 0.001)])
def test_each_place_is_counted(d: int, fraction: float) -> None:
    """Index bits of all k places, not of one: at least log2 of the number of sets, at most as a table would take."""
    k = round(fraction * d)
    rows = torch.randn(5, d, generator=torch.Generator().manual_seed(d))
    payload = TopK(fraction).compress(rows, NOISE, torch.arange(5))
    sets = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
    table = TopK(fraction).formula_bits(d)[0]
    assert table == 32 * k + k * math.ceil(math.log2(d))
    bits = size(payload)
    assert bits.tolist() == [8 * len(message) for message in encode(payload)]
    assert bool((bits >= 32 * k + min(sets, 40) - 8).all())
    assert bool((bits <= table + 5 + 7).all())
    assert bits.double().mean() >= 32 * k + sets - 8


@pytest.mark.parametrize(
    "compressor", [RandK(0.5), Bernoulli(0.5), PermK(2), TopK(0.5), SparseTernary(0.5), LowRank(1)], ids=repr
)
def test_a_broadcast_is_the_same_for_every_client(compressor: Compressor) -> None:
    """The first client's decoding, or another cohort's messages, leave the server's message as it was."""
    payload = compressor.compress(torch.linspace(-1, 2, 12)[None], Stream(1, Purpose.DOWNLINK), torch.tensor([SERVER]))
    (message,), before = encode(payload), {name: part.clone() for name, part in parts(payload).items()}
    received = [compressor.decompress(decode([message], payload.layout), torch.float32) for _ in range(2)]
    received[0] *= 2
    compressor.compress(received[0], Stream(1, Purpose.DOWNLINK), torch.tensor([SERVER]))
    assert torch.equal(compressor.decompress(payload, torch.float32), received[1])
    assert all(torch.equal(part, before[name]) for name, part in parts(payload).items())
    assert encode(payload) == [message]


# ----------------------------------------------------------------------------------------------------------- the limits

EVERY: list[Compressor] = [
    *(RandK(0.5), RandK(0.5, False), RandK(0.5, values=Quantize(2)), Bernoulli(0.5), PermK(2)),
    *(TopK(0.5), TopK(0.5, values=Quantize(2)), SparseTernary(0.5), LowRank(1)),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_rows_that_are_not_finite_are_refused(compressor: Compressor, bad: float) -> None:
    rows = torch.ones(2, 9)
    rows[1, 4] = bad
    with pytest.raises(DivergedError, match="not finite"):
        compressor.compress(rows, NOISE, torch.arange(2))


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_numbers_beyond_the_wire_are_refused(compressor: Compressor) -> None:
    with pytest.raises(DivergedError, match=r"3\.4e38"):
        compressor.compress(torch.full((1, 9), 1e39, dtype=torch.float64), NOISE, torch.arange(1))


@pytest.mark.parametrize("compressor", [RandK(0.01), PermK(100), Bernoulli(1 / 7)], ids=repr)
def test_a_factor_may_push_a_number_beyond_the_wire(compressor: Compressor) -> None:
    with pytest.raises(DivergedError, match=r"3\.4e38"):
        compressor.compress(torch.full((1, 100), 1e38), NOISE, torch.arange(1))


def test_formulas_of_the_papers() -> None:
    assert RandK(0.01).formula_bits(1000) == (32 * 10 + 64, 0.0)
    assert RandK(0.01, values=Quantize(2)).formula_bits(1000) == (Quantize(2).formula_bits(10)[0] + 64, 32.0)
    assert Bernoulli(0.01).formula_bits(1000) == (32 * 10 + 64, 0.0)
    assert PermK(10).formula_bits(1000) == (3200.0, 64.0)
    assert LowRank(2).formula_bits(10_000) == (32.0 * 2 * 200, 0.0)
    assert SparseTernary(1.0).formula_bits(50) == (82.0, 0.0)


@pytest.mark.parametrize(("share", "bits"), [(0.1, 4.76), (0.01, 8.11), (0.001, 11.50)])
def test_golomb_bits_of_a_place(share: float, bits: float) -> None:
    """Beside the figures of Sattler et al.'s formula: entropy 4.69, 8.08, 11.41."""
    message, shared = SparseTernary(share).formula_bits(10**6)
    assert (message - 32) / (share * 10**6) - 1 == pytest.approx(bits, abs=0.006)
    assert shared == 0.0
    assert SparseTernary(0.9).formula_bits(10)[0] == pytest.approx(32 + 9 * (1 + 1 / 0.9))
