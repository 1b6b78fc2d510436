"""Fashion-MNIST: 60000 training and 10000 test images of 28 x 28 grey levels, 10 classes of clothing.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
arXiv 1708.07747; the four idx files as published there.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch

from fedsim.data.examples import Dataset, Examples
from fedsim.data.files import expanded, read_at_most
from fedsim.data.idx import read_idx
from fedsim.data.prepare import check
from fedsim.errors import DataError

ORIGIN = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CLASSES = 10
MAX_BYTES = 1 << 26
"""Bytes of one file, compressed or not; the largest has 47 million when decompressed."""
TIMEOUT = 60.0
"""Seconds without an answer from the server."""

DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""sha256 of each file after decompression: it does not depend on who compressed it, or how."""


class FashionMNIST(msgspec.Struct, frozen=True, tag_field="source", tag="fashion-mnist", forbid_unknown_fields=True):
    """The four idx files, plain or gzip; MNIST's own files, which have the same names and layout, are read as well.

    Args:
        path: their folder.
        limit: keep only so many first training rows; 0: all.
        download: when the folder lacks a file, fetch all four, once, into ~/.cache/fedsim/fashion-mnist.
    """

    path: str = "/usr/share/datasets/fashion-mnist"
    limit: Annotated[int, msgspec.Meta(ge=0)] = 0
    download: bool = False

    def load(self, seed: int) -> Dataset:
        """float32[n, 1, 28, 28] features in [0, 1] (float64 would double 0.2 GB). The seed decides nothing.

        Raises DataError for missing, damaged or mismatched files.
        """
        folder = self._folder()
        train, test = _examples(folder, "train", self.limit), _examples(folder, "t10k", 0)
        if train.features.shape[1:] != test.features.shape[1:]:
            shapes = [tuple(part.features.shape[2:]) for part in (train, test)]
            raise DataError(f"{folder}: training images of {shapes[0]} and test images of {shapes[1]}, expected equal")
        dataset = Dataset(train, test, "fashion-mnist")
        check(dataset)
        return dataset

    def present(self) -> bool:
        """Whether the four files are in ``path``."""
        return not _missing(expanded(self.path))

    def _folder(self) -> Path:
        folder = expanded(self.path)
        missing = _missing(folder)
        if not missing:
            return folder
        if not self.download:
            raise DataError(
                f"{folder}: no file {missing[0]} or {missing[0]}.gz; apt install dataset-fashion-mnist, "
                "or set data.download=true, or give the folder in data.path"
            )
        cache = Path.home() / ".cache" / "fedsim" / "fashion-mnist"
        for stem in _missing(cache):
            fetch(ORIGIN, stem, DIGESTS[stem], cache)
        return cache


def fetch(origin: str, stem: str, digest: str, folder: Path) -> None:
    """Download ``origin`` + ``stem`` + ".gz" into ``folder``: the whole right file appears there, or none.

    Raises DataError when the server does not answer, the content's sha256 is not ``digest``, or nothing can be written.
    """
    url, target = f"{origin}{stem}.gz", folder / f"{stem}.gz"
    way_out = "apt install dataset-fashion-mnist, or give the folder of the files in data.path"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # nosec B310 # ORIGIN, and a digest
            packed = read_at_most(answer, MAX_BYTES)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            found = hashlib.sha256(read_at_most(stream, MAX_BYTES)).hexdigest()
    except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also the server's answer, with an open socket
        raise DataError(f"{url}: cannot be downloaded ({error}); {way_out}") from None
    if found != digest:
        raise DataError(f"{url}: its content has sha256 {found[:16]}..., expected {digest[:16]}...; {way_out}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch) / target.name
            partial.write_bytes(packed)
            partial.replace(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}); {way_out}") from None


def _missing(folder: Path) -> list[str]:
    return [stem for stem in DIGESTS if not _file(folder, stem).is_file()]


def _file(folder: Path, stem: str) -> Path:
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _examples(folder: Path, part: str, limit: int) -> Examples:
    images_file, labels_file = _file(folder, f"{part}-images-idx3-ubyte"), _file(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_file, rank=3), read_idx(labels_file, rank=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: {len(labels)} labels for {len(images)} images of {images_file.name}; fetch both again"
        )
    if labels.max() >= CLASSES:
        row = int((labels >= CLASSES).argmax())
        raise DataError(f"{labels_file}: label {labels[row]} in row {row} (from 0), expected 0 to 9; fetch it again")
    rows = slice(0, limit or len(images))
    features = torch.from_numpy(images[rows, None].astype(np.float32) / np.float32(255))
    return Examples(features, torch.from_numpy(labels[rows].astype(np.int64)), CLASSES)
