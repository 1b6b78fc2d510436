"""Rows of plain numbers <-> bytes: d little-endian floats of the layout's type, 2 d, 4 d or 8 d bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.compression.payload import Values, ValuesLayout
from fedsim.errors import WireError

_WORDS: dict[torch.dtype, tuple[torch.dtype, np.dtype[Any]]] = {
    torch.float16: (torch.int16, np.dtype("<i2")),
    torch.bfloat16: (torch.int16, np.dtype("<i2")),
    torch.float32: (torch.int32, np.dtype("<i4")),
    torch.float64: (torch.int64, np.dtype("<i8")),
}
"""Floats are sent as the whole numbers of the same bits, because numpy knows no bfloat16."""


def bounds(layout: ValuesLayout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message, which are equal. Raises WireError if it has no format."""
    if layout.dtype not in _WORDS:
        raise WireError(f"values of {layout.dtype} have no wire format; use {', '.join(map(str, _WORDS))}")
    octets = layout.d * _WORDS[layout.dtype][1].itemsize
    return octets, octets


def size(payload: Values) -> Tensor:
    """Bits of each row's message, int64[n]."""
    _check(payload)
    return torch.full((len(payload.values),), 8 * bounds(payload.layout)[1])


def encode(payload: Values) -> list[bytes]:
    """One message a row."""
    _check(payload)
    whole, wire = _WORDS[payload.layout.dtype]
    words = payload.values.detach().cpu().contiguous().view(whole).numpy().astype(wire)
    return [row.tobytes() for row in words]


def decode(messages: Sequence[bytes], layout: ValuesLayout) -> Values:
    """Messages of the right length; the numbers may be infinite or NaN."""
    words = matrix(messages, _WORDS[layout.dtype][1], layout.d)
    return Values(layout, torch.from_numpy(words).view(layout.dtype))


def matrix(messages: Sequence[bytes], wire: np.dtype[Any], columns: int) -> NDArray[Any]:
    """Messages of ``columns`` numbers of type ``wire`` each -> numbers in the machine's byte order, [n, columns]."""
    numbers = np.frombuffer(b"".join(messages), wire).reshape(len(messages), columns)
    return numbers.astype(wire.newbyteorder("="))


def scales_of(scales: Tensor) -> NDArray[np.float32]:
    """float32[n, buckets] on any device -> the same for numpy. Raises WireError unless finite and from +0.0."""
    numbers = np.ascontiguousarray(scales.detach().cpu().numpy())
    # as an unsigned word, every float that is infinite, NaN or signed (also -0.0) is at least that of +infinity
    if (numbers.view(np.uint32) >= 0x7F800000).any():
        raise WireError("a norm is infinite, NaN, negative or -0.0; expected a finite number from +0.0")
    return numbers


def _check(payload: Values) -> None:
    bounds(payload.layout)
    values, layout = payload.values, payload.layout
    if values.ndim != 2 or values.shape[1] != layout.d or values.dtype != layout.dtype:
        raise WireError(f"values are {values.dtype}{list(values.shape)}, expected {layout.dtype}[n, {layout.d}]")
