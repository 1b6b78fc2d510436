import gzip

import msgspec
import numpy as np
import pytest
import torch

from fedsim.data import (
    BreastCancer,
    Clusters,
    Dataset,
    Digits,
    Dirichlet,
    Examples,
    Iid,
    LibSVM,
    Natural,
    Quantity,
    Scheme,
    Shards,
    describe,
    split,
)
from fedsim.errors import ConfigError, DataError


def numbered(n, classes=2, groups=None):
    """Row i is the number i, of class i mod ``classes``."""
    train = Examples(torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) % classes, classes)
    return Dataset(train, None, "toy", groups)


def regression(n):
    return Dataset(Examples(torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) / 2, None), None, "toy")


def rows(federation):
    return [federation.shard(i).features[:, 0].int().tolist() for i in range(federation.clients)]


def test_iid_in_file_order_is_contiguous_and_even():
    assert rows(split(numbered(11), Iid(3, shuffle=False), 0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_iid_shuffled_is_even_but_not_contiguous():
    federation = split(numbered(100), Iid(7), 0)
    assert federation.sizes.tolist() == [15, 15, 14, 14, 14, 14, 14]
    assert rows(federation) != rows(split(numbered(100), Iid(7, shuffle=False), 0))


def test_shards_give_a_client_few_classes():
    federation = split(Digits(test_fraction=0).load(0), Shards(30, per_client=2), 0)
    assert set(federation.sizes.tolist()) <= {58, 59, 60}
    classes = [sum(count > 0 for count in holding.labels) for holding in describe(federation)]
    # 60 shards over 10 classes: at most 9 hold two classes, so at least 21 clients have two single-class shards.
    assert sum(count <= 2 for count in classes) >= 21
    assert max(classes) <= 4


def test_shards_sort_a_regression_by_target():
    federation = split(regression(40), Shards(4, per_client=1), 0)
    assert sorted(rows(federation)) == [list(range(i, i + 10)) for i in range(0, 40, 10)]


def test_quantity_gives_everybody_a_row():
    federation = split(numbered(200), Quantity(100, alpha=0.01), 0)
    assert federation.sizes.min() == 1
    assert federation.sizes.max() > 20
    assert split(numbered(100), Quantity(100, alpha=1), 0).sizes.tolist() == [1] * 100


def test_quantity_with_large_alpha_is_even():
    assert (split(numbered(1000), Quantity(10, alpha=1e9), 0).sizes - 100).abs().max() <= 1


def test_dirichlet_with_large_alpha_is_even_in_every_class():
    federation = split(numbered(3000, 3), Dirichlet(10, alpha=1e9), 0)
    assert all(abs(count - 100) <= 1 for holding in describe(federation) for count in holding.labels)


def test_dirichlet_with_tiny_alpha_gives_a_class_to_one_client():
    federation = split(numbered(3000, 3), Dirichlet(3, alpha=1e-6), 0)
    assert sorted(holding.size for holding in describe(federation)) == [1000, 1000, 1000]


def test_dirichlet_draws_again_until_everybody_has_enough():
    assert split(numbered(60), Dirichlet(10, alpha=0.5, min_samples=3), 0).sizes.min() >= 3


def test_dirichlet_gives_up_with_a_way_out(refused):
    with refused(
        DataError, "none of 10000 Dirichlet draws", "alpha = 0.0001", "10 clients", "min_samples = 1", "raise alpha"
    ):
        split(numbered(100), Dirichlet(10, alpha=1e-4), 0)


def test_dirichlet_knows_when_there_are_too_few_rows(refused):
    with refused(DataError, "10 clients", "11 rows each need 110 rows", "toy has 100", "lower clients or min_samples"):
        split(numbered(100), Dirichlet(10, alpha=1, min_samples=11), 0)


def test_dirichlet_needs_classes(refused):
    with refused(ConfigError, "'dirichlet' needs classes", "toy is a regression", "'quantity'"):
        split(regression(10), Dirichlet(2, alpha=1), 0)


def test_more_shards_than_rows_are_refused(refused):
    with refused(DataError, "5 clients with 3 shards each need 15 rows", "toy has 10", "per_client"):
        split(numbered(10), Shards(5, per_client=3), 0)


@pytest.mark.parametrize("scheme", [Iid(11), Dirichlet(11, 1.0), Shards(11), Quantity(11, 1.0), Clusters("x", 11)])
def test_more_clients_than_rows_are_refused(refused, scheme):
    with refused(DataError, "11 clients for the 10 training rows of toy", "expected 1 to 10"):
        split(numbered(10), scheme, 0)


def test_natural_clients():
    groups = torch.tensor([2, 0, 1, 0, 2, 2])
    assert rows(split(numbered(6, groups=groups), Natural(), 0)) == [[1, 3], [2], [0, 4, 5]]


def test_natural_clients_of_a_source_without(refused):
    with refused(ConfigError, "'natural'", "digits has no clients of its own", "another scheme"):
        split(Digits().load(0), Natural(), 0)


def test_natural_clients_with_a_gap(refused):
    with refused(DataError, "toy: client 1 of 0 to 2 has no rows", "without gaps"):
        split(numbered(3, groups=torch.tensor([0, 2, 2])), Natural(), 0)


@pytest.mark.parametrize("groups", [torch.tensor([0, -1, 1]), torch.tensor([0, 1])])
def test_natural_clients_that_do_not_number_the_rows(refused, groups):
    with refused(DataError, "toy: 3 training rows need as many client numbers from 0"):
        split(numbered(3, groups=groups), Natural(), 0)


def test_rows_that_are_not_finite_are_refused(refused):
    dataset = numbered(10)
    dataset.train.features[3] = float("nan")
    with refused(DataError, "toy: training row 3"):
        split(dataset, Iid(2), 0)


@pytest.mark.parametrize(
    "scheme",
    [Iid(5, shuffle=False, single_class="refuse"), Natural(single_class="refuse"), Shards(5, 1, "refuse")],
)
def test_a_client_with_one_class_is_refused_on_request(refused, scheme):
    train = Examples(torch.zeros(10, 1), torch.tensor([0, 1, 0, 1, 2, 2, 0, 2, 0, 1]), 3)
    dataset = Dataset(train, None, "toy", torch.arange(5).repeat_interleave(2))
    allowed = msgspec.structs.replace(scheme, single_class="allow")
    found = next(holding for holding in describe(split(dataset, allowed, 0)) if alone(holding))
    parts = (f"client {found.client} has only class {found.labels.index(2)} (2 rows)", 'single_class = "allow"')
    with refused(DataError, "toy: ", *parts):
        split(dataset, scheme, 0)


def alone(holding):
    return sum(count > 0 for count in holding.labels) == 1


def test_clients_with_two_classes_pass_the_refusal():
    assert split(numbered(10), Iid(5, shuffle=False, single_class="refuse"), 0).clients == 5
    assert split(regression(10), Iid(5, single_class="refuse"), 0).clients == 5
    assert split(numbered(9), Iid(3, shuffle=False, single_class="refuse"), 0).clients == 3


@pytest.fixture
def clusters(tmp_path):
    def write(text, name="c.txt"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode("latin-1"))
        return str(path)

    return write


@pytest.mark.parametrize("name", ["c.txt", "c.gz"])
def test_clusters_of_a_file(clusters, name):
    federation = split(numbered(5), Clusters(clusters("1\n0\n 2 \r\n0\n1", name), clients=3), 0)
    assert rows(federation) == [[1, 3], [0, 4], [2]]


@pytest.mark.parametrize("word", ["", "x", "-1", "1.0", "2", "99999999999999999999", "\xe9", "0 1"])
def test_a_line_that_is_no_cluster_is_named(clusters, refused, word):
    path = clusters(f"1\n0\n{word}\n0\n1\n")
    shown = repr(word.encode("latin-1"))[1:]
    with refused(DataError, f"{path}:3: {shown}", "from 0 to 1", "clients"):
        split(numbered(5), Clusters(path, clients=2), 0)


@pytest.mark.parametrize("lines", [0, 3, 6])
def test_another_number_of_lines_names_both(clusters, refused, lines):
    path = clusters("0\n" * lines)
    with refused(DataError, f"{path}: {lines} lines for 5 training rows", "test_fraction"):
        split(numbered(5), Clusters(path, clients=1), 0)


def test_an_empty_cluster_is_named(clusters, refused):
    path = clusters("0\n2\n2\n0\n0\n")
    with refused(DataError, f"{path}: no row has cluster 1", "0 to 2", "lower clients"):
        split(numbered(5), Clusters(path, clients=3), 0)


def test_a_missing_cluster_file_is_named(tmp_path, refused):
    with refused(DataError, f"{tmp_path / 'no'}: no such file"):
        split(numbered(5), Clusters(str(tmp_path / "no"), clients=3), 0)


def test_the_published_clusters_of_a9a(libsvm_folder):
    dataset = LibSVM(str(libsvm_folder / "a9a.gz")).load(0)
    federation = split(dataset, Clusters(str(libsvm_folder / "a9a.clusters20.txt")), 0)
    assert federation.features.shape == (32561, 124)
    assert federation.clients == 20
    assert (federation.sizes.min(), federation.sizes.max()) == (325, 4792)


def test_found_clusters_are_near():
    """Three far blobs of different labels: t-SNE and the mixture must find exactly them."""
    random = np.random.default_rng(0)
    blob = np.repeat(np.arange(3), 40)
    features = torch.from_numpy(random.standard_normal((120, 2)) + 50 * np.stack([blob, blob**2], axis=1))
    dataset = Dataset(Examples(features, torch.from_numpy(blob % 2), 2), None, "blobs")
    owners = Clusters(clients=3).owners(dataset, 5)
    assert len({(int(b), int(o)) for b, o in zip(blob, owners, strict=True)}) == 3
    assert split(dataset, Clusters(clients=3), 5).sizes.tolist() == [40, 40, 40]


def test_too_few_rows_to_find_clusters(refused):
    with refused(DataError, "30 training rows, expected more than 30", "file"):
        split(numbered(30), Clusters(clients=2), 0)


def test_schemes_come_from_a_table():
    assert msgspec.convert({"scheme": "iid", "clients": 3}, Scheme) == Iid(3)
    for wrong in ({"clients": 0}, {}, {"clients": 2, "alpha": 1.0}, {"clients": 2, "single_class": "maybe"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"scheme": "iid"} | wrong, Scheme)
    for alpha in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"scheme": "dirichlet", "clients": 2, "alpha": alpha}, Scheme)


def test_the_test_set_is_kept():
    dataset = BreastCancer().load(0)
    federation = split(dataset, Iid(5), 0)
    assert federation.test is dataset.test
    assert federation.classes == 2
    assert federation.name == "breast-cancer"
