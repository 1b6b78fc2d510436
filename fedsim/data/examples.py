"""Examples, a data set, and a data set dealt out to clients: plain frozen holders of tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows of data.

    features: float[n, *shape]. targets: int64[n], class numbers 0 .. classes - 1; or float[n] in a regression, where
    ``classes`` is None. A task with labels -1 and +1 reads class 0 as -1 and class 1 as +1.
    """

    features: Tensor
    targets: Tensor
    classes: int | None

    def __len__(self) -> int:
        return self.features.shape[0]

    def take(self, rows: Tensor | slice) -> Examples:
        """The chosen rows: a slice gives views, an int64 index tensor gives copies."""
        return replace(self, features=self.features[rows], targets=self.targets[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Examples:
        """The same examples on ``device``; class numbers stay int64, all other numbers become ``dtype``."""
        kind = dtype if self.classes is None else torch.int64
        return replace(self, features=self.features.to(device, dtype), targets=self.targets.to(device, kind))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a source loads. groups: int64[n_train], the client number a source itself gives to each training row."""

    train: Examples
    test: Examples | None
    name: str
    groups: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """A training set sorted by client; each client's rows are contiguous and keep the order of the file.

    features: float[n, *shape]. targets: int64[n] or float[n]. offsets: int64[N + 1] on the CPU: client i holds the rows
    offsets[i] .. offsets[i + 1] - 1. test: held by the server, shared by all.
    """

    features: Tensor
    targets: Tensor
    offsets: Tensor
    test: Examples | None
    classes: int | None
    name: str

    @property
    def clients(self) -> int:
        """Number of clients N."""
        return self.offsets.shape[0] - 1

    @property
    def whole(self) -> bool:
        """Whether every client's rows are here, and not on a machine of its own."""
        return bool((self.sizes > 0).all())

    @property
    def sizes(self) -> Tensor:
        """Number of rows of each client, int64[N]."""
        return self.offsets.diff()

    def sizes_of(self, clients: Tensor) -> Tensor:
        """Number of rows of some clients, int64[n]; clients: int64[n]. The work does not grow with N."""
        offsets, places = self.offsets.numpy(), clients.numpy()
        return torch.from_numpy(offsets[places + 1] - offsets[places])

    def all(self) -> Examples:
        """The rows of all clients, in client order, as views."""
        return Examples(self.features, self.targets, self.classes)

    def digest(self) -> str:
        """32 hexadecimal digits over all training rows and who holds them: the same data, the same digits."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.features, self.targets, self.offsets):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.cpu().contiguous().numpy().data)
        return found.hexdigest()

    def shard(self, client: int) -> Examples:
        """The rows of one client, as views. Raises IndexError unless 0 <= client < N."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client}, expected 0 .. {self.clients - 1}")
        start, stop = self.offsets[client : client + 2].tolist()
        return Examples(self.features[start:stop], self.targets[start:stop], self.classes)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Federation:
        """The same federation on ``device``, numbers as ``Examples.to``; offsets stay on the CPU.

        Raises DataError, naming a client, where a number is too large for ``dtype``.
        """
        self._refuse_beyond(dtype)
        train = self.all().to(device, dtype)
        test = None if self.test is None else self.test.to(device, dtype)
        return replace(self, features=train.features, targets=train.targets, test=test)

    def _refuse_beyond(self, dtype: torch.dtype) -> None:
        for part in (self.all(), self.test):
            if part is None or (row := _first_beyond(part, torch.finfo(dtype).max)) is None:
                continue
            client = int((self.offsets <= row).sum()) - 1
            place = f"client {client}, its row {row - int(self.offsets[client])}"
            where = "the test set" if part is self.test else place
            raise DataError(
                f"{self.name}: a number of {where} is too large for {str(dtype).removeprefix('torch.')}; scale the "
                "data, or set run.precision = 'float64'"
            )


def _first_beyond(examples: Examples, largest: float) -> int | None:
    """The first row with a number whose size is above ``largest``; class numbers are none."""
    beyond = (examples.features.flatten(1).abs() > largest).any(1)
    if examples.classes is None:
        beyond |= examples.targets.abs() > largest
    return int(beyond.nonzero()[0]) if bool(beyond.any()) else None


def federate(dataset: Dataset, owners: Tensor) -> Federation:
    """Deal the training rows to their owners. owners: int64[n_train], from 0; the largest number is N - 1."""
    order = torch.argsort(owners, stable=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(owners).cumsum(0)])
    train = dataset.train.take(order)
    return Federation(train.features, train.targets, offsets, dataset.test, train.classes, dataset.name)


class Holding(NamedTuple):
    """What one client holds. labels: rows of each class, in class order; empty in a regression."""

    client: int
    size: int
    labels: tuple[int, ...]


def label_counts(federation: Federation) -> Tensor:
    """Rows of each class at each client, int64[N, classes]; int64[N, 0] in a regression."""
    clients, classes = federation.clients, federation.classes or 0
    if not classes:
        return torch.zeros((clients, 0), dtype=torch.int64)
    owners = torch.repeat_interleave(torch.arange(clients), federation.sizes)
    cells = owners * classes + federation.targets.cpu()
    return torch.bincount(cells, minlength=clients * classes).reshape(clients, classes)


def describe(federation: Federation) -> list[Holding]:
    """Size and label counts of every client, in client order."""
    counts = label_counts(federation).tolist()
    return [
        Holding(client, size, tuple(row))
        for client, (size, row) in enumerate(zip(federation.sizes.tolist(), counts, strict=True))
    ]
