"""The compiled code alone, thousands of messages at a time, between guards that tell of a write out of bounds.

Reads out of bounds are found where ``NUMBA_BOUNDSCHECK=1`` is set: then numba raises IndexError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit

from fedsim.compression.payload import LevelsLayout
from fedsim.errors import WireError
from fedsim.kernels import code, rice
from fedsim.wire import coding, levels
from tests.fuzz import wire
from tests.fuzz.drive import Case, Target
from tests.fuzz.mutate import Bytes, Ints

_read, _write, _fits = code.read, code.write, rice.message_bytes
_GUARD = 256
_MARK = 77


@njit(nogil=True)  # not kept on disk: numba would not see that the kernels have changed
def _probe(
    rows: Bytes,
    lengths: Ints,
    sizes: tuple[int, int, int, int, int, int],
    digits: tuple[int, int, int],
) -> tuple[int, int]:
    """How many are canonical; the first that wrote out of bounds, or -1. sizes: d, s, bucket, buckets, bits of ..."""
    d, s, bucket, buckets, header, dense = sizes
    least, most = 4 * buckets, 4 * buckets + (dense + 7) // 8
    levels_all = np.full(d + 2 * _GUARD, _MARK, np.int32)
    gaps_all = np.full(d + 2 * _GUARD, _MARK, np.int32)
    out_all = np.full(most - least + 2 * _GUARD, _MARK, np.uint8)
    levels, gaps = levels_all[_GUARD : _GUARD + d], gaps_all[_GUARD : _GUARD + d]
    out = out_all[_GUARD : _GUARD + most - least]
    norms, accepted = np.empty(buckets, np.float32), 0
    size, tried = np.empty(1, np.int64), np.empty(1, np.bool_)
    for i in range(len(lengths)):
        if not least < lengths[i] <= most:
            continue
        body = rows[i, least : lengths[i]]
        norms[:] = rows[i, :least].copy().view(np.float32)
        levels[:] = 0
        found = _read(body, s, header, dense, digits, levels)
        octets = -1
        many, heads = levels.copy().reshape(1, d), norms.reshape(1, buckets)
        if found == code.READ and _fits(many, heads, s, bucket, header, dense, size, tried):
            octets = _write(levels, norms, s, header, dense, digits, gaps, out)
        for k in range(_GUARD):
            whole = levels_all[k] == _MARK and levels_all[_GUARD + d + k] == _MARK
            whole &= gaps_all[k] == _MARK and gaps_all[_GUARD + d + k] == _MARK
            if not whole or out_all[k] != _MARK or out_all[_GUARD + most - least + k] != _MARK:
                return accepted, i
        if octets == len(body):
            same = True
            for k in range(octets):
                same &= out[k] == body[k]
            accepted += same
    return accepted, -1


def _case(name: str) -> Case:
    layout = wire.LAYOUTS[name]
    assert isinstance(layout, LevelsLayout)
    sizes = (layout.d, layout.levels, layout.bucket, layout.buckets)
    bits = levels._header_bits(layout), levels._dense_bits(layout)
    digits = levels._group_sizes(layout)

    def rows(many: Bytes, lengths: Ints) -> tuple[int, int]:
        found: tuple[int, int] = _probe(many, lengths, (*sizes, *bits), digits)
        return found

    plain: Callable[[bytes], None] = partial(wire._code, layout)
    seeds = [message for seed in range(3) for message in coding.encode(wire.rows_of(layout, seed))]
    return Case(seeds, plain, (WireError,), bound=coding.longest(layout) + 8, rows=rows)


NAMES = ("ternary", "buckets", "sixteen", "largest", "far")
TARGETS = [Target(f"kernels, {name}", partial(_case, name), 0.5 if name == "far" else 12) for name in NAMES]
