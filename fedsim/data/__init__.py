"""Data: sources load rows, schemes deal them to clients."""

from __future__ import annotations

from fedsim.data.examples import Dataset, Examples, Federation, Holding, describe, federate, label_counts
from fedsim.data.own import Own, refuse_absent
from fedsim.data.partition import (
    Clusters,
    Dirichlet,
    Iid,
    Natural,
    Quantity,
    Scheme,
    Shards,
    refuse_single_class,
    split,
)
from fedsim.data.sources import (
    BreastCancer,
    Digits,
    FashionMNIST,
    LibSVM,
    Source,
    SyntheticLinear,
    SyntheticLogistic,
    deal,
)

__all__ = [
    "BreastCancer",
    "Clusters",
    "Dataset",
    "Digits",
    "Dirichlet",
    "Examples",
    "FashionMNIST",
    "Federation",
    "Holding",
    "Iid",
    "LibSVM",
    "Natural",
    "Own",
    "Quantity",
    "Scheme",
    "Shards",
    "Source",
    "SyntheticLinear",
    "SyntheticLogistic",
    "deal",
    "describe",
    "federate",
    "label_counts",
    "refuse_absent",
    "refuse_single_class",
    "split",
]
