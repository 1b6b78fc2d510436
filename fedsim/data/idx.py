"""The idx format of MNIST and Fashion-MNIST: two zero bytes, a type, a rank, the sizes, then the numbers.

    offset     bytes   meaning
    0          2       zero
    2          1       type of a number; 0x08 is an unsigned byte, the only one read here
    3          1       rank r
    4          4 r     sizes, big-endian unsigned 32-bit
    4 + 4 r            the numbers, last size fastest

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section on file formats.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.files import opened, read_at_most
from fedsim.errors import DataError

MAX_BYTES = 1 << 31


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An idx file (plain or gzip) of unsigned bytes with ``rank`` sizes, as uint8[sizes].

    Raises DataError unless magic, type and rank are as expected and the file holds exactly the bytes its header
    announces. Nothing is allocated on the word of the header, and at most one byte more than announced is decompressed.
    """
    expected = bytes([0, 0, 8, rank])
    with opened(path) as stream:
        header = stream.read(4 + 4 * rank)
        if header[:4] != expected:
            raise DataError(
                f"{path}: starts with bytes '{header[:4].hex()}', expected '{expected.hex()}' "
                f"(idx, unsigned bytes, rank {rank}); give an idx file of this kind"
            )
        if len(header) < 4 + 4 * rank:
            raise DataError(f"{path}: ends inside its idx header of {4 + 4 * rank} bytes; fetch it again")
        sizes = struct.unpack(f">{rank}I", header[4:])
        announced = math.prod(sizes)
        if not 0 < announced <= MAX_BYTES:
            raise DataError(f"{path}: announces {announced} bytes, expected 1 to {MAX_BYTES}; fetch it again")
        body = read_at_most(stream, announced + 1)
    if len(body) != announced:
        found = f"only {len(body)}" if len(body) < announced else "more"
        raise DataError(f"{path}: holds {found} bytes of the {announced} its header announces; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(sizes)
