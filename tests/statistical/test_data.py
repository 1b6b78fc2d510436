"""The laws of the random partitions and of the synthetic sets.

Seeds are fixed, so a test passes or fails for good. Each bound is where a right implementation would fall outside with
probability ALARM over the choice of seeds; together the tests of this file stay below 1e-5.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.data import (
    Dataset,
    Dirichlet,
    Examples,
    Iid,
    Quantity,
    SyntheticLinear,
    SyntheticLogistic,
    label_counts,
    split,
)
from fedsim.data.partition import _cut
from fedsim.data.prepare import generator, hold_out
from fedsim.randomness import Purpose

ALARM = 1e-7


def numbered(n, classes):
    train = Examples(torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) % classes, classes)
    return Dataset(train, None, "numbered")


@pytest.mark.parametrize("alpha", [0.5, 1.0, 10.0])
def test_dirichlet_shares_have_their_marginal_law(alpha):
    """A share of Dirichlet(a, ..., a) over N is Beta(a, (N - 1) a).

    Rounding to rows moves a share by up to 1 / 3000 and so its distribution by up to 0.03 where the density is largest,
    at alpha = 0.5, where one draw in 500 is also rejected for an empty client; the Kolmogorov-Smirnov bound for 600
    shares at ALARM is 0.118.
    """
    dataset, clients = numbered(6000, 2), 5
    shares = torch.cat([label_counts(split(dataset, Dirichlet(clients, alpha), seed)) for seed in range(300)]) / 3000
    by_client = shares.reshape(300, clients, 2)
    for client in (0, clients - 1):
        sample = by_client[:, client].flatten().numpy()
        assert stats.kstest(sample, stats.beta(alpha, (clients - 1) * alpha).cdf).pvalue > ALARM


def test_classes_have_independent_shares():
    """Correlation of a client's two shares over 600 seeds: normal with deviation 1 / sqrt(600)."""
    dataset = numbered(2000, 2)
    counts = torch.stack([label_counts(split(dataset, Dirichlet(5, 0.5), seed))[0] for seed in range(600)]).double()
    found = np.corrcoef(counts.numpy().T)[0, 1]
    assert abs(found) < stats.norm.isf(ALARM / 2) / np.sqrt(600)


def test_quantity_sizes_have_their_marginal_law():
    """(size - 1) / (n - N) is Beta(a, (N - 1) a), up to rounding of 5e-4."""
    dataset = numbered(2000, 2)
    sizes = torch.stack([split(dataset, Quantity(4, 2.0), seed).sizes for seed in range(600)])
    for client in (0, 3):
        share = ((sizes[:, client] - 1) / (2000 - 4)).numpy()
        assert stats.kstest(share, stats.beta(2.0, 6.0).cdf).pvalue > ALARM


@pytest.mark.parametrize("scheme", [Iid(4), Dirichlet(4, 5.0), Quantity(4, 5.0)], ids=repr)
def test_every_row_is_as_likely_at_every_client(scheme):
    """Chi-square of (row's place in the file, client) over seeds: clients do not know where a row stood.

    A place is one of 8 stretches of 32 rows; conditional on sizes a deal is without replacement, so counts are slightly
    less dispersed than the chi-square law and the upper bound is on the safe side of ALARM.
    """
    dataset = numbered(256, 2)
    total, expected = np.zeros((4, 8)), np.zeros((4, 8))
    for seed in range(400):
        federation = split(dataset, scheme, seed)
        owners = np.repeat(np.arange(4), federation.sizes.numpy())
        places = federation.features[:, 0].long().numpy() // 32
        np.add.at(total, (owners, places), 1)
        expected += federation.sizes.numpy()[:, None] / 8
    statistic = ((total - expected) ** 2 / expected).sum()
    assert stats.chi2(21).cdf(statistic) > ALARM
    assert stats.chi2(21).sf(statistic) > ALARM


def test_every_row_is_as_likely_to_be_held_out():
    """How often each of 50 rows is among the 10 of a test set over 2000 seeds: binomial(2000, 0.2), 50 bounds."""
    counts = np.zeros(50)
    for seed in range(2000):
        counts[hold_out(numbered(50, 2), 0.2, seed).test.features[:, 0].long().numpy()] += 1
    assert counts.min() > stats.binom(2000, 0.2).ppf(ALARM / 100)
    assert counts.max() < stats.binom(2000, 0.2).isf(ALARM / 100)


def test_linear_points_have_the_toeplitz_covariance():
    """Entries of the sample covariance of m points: deviation sqrt((1 + T_jk^2) / m); 361 entries."""
    points = SyntheticLinear(clients=50, per_client=1000, bias=False).load(0).train.features.numpy()
    expected = 0.6 ** np.abs(np.subtract.outer(np.arange(19), np.arange(19)))
    z = (points.T @ points / len(points) - expected) / np.sqrt((1 + expected**2) / len(points))
    assert np.abs(z).max() < stats.norm.isf(ALARM / 361)
    assert np.abs(points.mean(0)).max() < stats.norm.isf(ALARM / 19) / np.sqrt(len(points) / 4)


@pytest.mark.parametrize("kind", ["client-shift", "label"])
def test_linear_noise_has_its_deviation(kind):
    """Standardised sum of squares of m normal numbers: chi-square with m degrees of freedom."""
    options = {"clients": 2000, "per_client": 2, "features": 3, "noise_kind": kind}
    noisy, clean = SyntheticLinear(**options).load(3).train, SyntheticLinear(**options, noise=0).load(3).train
    noise = (noisy.targets - clean.targets).numpy().reshape(2000, 2)
    sample = noise[:, 0] if kind == "client-shift" else noise.ravel()
    statistic, m = (sample**2).sum() / 0.4**2, sample.size
    assert stats.chi2(m).ppf(ALARM) < statistic < stats.chi2(m).isf(ALARM)


@pytest.mark.parametrize("points", ["shared", "independent"])
def test_logistic_labels_follow_the_model_of_their_client(points):
    """Sum of label minus chance over rows of even and of odd clients, in three directions, against its deviation."""
    train = SyntheticLogistic(points=points, per_client=2000).load(0).train
    x, y = train.features.numpy().reshape(20, 2000, 2), train.targets.numpy().reshape(20, 2000)
    for start, weights in ((0, [10.0, -10.0]), (1, [10.0, 10.0])):
        rows, labels = x[start::2], y[start::2]
        chances = 1 / (1 + np.exp(-rows @ np.array(weights)))
        for direction in (np.ones_like(labels), rows[..., 0], rows[..., 1]):
            deviation = np.sqrt((chances * (1 - chances) * direction**2).sum())
            assert abs(((labels - chances) * direction).sum()) < stats.norm.isf(ALARM / 2) * deviation


def test_logistic_points_have_the_covariance_of_their_client():
    """Even clients have correlation -0.6, odd ones 0.6; Fisher's z of m points has deviation 1 / sqrt(m - 3)."""
    x = SyntheticLogistic(points="independent", per_client=2000).load(0).train.features.numpy().reshape(20, 2000, 2)
    for start, expected in ((0, -0.6), (1, 0.6)):
        sample = x[start::2].reshape(-1, 2)
        found = np.corrcoef(sample.T)[0, 1]
        assert abs(np.arctanh(found) - np.arctanh(expected)) < stats.norm.isf(ALARM / 2) / np.sqrt(len(sample) - 3)
        m = len(sample)
        for column in sample.T:
            assert stats.chi2(m).ppf(ALARM) < (column**2).sum() < stats.chi2(m).isf(ALARM)


def test_rounding_favours_no_client():
    """Equal shares of 2 rows over 3 clients: each gets 2 / 3 of a row on average, over 4000 cuts."""
    random = generator(0, Purpose.PARTITION)
    sizes = np.concatenate([_cut(np.full((2, 3), 1 / 3), np.array([2, 2]), random) for _ in range(2000)])
    assert sizes.sum(1).tolist() == [2] * 4000
    assert np.isin(sizes, [0, 1]).all()
    found = sizes.sum(0)
    assert found.min() > stats.binom(4000, 2 / 3).ppf(ALARM / 6)
    assert found.max() < stats.binom(4000, 2 / 3).isf(ALARM / 6)
