"""What every source does to its rows: check, hold out a test set, standardise, prepend the bias column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.data.examples import Dataset, Examples
from fedsim.errors import ConfigError, DataError
from fedsim.randomness import Purpose, Stream


def generator(seed: int, purpose: Purpose) -> np.random.Generator:
    """numpy's own generator for one purpose of an experiment, keyed by the experiment's stream."""
    return np.random.Generator(np.random.Philox(key=Stream(seed, purpose).integer()))


def prepare(dataset: Dataset, *, standardise: bool, bias: bool, test_fraction: float, seed: int) -> Dataset:
    """Check, hold out, standardise, add the bias, in this order, so that the test rows never shape the training rows.

    Args:
        dataset: raw rows, in the order of the file.
        standardise: every feature gets mean 0 and standard deviation 1 over the training rows.
        bias: prepend a column of ones; needs features of shape [n, d].
        test_fraction: share of the rows held out at random; needs a dataset without a test set.
        seed: the experiment's.

    Raises DataError as ``check``, ConfigError when the options do not fit the data.
    """
    check(dataset)
    if test_fraction:
        dataset = hold_out(dataset, test_fraction, seed)
    train, test = dataset.train, dataset.test
    if standardise:
        train, test = standardised(train, test)
    if bias:
        train, test = with_bias(train), None if test is None else with_bias(test)
    return replace(dataset, train=train, test=test)


def check(dataset: Dataset) -> None:
    """Raise DataError unless the rows can be learned from.

    Every number is finite, class numbers are within the number of classes, and a classification has two classes.
    """
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        if examples is not None:
            check_rows(examples, f"{dataset.name}: {part}")
    train = dataset.train
    if train.classes is not None and int(train.targets.min()) == int(train.targets.max()):
        raise DataError(
            f"{dataset.name}: all {len(train)} training rows have class {int(train.targets[0])}, "
            "expected at least two classes; use more rows or another file"
        )


def check_rows(examples: Examples, where: str) -> None:
    """Raise DataError, headed by ``where``, unless there are rows, finite, of known classes."""
    if len(examples) == 0:
        raise DataError(f"{where} set has no rows, expected at least one; use another file or limit")
    if examples.targets.shape != (len(examples),):
        raise DataError(f"{where} targets have shape {tuple(examples.targets.shape)}, expected ({len(examples)},)")
    for what, values in (("features", examples.features), ("target", examples.targets)):
        broken = ~torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else ~torch.isfinite(values)
        if bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise DataError(f"{where} row {row} (from 0) has NaN or infinity in its {what}; repair or remove the row")
    if examples.classes is not None:
        beyond = (examples.targets < 0) | (examples.targets >= examples.classes)
        if bool(beyond.any()):
            row = int(beyond.nonzero()[0])
            raise DataError(
                f"{where} row {row} (from 0) has class {int(examples.targets[row])}, "
                f"expected 0 to {examples.classes - 1}; repair or remove the row"
            )


def hold_out(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Move round(fraction * n) random rows, at least one, to a test set. Both parts keep the order of the file.

    Raises ConfigError unless 0 < fraction < 1, there is no test set yet and a training row is left.
    """
    if dataset.test is not None:
        raise ConfigError(f"test_fraction = {fraction}, but {dataset.name} has its own test set; set test_fraction = 0")
    n = len(dataset.train)
    held = max(1, round(fraction * n))
    if not 0 < fraction < 1 or held >= n:
        raise ConfigError(
            f"test_fraction = {fraction} of {n} rows, expected between 0 and 1 with a training row left; lower it"
        )
    is_test = np.zeros(n, dtype=bool)
    is_test[generator(seed, Purpose.SPLIT).permutation(n)[:held]] = True
    test_rows, train_rows = torch.from_numpy(np.flatnonzero(is_test)), torch.from_numpy(np.flatnonzero(~is_test))
    groups = None if dataset.groups is None else dataset.groups[train_rows]
    return replace(dataset, train=dataset.train.take(train_rows), test=dataset.train.take(test_rows), groups=groups)


def standardised(train: Examples, test: Examples | None) -> tuple[Examples, Examples | None]:
    """Both sets with the mean and the standard deviation (divided by n) of the training rows taken out.

    A column that is constant over the training rows becomes 0 in both.
    """
    mean = train.features.mean(0)
    # Equal extremes tell a constant column exactly; its computed deviation may be a rounding error instead of 0.
    varies = train.features.amax(0) > train.features.amin(0)
    deviation = train.features.std(0, correction=0)
    scale = torch.where(varies, deviation, torch.ones_like(deviation))

    def scaled(examples: Examples) -> Examples:
        features = torch.where(varies, (examples.features - mean) / scale, torch.zeros_like(mean))
        return replace(examples, features=features)

    return scaled(train), None if test is None else scaled(test)


def with_bias(examples: Examples) -> Examples:
    """Prepend a column of ones: float[n, d] -> float[n, d + 1]. Raises ConfigError for features of another rank."""
    features: Tensor = examples.features
    if features.ndim != 2:
        raise ConfigError(f"bias = true, but a row of features has shape {tuple(features.shape[1:])}; set bias = false")
    return replace(examples, features=torch.cat([features.new_ones(len(examples), 1), features], dim=1))
