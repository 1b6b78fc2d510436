"""The LibSVM (SVMlight) text format, read strictly: ``label index:value index:value ...``, one example a line.

Indices start at 1 and ascend. ``#`` starts a comment, empty lines are skipped. Refused: query numbers
(``qid:``), several labels on a line, digits grouped by ``_``, numbers that are not finite, indices that repeat or fall.

scikit-learn parses. Whatever it would let pass against these rules holds a byte outside the plain alphabet or yields a
number that is not finite; only then, or when it fails, every line is examined here to name the one at fault.
"""

from __future__ import annotations

import codecs
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.data.files import read_file
from fedsim.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_TEXT = 1 << 32
"""Bytes of text read from one file, after decompression."""
MAX_DENSE = 1 << 34
"""Bytes of a dense float64 matrix; one wrong index would otherwise ask for any amount of memory."""
MAX_INDEX = 2**31 - 1

_UNUSUAL = re.compile(rb"[^0-9eE+\-.: \t\r\n]")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INDEX = re.compile(rb"[+-]?\d{1,18}")


@dataclass(frozen=True, slots=True, eq=False)
class SparseText:
    """A parsed file and its bytes, to find a line again.

    labels: float64[n]. Row i holds the values starts[i] .. starts[i + 1] - 1 at ``columns``, counted from 0.
    """

    path: Path
    content: bytes
    labels: NDArray[np.float64]
    values: NDArray[np.float64]
    columns: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def width(self) -> int:
        """The largest index in the file, counted from 1; 0 when no line has a feature."""
        return int(self.columns.max()) + 1 if self.columns.size else 0

    def dense(self, width: int, rows: int, key: str = "features") -> NDArray[np.float64]:
        """The first ``rows`` rows, float64[rows, width]. key: which says the width, for errors.

        Raises DataError, naming the line of the largest index, when it is beyond ``width`` or makes the rows too wide.
        """
        from scipy.sparse import csr_matrix  # here, because it takes a second that few commands need

        if self.width > width:
            raise DataError(
                f"{self.path}:{self._line_of_largest_index()}: index {self.width}, expected 1 to {width}, the number "
                f"of features; set {key} = {self.width} or mend the line"
            )
        if (size := rows * width * 8) > MAX_DENSE:
            where = f"; the largest index is on line {self._line_of_largest_index()}" if self.columns.size else ""
            raise DataError(
                f"{self.path}: {rows} rows of {width} features take {size / 1e9:.1f} GB in memory, expected at most "
                f"{MAX_DENSE / 1e9:.1f} GB; lower limit or {key}{where}"
            )
        stop = int(self.starts[rows])
        parts = (self.values[:stop], self.columns[:stop], self.starts[: rows + 1])
        return np.asarray(csr_matrix(parts, shape=(rows, width)).toarray(), dtype=np.float64)

    def line(self, row: int) -> int:
        """The line, counted from 1, on which a row (counted from 0) stands."""
        numbers = (number for number, _ in _data_lines(self.content))
        return next(number for at, number in enumerate(numbers) if at == row)

    def _line_of_largest_index(self) -> int:
        return self.line(int(np.searchsorted(self.starts, self.columns.argmax(), side="right")) - 1)


def read_svmlight(path: Path) -> SparseText:
    """Parse a file, plain or gzip. Raises DataError naming the file and, where there is one, the line at fault."""
    content = read_file(path, MAX_TEXT).removeprefix(codecs.BOM_UTF8)
    parsed = _parse(content)
    if parsed is None or _UNUSUAL.search(content):
        fault = _first_fault(content) or (
            None if parsed else (1, "is not LibSVM text; expected 'label index:value ...'")
        )
        if fault:
            raise DataError(f"{path}:{fault[0]}: {fault[1]}")
    assert parsed is not None
    matrix, labels = parsed
    if labels.size == 0:
        raise DataError(f"{path}: no line with data, expected lines such as '+1 3:0.5 7:1'; give another file")
    return SparseText(
        path, content, labels, matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    )


def _parse(content: bytes) -> tuple[csr_matrix[np.float64], NDArray[np.float64]] | None:
    """Rows and labels, or None when they cannot be had or are not finite."""
    from sklearn.datasets import load_svmlight_file  # here, because it takes a second that few commands need

    try:
        matrix, labels = load_svmlight_file(io.BytesIO(content), dtype=np.float64, zero_based=False)
    except (ValueError, OverflowError):
        return None
    return (matrix, labels) if np.isfinite(matrix.data).all() and np.isfinite(labels).all() else None


def _data_lines(content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """(line number from 1, its words) of every line that is not empty or a comment."""
    for number, line in enumerate(io.BytesIO(content), 1):
        words = line.split(b"#", 1)[0].split()
        if words:
            yield number, words


def _first_fault(content: bytes) -> tuple[int, str] | None:
    """The first line that breaks the rules at the top of this file: (its number, what was found and expected)."""
    for number, (label, *pairs) in _data_lines(content):
        if not _is_finite_number(label):
            return number, f"label {_shown(label)}, expected one finite number; mend the line"
        last = 0
        for pair in pairs:
            index, colon, value = pair.partition(b":")
            if not colon or not _INDEX.fullmatch(index):
                return number, f"{_shown(pair)}, expected index:value such as 3:0.5; mend the line"
            if not _is_finite_number(value):
                return number, f"value {_shown(value)} of index {int(index)}, expected one finite number; mend the line"
            if not 1 <= int(index) <= MAX_INDEX:
                return number, f"index {int(index)}, expected 1 to {MAX_INDEX}; indices count from 1"
            if int(index) <= last:
                return number, f"index {int(index)} after index {last}, expected ascending indices; sort the line"
            last = int(index)
    return None


def _is_finite_number(word: bytes) -> bool:
    return _NUMBER.fullmatch(word) is not None and math.isfinite(float(word))


def _shown(word: bytes) -> str:
    """At most 40 bytes of a word, printable and on one line."""
    return repr(word[:40])[1:]
