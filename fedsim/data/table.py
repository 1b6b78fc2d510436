"""CSV files, read strictly: commas, a sample a line, one column of labels, all other columns numbers.

A first line of which no feature is a number is a header. Empty lines are skipped. Refused: lines of another length,
cells that are not one finite number (digits grouped by ``_``, words, nothing), text that is not UTF-8.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.files import read_file
from fedsim.errors import DataError
from fedsim.keys import nearest

MAX_TEXT = 1 << 32
"""Bytes of text read from one file, after decompression."""

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """features: float64[n, width]; labels: n cells; lines: the line of each row, counted from 1."""

    features: NDArray[np.float64]
    labels: Sequence[str]
    lines: Sequence[int]


def read_table(path: Path, width: int, label: str = "") -> Table:
    """A file, plain or gzip, of ``width`` features and a label: the column named ``label``, or the last one.

    Raises DataError naming the file, the line and the column at fault.
    """
    rows = _rows(path)
    header, at = _header(path, rows[0], label) if rows else (None, -1)
    if header is not None:
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path}: no line with data, expected lines of {width} features and a label; give another file")
    for line, row in rows:
        if len(row) != width + 1:
            raise DataError(
                f"{path}:{line}: {len(row)} columns, expected {width + 1}, which are {width} features and a label; "
                + (_separated(row, width + 1) or "mend the line or data.shape")
            )
    at = at % (width + 1)
    cells = [row[:at] + row[at + 1 :] for _, row in rows]
    try:
        features: NDArray[np.float64] | None = np.array(cells, dtype=object).astype(np.float64)
    except (ValueError, OverflowError):
        features = None
    # Python reads more as a number than is one here; only then is each cell looked at.
    if features is None or not np.isfinite(features).all() or any("_" in "".join(row) for row in cells):
        for (line, _), row in zip(rows, cells, strict=True):
            for column, cell in enumerate(row):
                if not is_finite_number(cell):
                    place = column + (column >= at)
                    name = f"column {place + 1}" + (f" ({header[place].strip()!r})" if header else "")
                    raise DataError(
                        f"{path}:{line}: {name} is {cell[:40]!r}, expected one finite number; mend the cell"
                    )
    assert features is not None
    return Table(features, [row[at].strip() for _, row in rows], [line for line, _ in rows])


def _separated(row: Sequence[str], columns: int) -> str:
    """What to say of a line that has as many columns as it should when another separator than a comma is taken."""
    text = ",".join(row)
    names = {";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
    found = next((name for mark, name in names.items() if text.count(mark) == columns - 1), "")
    return f"it is separated by {found}: save it with commas (and decimal points)" if found else ""


def is_finite_number(cell: str) -> bool:
    """
    >>> [is_finite_number(cell) for cell in ("-1.5e3", " 7 ", "1_000", "nan", "1e999", "")]
    [True, True, False, False, False, False]
    """
    return NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(number of the line at which it ends, cells) of every line that is not empty."""
    try:
        text = read_file(path, MAX_TEXT).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: not CSV ({error}); mend the quotes") from None


def _header(path: Path, first: tuple[int, list[str]], label: str) -> tuple[list[str] | None, int]:
    """The header, None without one, and the column of labels."""
    names = [name.strip() for name in first[1]]
    if label:
        if names.count(label) != 1:
            raise DataError(
                f"{path}:{first[0]}: {names.count(label)} columns are named {label!r} (data.label)"
                f"{nearest(label, names)}, expected one; mend the header"
            )
        return names, names.index(label)
    return (None if any(is_finite_number(name) for name in names[:-1]) or len(names) == 1 else names), -1
