"""Partitions and synthetic rows of fixed seeds, so that a new version of numpy cannot change them unnoticed."""

import hashlib

import pytest
import torch

from fedsim.data import Digits, Dirichlet, Iid, Quantity, Shards, SyntheticLinear, SyntheticLogistic, split

DIGITS = {
    Iid(10): "be337fd346093e84",
    Iid(10, shuffle=False): "f68936600b890293",
    Dirichlet(10, 0.3): "872318ac950254de",
    Shards(10): "f645eaa4f77cdd89",
    Quantity(10, 0.5): "22c6976b828d498b",
}


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("scheme", "expected"), DIGITS.items(), ids=repr)
def test_the_rows_of_a_client(scheme, expected):
    federation = split(Digits().load(7), scheme, 7)
    greys = (federation.features * 16).long().flatten()
    assert digest(torch.cat([federation.offsets, federation.targets, greys])) == expected


@pytest.mark.parametrize(
    ("source", "first", "total"),
    [
        (SyntheticLinear(), -0.8378448936955132, 5115.895984855591),
        (SyntheticLogistic(), 0.4870621038803481, 1399.281655509902),
    ],
    ids=["linear", "logistic"],
)
def test_synthetic_rows(source, first, total):
    """Compared up to rounding: exp and the filter may differ in the last bit between machines."""
    train = source.load(7).train
    assert float(train.features[0, 1]) == pytest.approx(first, rel=1e-12)
    assert float((train.features.sum(1) * train.targets).sum()) == pytest.approx(total, rel=1e-10)
