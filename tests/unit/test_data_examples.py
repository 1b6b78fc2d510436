import pytest
import torch

from fedsim.data import Dataset, Examples, Natural, describe, federate, split


@pytest.fixture
def federation():
    features = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    train = Examples(features, torch.tensor([0, 1, 2, 0, 1, 1]), 3)
    return federate(Dataset(train, train.take(slice(0, 2)), "toy"), torch.tensor([1, 0, 1, 0, 2, 1]))


def test_rows_are_contiguous_by_client_in_file_order(federation):
    assert federation.offsets.tolist() == [0, 2, 5, 6]
    assert federation.sizes.tolist() == [2, 3, 1]
    assert federation.clients == 3
    assert federation.features[:, 0].tolist() == [2, 6, 0, 4, 10, 8]
    assert federation.targets.tolist() == [1, 0, 0, 2, 1, 1]


def test_a_shard_is_a_view(federation):
    shard = federation.shard(1)
    assert shard.features[:, 0].tolist() == [0, 4, 10]
    assert shard.targets.tolist() == [0, 2, 1]
    assert shard.features.data_ptr() == federation.features[2:].data_ptr()
    assert shard.targets.data_ptr() == federation.targets[2:].data_ptr()
    assert len(shard) == 3
    assert shard.classes == 3


def test_all_is_every_row_as_a_view(federation):
    everything = federation.all()
    assert everything.features is federation.features
    assert everything.targets is federation.targets
    assert len(everything) == 6


@pytest.mark.parametrize("client", [-1, 3])
def test_a_shard_of_nobody_is_refused(federation, client):
    with pytest.raises(IndexError, match=f"client {client}, expected 0 .. 2"):
        federation.shard(client)


def test_to_casts_features_and_keeps_class_numbers(federation):
    cast = federation.to("cpu", torch.float32)
    assert cast.features.dtype == cast.test.features.dtype == torch.float32
    assert cast.targets.dtype == cast.test.targets.dtype == cast.offsets.dtype == torch.int64
    assert torch.equal(cast.features.double(), federation.features)


def test_to_casts_regression_targets():
    train = Examples(torch.ones(2, 1, dtype=torch.float64), torch.ones(2, dtype=torch.float64), None)
    cast = split(Dataset(train, None, "toy", torch.tensor([0, 1])), Natural(), 0).to("cpu", torch.float32)
    assert cast.targets.dtype == torch.float32
    assert cast.test is None


def test_to_moves_data_and_leaves_offsets_on_the_cpu(federation):
    moved = federation.to("meta", torch.float32)
    assert moved.features.device.type == moved.targets.device.type == moved.test.features.device.type == "meta"
    assert moved.offsets.device.type == "cpu"


def test_describe_counts_labels(federation):
    assert describe(federation) == [(0, 2, (1, 1, 0)), (1, 3, (1, 1, 1)), (2, 1, (0, 1, 0))]


def test_describe_a_regression_has_no_labels():
    train = Examples(torch.ones(3, 1), torch.ones(3), None)
    assert describe(federate(Dataset(train, None, "toy"), torch.tensor([0, 1, 1]))) == [(0, 1, ()), (1, 2, ())]
