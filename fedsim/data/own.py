"""Clients that bring their own data: the experiment says what a sample is and how many each has, machines have them.

    data.samples   the clients, and how much each counts: what a client replies never changes its weight
    data.paths     where their data is on THIS machine, "" elsewhere: all of them in a simulation, none at a deployed
                   server, at a node that of its own client, from its node config (``fedsim.ends.own``)

Paths are no part of an experiment's identity: a run on all machines is the run on one. Nothing is estimated from data
of which nobody holds the whole: the numbers of ``mean`` and ``scale`` are declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor

from fedsim.data.examples import Examples, Federation
from fedsim.data.images import read_images
from fedsim.data.prepare import check_rows, with_bias
from fedsim.data.svmlight import read_svmlight
from fedsim.data.table import is_finite_number, read_table
from fedsim.errors import ConfigError, DataError

CSV, LIBSVM = (".csv",), (".svm", ".libsvm", ".txt")

Positive = Annotated[int, msgspec.Meta(ge=1)]
Place = Callable[[int], str]
"""Number of a row -> file and line."""


class Own(msgspec.Struct, frozen=True, tag_field="source", tag="own", forbid_unknown_fields=True):
    """Files or folders that clients have: .csv, LibSVM text (.svm, .libsvm, .txt), plain or gzip; folders of images.

    Args:
        shape: of a sample: [features], or [channels, height, width], which a table may have too, as one line.
        classes: number of classes; 0: a regression.
        samples: of each client.
        names: of the classes, in the order of their numbers; none: 0, 1, ... A label that is a number may be written in
            any way; the folders of images are names.
        label: the CSV column of the labels; "": the last one.
        mean: taken from the features: one number, or one for each feature (of images: for each channel).
        scale: what is left is divided by it; as ``mean``.
        bias: prepend a column of ones; needs features of shape [d].
        paths: of each client's data, where it is on this machine, else "".
        test: of data that the server evaluates models on, on its machine.
    """

    shape: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, description="of a sample, for example [64]")]
    classes: Annotated[int, msgspec.Meta(ge=0, description="how many; 0: a regression")]
    samples: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, description="of each client")]
    names: tuple[str, ...] = ()
    label: str = ""
    mean: tuple[float, ...] = ()
    scale: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = ()
    bias: bool = False
    paths: tuple[str, ...] = ()
    test: str = ""

    def federation(self) -> Federation:
        """All clients; those whose data is elsewhere have no rows. Raises ConfigError, DataError naming the file."""
        self._check()
        clients = len(self.samples)
        parts = [self._examples(path) if path else None for path in self.paths or ("",) * clients]
        for client, (part, expected) in enumerate(zip(parts, self.samples, strict=True)):
            if part is not None and len(part) != expected:
                raise DataError(
                    f"{self.paths[client]}: {len(part)} samples, but data.samples says {expected} for client {client}; "
                    "mend either"
                )
        here = [part for part in parts if part is not None] or [self._none()]
        sizes = [0 if part is None else len(part) for part in parts]
        return Federation(
            torch.cat([part.features for part in here]),
            torch.cat([part.targets for part in here]),
            torch.tensor([0, *sizes]).cumsum(0),
            self._examples(self.test) if self.test else None,
            self.classes or None,
            "own data",
        )

    def _check(self) -> None:
        if self.classes == 1:
            raise ConfigError("data.classes = 1: expected at least 2, or 0 for a regression")
        for name, values, expected in (
            ("paths", self.paths, {0, len(self.samples)}),
            ("names", self.names, {0, self.classes}),
            ("mean", self.mean, {0, 1, self.shape[0]}),
            ("scale", self.scale, {0, 1, self.shape[0]}),
        ):
            if len(values) not in expected:
                counts = " or ".join(map(str, sorted(expected)))
                raise ConfigError(
                    f"data.{name} has {len(values)} items, expected {counts}; see samples, classes, shape"
                )
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"data.names = {list(self.names)}: expected different names")
        if self.bias and len(self.shape) != 1:
            raise ConfigError(f"data.bias = true, but data.shape = {list(self.shape)}; set data.bias = false")

    def _none(self) -> Examples:
        """No rows, but of the right shape."""
        targets = torch.empty(0, dtype=torch.int64 if self.classes else torch.float64)
        return self._scaled(Examples(torch.empty((0, *self.shape), dtype=torch.float64), targets, self.classes or None))

    def _examples(self, where: str) -> Examples:
        """The rows of one file or folder."""
        path, width = Path(where).expanduser(), math.prod(self.shape)
        kind = "".join(path.suffixes[-2:]).lower().removesuffix(".gz")
        kind = kind[kind.rfind(".") :] if kind else kind
        if path.is_dir():
            images = read_images(path, self.shape)
            features = torch.from_numpy(images.pixels)
            targets = self._targets(images.labels, lambda row: str(images.files[row]))
        elif kind in CSV:
            table = read_table(path, width, self.label)
            features = torch.from_numpy(table.features)
            targets = self._targets(table.labels, lambda row: f"{path}:{table.lines[row]}")
        elif kind in LIBSVM:
            text = read_svmlight(path)
            features = torch.from_numpy(text.dense(width, len(text.labels), "data.shape"))
            labels = [repr(label) for label in text.labels.tolist()]
            targets = self._targets(labels, lambda row: f"{path}:{text.line(row)}")
        else:
            known = ", ".join(CSV + LIBSVM)
            reason = f"ends in none of {known}" if path.exists() else "no such file or folder"
            raise DataError(f"{path}: {reason}; give the path of such a file, or of a folder of images")
        found = self._scaled(Examples(features.reshape(-1, *self.shape), targets, self.classes or None))
        check_rows(found, f"{path}: data")
        return found

    def _scaled(self, rows: Examples) -> Examples:
        features, axes = rows.features, (1,) * (len(self.shape) - 1)
        if self.mean:
            features = features - torch.tensor(self.mean, dtype=features.dtype).reshape(-1, *axes)
        if self.scale:
            features = features / torch.tensor(self.scale, dtype=features.dtype).reshape(-1, *axes)
        rows = Examples(features, rows.targets, rows.classes)
        return with_bias(rows) if self.bias else rows

    def _targets(self, labels: Sequence[str], place: Place) -> Tensor:
        """int64[n] classes, or float64[n] numbers."""
        if not self.classes:
            for row, label in enumerate(labels):
                if not is_finite_number(label):
                    raise DataError(f"{place(row)}: label {label[:40]!r}, expected one finite number; mend it")
            return torch.tensor([float(label) for label in labels], dtype=torch.float64)
        kinds, rows, inverse = np.unique(
            np.array(labels, dtype=object).astype(str), return_index=True, return_inverse=True
        )
        names = self.names or tuple(map(str, range(self.classes)))
        numbers = {float(name): number for number, name in enumerate(names) if is_finite_number(name)}
        known = {name: number for number, name in enumerate(names)}
        found = [known.get(kind, numbers.get(float(kind), -1) if is_finite_number(kind) else -1) for kind in kinds]
        if wrong := [int(row) for row, number in zip(rows, found, strict=True) if number < 0]:
            row = min(wrong)
            listed = f"0 to {self.classes - 1}" if not self.names else ", ".join(names[:8]) + ", ..." * (len(names) > 8)
            raise DataError(
                f"{place(row)}: label {labels[row][:40]!r}, expected one of {listed}; mend it or data.names"
            )
        return torch.from_numpy(np.array(found, dtype=np.int64)[inverse.reshape(-1)])


def refuse_absent(federation: Federation) -> None:
    """Raise DataError when a client's data is elsewhere."""
    if not federation.whole:
        client = int((federation.sizes == 0).nonzero()[0])
        raise DataError(
            f"client {client}'s data is not here, and this needs the data of all {federation.clients} clients; "
            "name it in data.paths"
        )
