"""Who holds which training rows: a function of (data set, scheme, seed) alone.

    scheme      labels at a client                     sizes
    iid         as in the whole set                    equal, to one row
    dirichlet   for each class, shares over the clients ~ Dirichlet(alpha, ..., alpha)      follow from the shares
    shards      a few contiguous pieces of the rows sorted by label                         equal, to per_client rows
    quantity    as in the whole set                    1 + shares of the rest, ~ Dirichlet(alpha, ..., alpha)
    clusters    nearby rows together                   as they come
    natural     the source's own clients               the source's own

Small alpha is unequal, large alpha equal. Sources: shards, McMahan et al. 2017, "Communication-efficient learning of
deep networks from decentralized data", section 3; dirichlet by label, Hsu, Qi, Brown, arXiv 1909.06335, and Yurochkin
et al. 2019, section 4; clusters, Artemis (arXiv 2006.14591), experiments.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.clusters import cluster_rows, read_clusters
from fedsim.data.examples import Dataset, Federation, federate, label_counts
from fedsim.data.prepare import check, generator
from fedsim.errors import ConfigError, DataError
from fedsim.randomness import Purpose

Clients = Annotated[int, msgspec.Meta(ge=1, description="the number of clients")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Alpha = Annotated[float, msgspec.Meta(gt=0, le=1e9, description="small: unequal clients; large: equal clients")]
SingleClass = Literal["allow", "refuse"]
Owners = NDArray[np.int64]

MAX_DRAWS = 10_000
MAX_SHARES = 30_000_000
"""A Dirichlet partition is drawn again at most so many times, and at most so many shares are drawn in all."""


class Iid(msgspec.Struct, frozen=True, tag_field="scheme", tag="iid", forbid_unknown_fields=True):
    """Equal parts of the rows.

    Args:
        clients: number of clients.
        shuffle: deal at random; otherwise contiguous parts in the order of the file, as in the Artemis experiments.
        single_class: whether a client may hold one class only.
    """

    clients: Clients
    shuffle: bool = True
    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row."""
        rows = len(dataset.train)
        order = generator(seed, Purpose.PARTITION).permutation(rows) if self.shuffle else np.arange(rows)
        return _deal(order, np.arange(self.clients), _even(rows, self.clients))


class Dirichlet(msgspec.Struct, frozen=True, tag_field="scheme", tag="dirichlet", forbid_unknown_fields=True):
    """Each class is shared out on its own. Drawn again until every client has ``min_samples`` rows.

    Args:
        clients: number of clients.
        alpha: concentration of the shares.
        min_samples: rows that every client gets at least.
        single_class: whether a client may hold one class only.
    """

    clients: Clients
    alpha: Alpha
    min_samples: Positive = 1
    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row. Raises ConfigError in a regression, DataError when no draw fits."""
        train = dataset.train
        if train.classes is None:
            raise ConfigError(
                f"scheme 'dirichlet' needs classes, but {dataset.name} is a regression; use 'quantity' or 'iid'"
            )
        if (needed := self.clients * self.min_samples) > len(train):
            raise DataError(
                f"{self.clients} clients with at least {self.min_samples} rows each need {needed} rows, but "
                f"{dataset.name} has {len(train)}; lower clients or min_samples"
            )
        targets = train.targets.numpy()
        random = generator(seed, Purpose.PARTITION)
        sizes = self._sizes(np.bincount(targets, minlength=train.classes), random)
        mixed = random.permutation(len(train))
        order = mixed[np.argsort(targets[mixed], kind="stable")]
        return _deal(order, np.tile(np.arange(self.clients), train.classes), sizes.ravel())

    def _sizes(self, counts: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """Rows of each class at each client, int64[classes, clients]."""
        alphas = np.full(self.clients, self.alpha)
        draws = min(MAX_DRAWS, 1 + MAX_SHARES // (len(counts) * self.clients))
        for _ in range(draws):
            sizes = _cut(random.dirichlet(alphas, size=len(counts)), counts, random)
            if sizes.sum(0).min() >= self.min_samples:
                return sizes
        raise DataError(
            f"none of {draws} Dirichlet draws with alpha = {self.alpha:g} gives each of {self.clients} clients "
            f"min_samples = {self.min_samples}; raise alpha, or lower clients or min_samples"
        )


class Shards(msgspec.Struct, frozen=True, tag_field="scheme", tag="shards", forbid_unknown_fields=True):
    """Rows sorted by label (by target in a regression), cut into equal shards, dealt at random.

    Args:
        clients: number of clients.
        per_client: shards of each client; few shards mean few classes.
        single_class: whether a client may hold one class only.
    """

    clients: Clients
    per_client: Positive = 2
    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row. Raises DataError for more shards than rows."""
        shards, rows = self.clients * self.per_client, len(dataset.train)
        if shards > rows:
            raise DataError(
                f"{self.clients} clients with {self.per_client} shards each need {shards} rows, but {dataset.name} "
                f"has {rows}; lower clients or per_client"
            )
        order = np.argsort(dataset.train.targets.numpy(), kind="stable")
        deal = generator(seed, Purpose.PARTITION).permutation(np.repeat(np.arange(self.clients), self.per_client))
        return _deal(order, deal, _even(rows, shards))


class Quantity(msgspec.Struct, frozen=True, tag_field="scheme", tag="quantity", forbid_unknown_fields=True):
    """Rows dealt at random, unequal numbers of them, at least one to each client.

    Args:
        clients: number of clients.
        alpha: concentration of the shares.
        single_class: whether a client may hold one class only.
    """

    clients: Clients
    alpha: Alpha
    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row."""
        rows = len(dataset.train)
        random = generator(seed, Purpose.PARTITION)
        shares = random.dirichlet(np.full(self.clients, self.alpha), size=1)
        sizes = 1 + _cut(shares, np.array([rows - self.clients]), random)[0]
        return _deal(random.permutation(rows), np.arange(self.clients), sizes)


class Clusters(msgspec.Struct, frozen=True, tag_field="scheme", tag="clusters", forbid_unknown_fields=True):
    """Clients are clusters of nearby rows: read from a file, or found by t-SNE and a Gaussian mixture.

    What is found depends on the version of scikit-learn and on the machine's arithmetic: across machines, use a file.

    Args:
        file: one cluster number, 0 .. clients - 1, for each training row, a line each; "": find them.
        clients: number of clients.
        single_class: whether a client may hold one class only.
    """

    file: str = ""
    clients: Clients = 20
    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row. Raises DataError naming the file and line, or an empty cluster."""
        if self.file:
            return read_clusters(self.file, rows=len(dataset.train), clients=self.clients)
        return cluster_rows(dataset.train, self.clients, generator(seed, Purpose.PARTITION))


class Natural(msgspec.Struct, frozen=True, tag_field="scheme", tag="natural", forbid_unknown_fields=True):
    """The clients that the source itself names.

    Args:
        single_class: whether a client may hold one class only.
    """

    single_class: SingleClass = "allow"

    def owners(self, dataset: Dataset, seed: int) -> Owners:
        """Client number of each training row. Raises ConfigError when the source names none."""
        if dataset.groups is None:
            raise ConfigError(f"scheme 'natural', but {dataset.name} has no clients of its own; use another scheme")
        return dataset.groups.numpy()


Scheme = Iid | Dirichlet | Shards | Quantity | Clusters | Natural


def split(dataset: Dataset, scheme: Scheme, seed: int) -> Federation:
    """Deal the training rows to clients; every row goes to exactly one, every client has at least one.

    Raises DataError for rows that cannot be learned from (see ``check``), more clients than rows, a client without
    rows, and, with single_class = "refuse", a client with one class; ConfigError for a scheme that does not fit.
    """
    check(dataset)
    rows = len(dataset.train)
    if not isinstance(scheme, Natural) and not 1 <= scheme.clients <= rows:
        raise DataError(
            f"{scheme.clients} clients for the {rows} training rows of {dataset.name}, expected 1 to {rows}; "
            "set clients to at most that"
        )
    owners = torch.from_numpy(scheme.owners(dataset, seed))
    if owners.shape != (rows,) or int(owners.min()) < 0:
        raise DataError(f"{dataset.name}: {rows} training rows need as many client numbers from 0; mend groups")
    federation = federate(dataset, owners)
    if bool((federation.sizes == 0).any()):
        client = int((federation.sizes == 0).nonzero()[0])
        raise DataError(
            f"{dataset.name}: client {client} of 0 to {federation.clients - 1} has no rows; number clients without gaps"
        )
    if scheme.single_class == "refuse":
        refuse_single_class(federation)
    return federation


def refuse_single_class(federation: Federation) -> None:
    """Raise DataError when a client of a classification holds rows of one class only."""
    counts = label_counts(federation)
    single = (counts > 0).sum(1) == 1
    if bool(single.any()):
        client = int(single.nonzero()[0])
        raise DataError(
            f"{federation.name}: client {client} has only class {int(counts[client].argmax())} "
            f'({int(federation.sizes[client])} rows) and single_class = "refuse"; use fewer clients or a more even '
            'scheme, or set single_class = "allow"'
        )


def _even(rows: int, parts: int) -> NDArray[np.int64]:
    """Sizes of ``parts`` parts of ``rows`` rows that differ by at most one, the larger ones first."""
    return rows // parts + (np.arange(parts) < rows % parts).astype(np.int64)


def _cut(shares: NDArray[np.float64], totals: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Whole sizes that sum to the totals, each shares * total rounded up or down at random so that its mean is that.

    shares: float64[k, n]. totals: int64[k]. Returns int64[k, n]. One offset for each row of shares (systematic
    sampling): rounding every end to the nearest would pass over the same clients in each class.
    """
    offsets = random.random((len(totals), 1))  # nosec B311 # numpy's, seeded
    ends = np.floor(np.cumsum(shares, axis=1) * totals[:, None] + offsets).astype(np.int64)
    ends[:, -1] = totals
    return np.diff(np.minimum(ends, totals[:, None]), axis=1, prepend=0)


def _deal(order: NDArray[np.int64], clients: NDArray[np.int64], sizes: NDArray[np.int64]) -> Owners:
    """Client number of each row when the rows in ``order`` go to ``clients``, ``sizes`` rows at a time."""
    owners = np.empty(len(order), dtype=np.int64)
    owners[order] = np.repeat(clients, sizes)
    return owners
