"""LibSVM files as a source: labels to classes or targets, dense features, an optional test file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.examples import Dataset, Examples
from fedsim.data.files import expanded
from fedsim.data.prepare import prepare
from fedsim.data.svmlight import SparseText, read_svmlight
from fedsim.errors import ConfigError, DataError

Count = Annotated[int, msgspec.Meta(ge=0)]


class LibSVM(msgspec.Struct, frozen=True, tag_field="source", tag="libsvm", forbid_unknown_fields=True):
    """Rows of LibSVM text files, plain or gzip.

    Labels: with ``target`` = "classes" the distinct labels of the training rows become 0, 1, ... in ascending order (-1
    and +1 become 0 and 1); they must be whole numbers. With "regression" they are the targets, as they stand.

    Args:
        path: the training file.
        test_path: the test file; "" is none, and ``test_fraction`` of the training rows may be held out instead.
        features: number of features; 0: the largest index in the training file.
        limit: keep only so many first rows of the training file; 0: all.
        target: "classes" or "regression".
        standardise: every feature gets mean 0 and standard deviation 1 over the training rows.
        bias: prepend a column of ones.
        test_fraction: share of the rows held out at random.
    """

    path: Annotated[str, msgspec.Meta(description="the training file, LibSVM text, plain or gzip")]
    test_path: str = ""
    features: Count = 0
    limit: Count = 0
    target: Literal["classes", "regression"] = "classes"
    standardise: bool = True
    bias: bool = True
    test_fraction: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0

    def load(self, seed: int) -> Dataset:
        """float64[n, d] features. Raises DataError naming file and line, ConfigError for options that do not fit."""
        if self.test_path and self.test_fraction:
            raise ConfigError(f"test_path and test_fraction = {self.test_fraction} are both given; keep one of them")
        text = read_svmlight(expanded(self.path))
        width = self.features or text.width
        if width == 0:
            raise DataError(f"{self.path}: no line has a feature, expected index:value pairs; give features")
        rows = min(self.limit or len(text.labels), len(text.labels))
        labels = self._labels(text)[:rows]
        train = self._examples(text.dense(width, rows), labels, np.unique(labels))
        test = self._test(width, np.unique(labels)) if self.test_path else None
        dataset = Dataset(train, test, Path(self.path).name.removesuffix(".gz"))
        return prepare(
            dataset, standardise=self.standardise, bias=self.bias, test_fraction=self.test_fraction, seed=seed
        )

    def _test(self, width: int, names: NDArray[np.float64]) -> Examples:
        text = read_svmlight(expanded(self.test_path))
        labels = self._labels(text)
        if self.target == "classes":
            _refuse(text, ~np.isin(labels, names), "does not occur in the training rows; mend the line or raise limit")
        return self._examples(text.dense(width, len(labels)), labels, names)

    def _labels(self, text: SparseText) -> NDArray[np.float64]:
        if self.target == "classes":
            whole = np.rint(text.labels) == text.labels
            _refuse(text, ~whole, 'is not a whole class number; set target = "regression" or mend the line')
        return text.labels

    def _examples(
        self, features: NDArray[np.float64], labels: NDArray[np.float64], names: NDArray[np.float64]
    ) -> Examples:
        if self.target == "regression":
            return Examples(torch.from_numpy(features), torch.from_numpy(labels), None)
        targets = np.searchsorted(names, labels).astype(np.int64)
        return Examples(torch.from_numpy(features), torch.from_numpy(targets), len(names))


def _refuse(text: SparseText, wrong: NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{text.path}:{text.line(row)}: label {text.labels[row]:g} {why}")
