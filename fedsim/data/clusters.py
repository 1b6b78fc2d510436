"""Clients as clusters of nearby rows: from a file, or found as the Artemis experiments found theirs.

Found: scale every column, the label's included, to mean 0 and deviation 1; embed in the plane by t-SNE; fit a Gaussian
mixture with one component for each client. scikit-learn's t-SNE now starts from the principal components; when the
published splits were made it started at random, so those cannot be found again, only read from their files.
Source: Philippenko and Dieuleveut, arXiv 2006.14591, experiments.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.examples import Examples
from fedsim.data.files import expanded, read_file
from fedsim.data.prepare import standardised
from fedsim.errors import DataError

LINE = 64
"""Bytes that a line has at most, on average: more in all is no list of clusters, whatever a gzip file unpacks to."""
PERPLEXITY = 30
_CLUSTER = re.compile(rb"\s*(\d{1,18})\s*")


def read_clusters(file: str, *, rows: int, clients: int) -> NDArray[np.int64]:
    """Cluster numbers of a text file, plain or gzip, int64[rows].

    Raises DataError unless it has ``rows`` lines, each a number from 0 to clients - 1, and every number occurs.
    """
    lines = read_file(expanded(file), LINE * (rows + 1)).splitlines()
    numbers = np.empty(len(lines), dtype=np.int64)
    for at, line in enumerate(lines):
        match = _CLUSTER.fullmatch(line)
        if match is None or int(match[1]) >= clients:
            found = repr(line[:40])[1:]
            raise DataError(f"{file}:{at + 1}: {found}, expected a cluster number from 0 to {clients - 1}; see clients")
        numbers[at] = int(match[1])
    if len(lines) != rows:
        raise DataError(
            f"{file}: {len(lines)} lines for {rows} training rows, expected one line a row; "
            "the file belongs to other data, or limit or test_fraction took rows away"
        )
    _refuse_empty(numbers, clients, file)
    return numbers


def cluster_rows(train: Examples, clients: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Cluster number of each row, int64[n]. Raises DataError for too few rows or a cluster without rows.

    Takes seconds for a thousand rows and minutes for ten thousand.
    """
    from sklearn.manifold import TSNE  # here, because it takes a second that few commands need
    from sklearn.mixture import GaussianMixture

    n = len(train)
    if n <= PERPLEXITY:
        raise DataError(f"{n} training rows, expected more than {PERPLEXITY} to find clusters; give them in a file")
    columns = torch.cat([train.features.flatten(1).double(), train.targets[:, None].double()], dim=1)
    scaled = standardised(Examples(columns, train.targets, None), None)[0].features.numpy()
    embedding, mixture = random.integers(2**32, size=2).tolist()
    plane = TSNE(perplexity=PERPLEXITY, random_state=embedding).fit_transform(scaled)
    fit = GaussianMixture(clients, tol=1e-6, n_init=4, max_iter=2000, random_state=mixture)
    numbers = fit.fit_predict(plane).astype(np.int64)
    _refuse_empty(numbers, clients, "t-SNE and Gaussian mixture")
    return np.asarray(numbers)


def _refuse_empty(numbers: NDArray[np.int64], clients: int, where: str) -> None:
    empty = np.bincount(numbers, minlength=clients) == 0
    if empty.any():
        raise DataError(
            f"{where}: no row has cluster {int(empty.argmax())}, expected every number from 0 to {clients - 1}; "
            "lower clients or number the clusters without gaps"
        )
