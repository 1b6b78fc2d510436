import msgspec
import numpy as np
import pytest
import torch

from fedsim.data import Natural, Source, SyntheticLinear, SyntheticLogistic, describe, split
from fedsim.errors import ConfigError

WEIGHTS = np.array([(-1.0) ** (j + 1) * np.exp(-j / 10) for j in range(19)])


def residuals(dataset):
    """Labels minus what the model of the experiment says, by client: [clients, per_client]."""
    rows = dataset.train.features.numpy()
    return (dataset.train.targets.numpy() - rows[:, 1:] @ WEIGHTS - 2 * rows[:, 0]).reshape(20, 200)


@pytest.mark.parametrize("source", [SyntheticLinear(), SyntheticLogistic(), SyntheticLogistic(points="independent")])
def test_twenty_natural_clients_of_two_hundred_rows(source):
    dataset = source.load(0)
    assert dataset.test is None
    assert [holding.size for holding in describe(split(dataset, Natural(), 0))] == [200] * 20


@pytest.mark.parametrize("source", [SyntheticLinear(), SyntheticLogistic()])
def test_rows_follow_the_seed_alone(source):
    np.random.seed(1)
    first = source.load(1).train
    np.random.seed(2)
    again, other = source.load(1).train, source.load(2).train
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.features, other.features)


def test_without_noise_the_model_is_exact():
    assert np.abs(residuals(SyntheticLinear(noise=0).load(0))).max() < 1e-12


def test_the_published_noise_is_one_number_a_client():
    found = residuals(SyntheticLinear().load(0))
    assert np.abs(found - found[:, :1]).max() < 1e-12
    assert len(np.unique(found[:, 0].round(9))) == 20


def test_label_noise_is_one_number_a_row():
    found = residuals(SyntheticLinear(noise_kind="label").load(0))
    assert len(np.unique(found.round(9))) == 4000


def test_the_shifts_can_be_given_an_exact_variance():
    found = residuals(SyntheticLinear(noise_variance=0.12968).load(0))[:, 0]
    assert found.var() == pytest.approx(0.12968, rel=1e-12)
    free = residuals(SyntheticLinear().load(0))[:, 0]
    assert np.allclose(found / free, found[0] / free[0])


def test_the_minimum_is_the_published_one():
    """F* = 0.12968; least squares takes out about 19 / 4000 of the shifts' variance, a chi-square of 19 over 4000."""
    train = SyntheticLinear(noise_variance=0.12968).load(0).train
    fit = torch.linalg.lstsq(train.features, train.targets[:, None]).solution[:, 0]
    minimum = float(((train.features @ fit - train.targets) ** 2).mean())
    assert 0.985 * 0.12968 < minimum < 0.12968


def test_without_the_bias_there_are_only_points():
    assert SyntheticLinear(bias=False).load(0).train.features.shape == (4000, 19)
    assert SyntheticLinear().load(0).train.features.shape == (4000, 20)
    assert SyntheticLinear().load(0).train.features[:, 0].eq(1).all()


def test_a_variance_of_label_noise_is_refused(refused):
    with refused(ConfigError, "noise_variance = 0.1", 'noise_kind = "client-shift"'):
        SyntheticLinear(noise_kind="label", noise_variance=0.1).load(0)


@pytest.mark.parametrize(
    "source", [SyntheticLinear(noise=0, noise_variance=0.1), SyntheticLinear(1, noise_variance=0.1)]
)
def test_a_variance_of_equal_shifts_is_refused(refused, source):
    with refused(ConfigError, "noise_variance = 0.1", "noise > 0", "clients"):
        source.load(0)


def test_shared_points_differ_by_the_sign_of_one_coordinate():
    points = SyntheticLogistic().load(0).train.features.reshape(20, 200, 2)
    for client in range(20):
        flip = torch.tensor([-1.0 if client % 2 == 0 else 1.0, 1.0], dtype=torch.float64)
        assert torch.equal(points[client] * flip, points[1])


def test_independent_points_differ():
    points = SyntheticLogistic(points="independent").load(0).train.features.reshape(20, 200, 2)
    assert len(np.unique(points.abs().numpy().round(9))) == 8000


def test_clients_shared_points_have_labels_of_their_own():
    labels = SyntheticLogistic().load(0).train.targets.reshape(20, 200)
    assert len(torch.unique(labels[1::2], dim=0)) == 10


def test_options_come_from_a_table():
    table = {"source": "synthetic-linear", "noise": 0.0}
    assert msgspec.convert(table, Source) == SyntheticLinear(noise=0.0)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table | {"noise": float("inf")}, Source)
