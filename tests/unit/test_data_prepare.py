import numpy as np
import pytest
import torch

from fedsim.data import BreastCancer, Dataset, Digits, Examples
from fedsim.data.prepare import check, hold_out, prepare, standardised, with_bias
from fedsim.errors import ConfigError, DataError


def toy(n=10, classes=2):
    features = torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2)
    return Dataset(Examples(features, torch.arange(n) % classes, classes), None, "toy")


def test_standardising_uses_the_training_rows_only():
    train = Examples(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([0, 1]), 2)
    test = Examples(torch.tensor([[5.0, 6.0]]), torch.tensor([0]), 2)
    done, held = standardised(train, test)
    assert done.features.tolist() == [[-1, 0], [1, 0]]
    assert held.features.tolist() == [[3, 0]]


@pytest.mark.parametrize("constant", [0.1, 1e300, -7.3, 1e-300])
def test_a_constant_column_becomes_zero_whatever_its_mean_rounds_to(constant):
    train = Examples(torch.full((7, 1), constant, dtype=torch.float64), torch.arange(7) % 2, 2)
    assert standardised(train, None)[0].features.eq(0).all()


def test_images_are_standardised_pixel_by_pixel():
    features = torch.rand(50, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    done = standardised(Examples(features, torch.zeros(50), None), None)[0].features
    assert torch.allclose(done.mean(0), torch.zeros(1, 4, 4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(done.square().mean(0), torch.ones(1, 4, 4, dtype=torch.float64))


def test_the_bias_is_the_first_column():
    done = with_bias(toy(3).train)
    assert done.features[:, 0].tolist() == [1, 1, 1]
    assert torch.equal(done.features[:, 1:], toy(3).train.features)


def test_a_bias_needs_flat_rows(refused):
    with refused(ConfigError, "bias = true", "(1, 2, 2)", "bias = false"):
        with_bias(Examples(torch.zeros(3, 1, 2, 2), torch.zeros(3), None))


def test_held_out_rows_and_the_rest_are_the_whole_in_file_order():
    done = hold_out(toy(10), 0.3, seed=1)
    train, test = done.train.features[:, 0] / 2, done.test.features[:, 0] / 2
    assert len(done.test) == 3
    assert sorted(train.tolist() + test.tolist()) == list(range(10))
    assert train.tolist() == sorted(train.tolist())
    assert test.tolist() == sorted(test.tolist())
    assert torch.equal(done.train.targets, train.long() % 2)


def test_held_out_rows_follow_the_seed_alone():
    np.random.seed(1)
    torch.manual_seed(1)
    first = hold_out(toy(100), 0.3, seed=1).test.features
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(first, hold_out(toy(100), 0.3, seed=1).test.features)
    assert not torch.equal(first, hold_out(toy(100), 0.3, seed=2).test.features)


def test_groups_follow_their_rows():
    dataset = Dataset(toy(10).train, None, "toy", torch.arange(10))
    done = hold_out(dataset, 0.3, seed=1)
    assert torch.equal(done.groups, (done.train.features[:, 0] / 2).long())


def test_prepare_holds_out_before_it_standardises():
    done = prepare(toy(20), standardise=True, bias=True, test_fraction=0.25, seed=3)
    assert torch.allclose(done.train.features[:, 1:].mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert done.train.features.shape == (15, 3)
    assert done.test.features.shape == (5, 3)
    assert done.test.features[:, 0].eq(1).all()


def test_a_second_test_set_is_refused(refused):
    dataset = Dataset(toy().train, toy().train, "toy")
    with refused(ConfigError, "test_fraction = 0.5", "toy has its own test set", "test_fraction = 0"):
        hold_out(dataset, 0.5, 0)


@pytest.mark.parametrize("fraction", [-0.1, 0.96, 1.5])
def test_holding_out_everything_is_refused(refused, fraction):
    with refused(ConfigError, f"test_fraction = {fraction} of 10 rows", "lower it"):
        hold_out(toy(), fraction, 0)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_name_their_row(refused, broken):
    dataset = toy()
    dataset.train.features[7, 1] = broken
    with refused(DataError, "toy: training row 7 (from 0)", "NaN or infinity", "features", "remove the row"):
        check(dataset)
    with refused(DataError, "toy: test row 7 (from 0)", "features"):
        check(Dataset(toy().train, dataset.train, "toy"))
    regression = Examples(torch.zeros(3, 1), torch.tensor([0.0, broken, 1.0]), None)
    with refused(DataError, "toy: training row 1 (from 0)", "target"):
        check(Dataset(regression, None, "toy"))


def test_no_rows_are_refused(refused):
    with refused(DataError, "toy: training set has no rows"):
        check(Dataset(toy().train.take(slice(0, 0)), None, "toy"))


def test_targets_of_another_shape_are_refused(refused):
    with refused(DataError, "toy: training targets have shape (9,), expected (10,)"):
        check(Dataset(Examples(toy().train.features, torch.zeros(9, dtype=torch.int64), 2), None, "toy"))


@pytest.mark.parametrize("number", [-1, 2])
def test_class_numbers_beyond_the_classes_name_their_row(refused, number):
    dataset = toy()
    dataset.train.targets[4] = number
    with refused(DataError, "toy: training row 4 (from 0)", f"class {number}", "expected 0 to 1"):
        check(dataset)


def test_a_training_set_of_one_class_is_refused(refused):
    train = Examples(torch.zeros(4, 1), torch.ones(4, dtype=torch.int64), 2)
    with refused(DataError, "toy: all 4 training rows have class 1", "expected at least two classes"):
        check(Dataset(train, None, "toy"))


def test_a_constant_regression_target_is_allowed():
    check(Dataset(Examples(torch.zeros(4, 1), torch.ones(4), None), None, "toy"))


def test_digits():
    dataset = Digits().load(0)
    assert dataset.train.features.shape == (1438, 64)
    assert dataset.test.features.shape == (359, 64)
    assert dataset.train.features.dtype == torch.float64
    assert (dataset.train.features.min(), dataset.train.features.max()) == (0, 1)
    assert dataset.train.classes == 10
    assert torch.bincount(torch.cat([dataset.train.targets, dataset.test.targets])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


def test_digits_without_a_test_set_keep_every_row():
    dataset = Digits(test_fraction=0, bias=True).load(0)
    assert dataset.test is None
    assert dataset.train.features.shape == (1797, 65)


def test_breast_cancer():
    dataset = BreastCancer().load(0)
    assert dataset.train.features.shape == (455, 31)
    assert dataset.test.features.shape == (114, 31)
    assert torch.bincount(torch.cat([dataset.train.targets, dataset.test.targets])).tolist() == [212, 357]
    assert torch.allclose(dataset.train.features[:, 1:].square().mean(0), torch.ones(30, dtype=torch.float64))
