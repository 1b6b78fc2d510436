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
from fedsim.kernels import arithmetic as kernel
from fedsim.wire import coding, levels
from tests.fuzz import wire
from tests.fuzz.drive import Case, Target
from tests.fuzz.mutate import Bytes, Ints

_read, _write, _lengths = kernel.read, kernel.write, kernel.lengths
_GUARD = 256
_MARK = 77


@njit(nogil=True)  # not kept on disk: numba would not see that the kernels have changed
def _probe(
    rows: Bytes,
    lengths: Ints,
    sizes: tuple[int, int, int, int],
    fixed: tuple[int, int, int],
    shares: tuple[Ints, Ints, Ints],
    costs: tuple[Ints, Ints, Ints, Ints],
) -> tuple[int, int]:
    """How many are canonical; the first that wrote out of bounds, or -1. sizes: d, s, bucket, most bytes of a body."""
    d, s, bucket, most = sizes
    least = 4 * ((d + bucket - 1) // bucket)
    levels_all = np.full(d + 2 * _GUARD, _MARK, np.int32)
    out_all = np.full(most + 2 * _GUARD, _MARK, np.uint8)
    levels, out = levels_all[_GUARD : _GUARD + d], out_all[_GUARD : _GUARD + most]
    norms, accepted = np.empty(least // 4, np.float32), 0
    plans, tried = np.empty((1, 3), np.int64), np.empty(1, np.bool_)
    for i in range(len(lengths)):
        if not least < lengths[i] <= least + most or rows[i, least] == 255:
            continue
        body = rows[i, least : lengths[i]]
        norms[:] = rows[i, :least].copy().view(np.float32)
        levels[:] = 0
        odds, shape = _read(body, shares, levels)
        many, heads, octets = levels.copy().reshape(1, d), norms.reshape(1, len(norms)), -1
        if _lengths(many, heads, s, bucket, fixed, costs, plans, tried) and 0 < plans[0, 2] <= most:
            octets = plans[0, 2]
            _write(levels, plans[0, 0], plans[0, 1], shares, out[:octets])
        for k in range(_GUARD):
            whole = levels_all[k] == _MARK and levels_all[_GUARD + d + k] == _MARK
            if not whole or out_all[k] != _MARK or out_all[_GUARD + most + k] != _MARK:
                return accepted, i
        if octets == len(body) and (odds, shape) == (plans[0, 0], plans[0, 1]):
            same = True
            for k in range(octets):
                same &= out[k] == body[k]
            accepted += same
    return accepted, -1


def _case(name: str) -> Case:
    layout = wire.LAYOUTS[name]
    assert isinstance(layout, LevelsLayout)
    sizes = (layout.d, layout.levels, layout.bucket, coding.longest(layout) - 4 * layout.buckets)
    tables = levels._shares(layout), levels._costs(layout)

    def rows(many: Bytes, lengths: Ints) -> tuple[int, int]:
        found: tuple[int, int] = _probe(many, lengths, sizes, levels._fixed(layout), *tables)
        return found

    plain: Callable[[bytes], None] = partial(wire._code, layout)
    seeds = [message for seed in range(3) for message in coding.encode(wire.rows_of(layout, seed))]
    return Case(seeds, plain, (WireError,), bound=coding.longest(layout) + 8, rows=rows)


NAMES = ("ternary", "buckets", "sixteen", "largest", "far")
TARGETS = [Target(f"kernels, {name}", partial(_case, name), 0.5 if name == "far" else 12) for name in NAMES]
