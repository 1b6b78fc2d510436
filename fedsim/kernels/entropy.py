"""Whether an entropy code is worth trying on a row, in the whole numbers of ``fedsim.wire.ans``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled

Ints = NDArray[np.int64]

_FRACTION = 16


@compiled
def _log2(number: int, length: int) -> int:
    """``ans._log2`` of a number of so many bits."""
    logs, rest = np.int64(length - 1), np.uint64(number) << np.uint64(32 - length)
    for _ in range(_FRACTION):
        rest = rest * rest >> np.uint64(31)
        digit = rest >> np.uint64(32)
        rest >>= digit
        logs = 2 * logs + np.int64(digit)
    return int(logs)


@compiled
def _length(number: int) -> int:
    length = 0
    while number >> length:
        length += 1
    return length


@compiled
def bits(counts: Ints, first: int, last: int) -> int:
    """Bits of the table of counts, int64[base], and estimate of the words; sets counts to zero.

    first, last: symbols that no symbol which occurs is outside of; one occurs at least.
    """
    while counts[first] == 0:
        first += 1
    while counts[last] == 0:
        last -= 1
    total, table, sums = np.int64(0), 2 * _length(len(counts) - 1), np.int64(0)
    for symbol in range(first, last + 1):
        total += counts[symbol]
    whole = _log2(int(total), _length(int(total)))
    for symbol in range(first, last + 1):
        count = int(counts[symbol])
        length = _length(count)
        table += length + 1 + length // 2
        if count:
            sums += count * (whole - _log2(count, length))
        counts[symbol] = 0
    return int(table + (sums >> _FRACTION))
