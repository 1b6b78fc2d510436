"""Factors of matrices <-> bytes: the columns of left, then those of right, as little-endian float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.compression.payload import Factors, FactorsLayout
from fedsim.errors import WireError
from fedsim.wire.values import matrix

_FLOAT = np.dtype("<f4")


def bounds(layout: FactorsLayout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message, which are equal. Raises WireError if it has no format."""
    if min(layout.d, layout.rows, layout.columns, layout.rank) < 1 or layout.rows * layout.columns < layout.d:
        raise WireError(f"{layout} has no wire format; use a matrix of at least d numbers and a rank of at least 1")
    octets = 4 * layout.rank * (layout.rows + layout.columns)
    return octets, octets


def size(payload: Factors) -> Tensor:
    """Bits of each row's message, int64[n]."""
    return torch.full((len(_flat(payload)),), 8 * bounds(payload.layout)[1])


def encode(payload: Factors) -> list[bytes]:
    """One message a row."""
    return [row.tobytes() for row in _flat(payload).detach().cpu().numpy().astype(_FLOAT)]


def decode(messages: Sequence[bytes], layout: FactorsLayout) -> Factors:
    """Messages of the right length; the numbers may be infinite or NaN."""
    n, rank, rows, columns = len(messages), layout.rank, layout.rows, layout.columns
    numbers = torch.from_numpy(matrix(messages, _FLOAT, rank * (rows + columns)))
    left, right = numbers[:, : rank * rows], numbers[:, rank * rows :]
    return Factors(layout, left.reshape(n, rank, rows), right.reshape(n, rank, columns))


def _flat(payload: Factors) -> Tensor:
    """float32[n, rank (rows + columns)]."""
    bounds(payload.layout)
    left, right, layout = payload.left, payload.right, payload.layout
    shapes = (len(left), layout.rank, layout.rows), (len(left), layout.rank, layout.columns)
    if (left.shape, right.shape) != shapes or {left.dtype, right.dtype} != {torch.float32}:
        raise WireError(
            f"factors are {left.dtype}{list(left.shape)} and {right.dtype}{list(right.shape)}, not {layout}"
        )
    return torch.cat([left.flatten(1), right.flatten(1)], dim=1)
