"""Rows of plain numbers <-> bytes: d little-endian floats of the layout's type, 4 d or 8 d bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.compression.payload import Values, ValuesLayout
from fedsim.errors import WireError

_FLOATS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype("<f4"), torch.float64: np.dtype("<f8")}


def bounds(layout: ValuesLayout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message, which are equal. Raises WireError if it has no format."""
    if layout.dtype not in _FLOATS:
        raise WireError(f"values of {layout.dtype} have no wire format; use torch.float32 or torch.float64")
    octets = layout.d * _FLOATS[layout.dtype].itemsize
    return octets, octets


def size(payload: Values) -> Tensor:
    """Bits of each row's message, int64[n]."""
    _check(payload)
    return torch.full((len(payload.values),), 8 * bounds(payload.layout)[1])


def encode(payload: Values) -> list[bytes]:
    """One message a row."""
    _check(payload)
    numbers = payload.values.detach().cpu().numpy().astype(_FLOATS[payload.layout.dtype])
    return [row.tobytes() for row in numbers]


def decode(messages: Sequence[bytes], layout: ValuesLayout) -> Values:
    """Messages of the right length; the numbers may be infinite or NaN."""
    return Values(layout, torch.from_numpy(matrix(messages, _FLOATS[layout.dtype], layout.d)))


def matrix(messages: Sequence[bytes], wire: np.dtype[Any], columns: int) -> NDArray[Any]:
    """Messages of ``columns`` numbers of type ``wire`` each -> numbers in the machine's byte order, [n, columns]."""
    numbers = np.frombuffer(b"".join(messages), wire).reshape(len(messages), columns)
    return numbers.astype(wire.newbyteorder("="))


def _check(payload: Values) -> None:
    bounds(payload.layout)
    values, layout = payload.values, payload.layout
    if values.ndim != 2 or values.shape[1] != layout.d or values.dtype != layout.dtype:
        raise WireError(f"values are {values.dtype}{list(values.shape)}, expected {layout.dtype}[n, {layout.d}]")
