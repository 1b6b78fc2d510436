"""Every scheme partitions: each row goes to exactly one client, nobody is empty, the seed decides alone."""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.data import Dataset, Dirichlet, Examples, Iid, Natural, Quantity, Shards, describe, split

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def datasets(draw):
    """Row i has the feature i; at least two classes, in any order; groups without gaps."""
    n = draw(st.integers(2, 60))
    classes = draw(st.integers(2, 4))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    targets[0], targets[1] = 0, 1
    groups = torch.arange(n) % draw(st.integers(1, n))
    train = Examples(torch.arange(n, dtype=torch.float64)[:, None], torch.tensor(targets), classes)
    return Dataset(train, None, "d", groups)


@st.composite
def cases(draw):
    dataset = draw(datasets())
    n = len(dataset.train)
    clients = draw(st.integers(1, n))
    few = draw(st.integers(1, min(3, n)))
    return dataset, draw(
        st.sampled_from(
            [
                Iid(clients),
                Iid(clients, shuffle=False),
                Quantity(clients, draw(st.floats(1e-9, 1e9))),
                Shards(few, per_client=draw(st.integers(1, n // few))),
                Dirichlet(few, draw(st.floats(3.0, 1e9))),
                Natural(),
            ]
        )
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), seed=SEEDS)
def test_a_partition_is_a_partition(case, seed):
    dataset, scheme = case
    np.random.seed(1)
    federation = split(dataset, scheme, seed)
    n = len(dataset.train)
    rows = federation.features[:, 0].long()
    assert sorted(rows.tolist()) == list(range(n))
    assert torch.equal(federation.targets, dataset.train.targets[rows])
    assert int(federation.sizes.sum()) == n
    assert int(federation.sizes.min()) >= 1
    for holding in describe(federation):
        shard = federation.shard(holding.client)
        held = shard.features[:, 0].tolist()
        assert held == sorted(held)
        assert holding.size == len(shard) == sum(holding.labels)
        assert holding.labels == tuple(torch.bincount(shard.targets, minlength=shard.classes).tolist())
    np.random.seed(2)
    again = split(dataset, scheme, seed)
    assert torch.equal(again.features, federation.features)
    assert torch.equal(again.offsets, federation.offsets)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62))
def test_the_next_seed_deals_differently(seed):
    """Two of the 200! orders, or of the shares, agree by accident with probability below 1e-6."""
    train = Examples(torch.arange(200.0)[:, None], torch.arange(200) % 4, 4)
    dataset = Dataset(train, None, "d")
    for scheme in (Iid(10), Dirichlet(10, 1.0), Shards(10), Quantity(10, 1.0)):
        first, second = split(dataset, scheme, seed), split(dataset, scheme, seed + 1)
        assert not torch.equal(first.features, second.features)
