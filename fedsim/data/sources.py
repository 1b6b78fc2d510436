"""Where rows come from: the two small tables that come with scikit-learn, and the union of all sources."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import torch

from fedsim.data.examples import Dataset, Examples, Federation
from fedsim.data.fashion import FashionMNIST
from fedsim.data.libsvm import LibSVM
from fedsim.data.own import Own
from fedsim.data.partition import Natural, Scheme, refuse_single_class, split
from fedsim.data.prepare import prepare
from fedsim.data.synthetic import SyntheticLinear, SyntheticLogistic
from fedsim.errors import ConfigError

__all__ = [
    "BreastCancer",
    "Digits",
    "FashionMNIST",
    "LibSVM",
    "Own",
    "Source",
    "SyntheticLinear",
    "SyntheticLogistic",
    "deal",
]

Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Digits(msgspec.Struct, frozen=True, tag_field="source", tag="digits", forbid_unknown_fields=True):
    """1797 images of 8 x 8 handwritten digits, 10 classes; features are grey levels / 16, in [0, 1].

    Args:
        standardise: every feature gets mean 0 and standard deviation 1 over the training rows.
        bias: prepend a column of ones.
        test_fraction: share of the rows held out at random.
    """

    standardise: bool = False
    bias: bool = False
    test_fraction: Fraction = 0.2

    def load(self, seed: int) -> Dataset:
        """float64[n, 64] features (65 with the bias), row by row of the image. The seed decides the held-out rows."""
        from sklearn.datasets import load_digits  # here, because it takes a second that few commands need

        features, targets = load_digits(return_X_y=True)
        train = Examples(torch.from_numpy(features / 16.0), torch.from_numpy(targets.astype(np.int64)), 10)
        return prepare(
            Dataset(train, None, "digits"),
            standardise=self.standardise,
            bias=self.bias,
            test_fraction=self.test_fraction,
            seed=seed,
        )


class BreastCancer(msgspec.Struct, frozen=True, tag_field="source", tag="breast-cancer", forbid_unknown_fields=True):
    """569 tumours with 30 measures; class 0 is malignant, 1 benign.

    Args:
        standardise: every feature gets mean 0 and standard deviation 1 over the training rows.
        bias: prepend a column of ones.
        test_fraction: share of the rows held out at random.
    """

    standardise: bool = True
    bias: bool = True
    test_fraction: Fraction = 0.2

    def load(self, seed: int) -> Dataset:
        """float64[n, 30] features (31 with the bias). The seed decides the held-out rows."""
        from sklearn.datasets import load_breast_cancer  # here, because it takes a second that few commands need

        features, targets = load_breast_cancer(return_X_y=True)
        train = Examples(torch.from_numpy(features), torch.from_numpy(targets.astype(np.int64)), 2)
        return prepare(
            Dataset(train, None, "breast-cancer"),
            standardise=self.standardise,
            bias=self.bias,
            test_fraction=self.test_fraction,
            seed=seed,
        )


Source = Digits | BreastCancer | LibSVM | FashionMNIST | SyntheticLinear | SyntheticLogistic | Own
"""Any source: the options are the source. All but Own have ``load(seed)``: a Dataset of float64 features (images:
float32)."""


def deal(source: Source, scheme: Scheme, seed: int) -> Federation:
    """Who holds what: ``split``, or the clients' own data. Raises ConfigError, DataError."""
    if not isinstance(source, Own):
        return split(source.load(seed), scheme, seed)
    if not isinstance(scheme, Natural):
        tag = scheme.__struct_config__.tag
        raise ConfigError(
            f"partition.scheme = {tag!r}, but clients bring their own data; set partition.scheme = 'natural'"
        )
    federation = source.federation()
    if scheme.single_class == "refuse":
        refuse_single_class(federation)
    return federation
