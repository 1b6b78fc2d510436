"""Rows of levels <-> bytes; see ``coding`` for the calls.

  norms  one little-endian float32 for each bucket: finite, >= 0, not -0.0.
  body   nothing if every norm is zero. Else one of
           model    an arithmetic code (see ``arithmetic``) under one of a few distributions (see ``model``); its first
                    byte is not 255
           entropy  a byte of ones | a table of the counts of level + s, zeros to a whole byte, words (see ``ans``)

The model is for rows as they are: as many levels above zero as below, large ones ever rarer; naming it costs a few
bits. A table costs hundreds, and fits any row. It is taken where its bits and the zero-order entropy (``ans.estimate``)
are more than 128 + floor(s / 2) fewer than those of the model's bytes: words may be longer than the entropy by the 64
bits of a state and a fifth of a bit for each symbol. A level in a bucket of norm zero is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import kernels
from fedsim.compression.payload import Levels, LevelsLayout, Sparse
from fedsim.errors import WireError
from fedsim.wire import ans, arithmetic, model
from fedsim.wire.arithmetic import OVERRUN, SHAPE_COST, START, Plan
from fedsim.wire.bits import Ints
from fedsim.wire.values import matrix, scales_of

MAX_LEVELS = 2**15
"""Largest s of a layout."""

_TABLE = np.ones(8, np.uint8)
_TABLE_BYTE = 255
_MARGIN = 128


@cache
def bounds(layout: LevelsLayout) -> tuple[int, int]:
    """Bytes of the shortest message and of one that none exceeds: some odds and equal magnitudes, the dearest levels.

    Raises WireError if it has no format.
    """
    if not 1 <= layout.d < 2**31 or layout.bucket < 1 or not 1 <= layout.levels <= MAX_LEVELS:
        raise WireError(f"{layout} has no wire format; use 1 <= d < 2^31, bucket >= 1, levels from 1 to {MAX_LEVELS}")
    tables = model.tables(layout)
    nonzero = tables.nonzero_costs + tables.magnitude_costs[-1].max()
    dearest = tables.head_costs + layout.d * np.maximum(tables.zero_costs, nonzero)
    units = START + SHAPE_COST * (layout.levels > 1) + int(dearest.min())
    return 4 * layout.buckets, 4 * layout.buckets - (-units // (8 * model.TOTAL))


def size(payload: Levels) -> Tensor:
    """Bits of each row's message, int64[n]. Only a row in the entropy code is encoded."""
    levels, norms = _numbers(payload)
    plans, tables = _plans(levels, norms, payload.layout)
    return _with_entropy(plans[:, 2], tables, lambda i: levels[i], payload.layout)


def sparse_size(payload: Sparse) -> Tensor:
    """As ``size``, of rows that a compressor made."""
    from fedsim.kernels import arithmetic as kernel

    layout = payload.layout
    bounds(layout)
    starts, places, levels, norms = (
        part.numpy() for part in (payload.starts, payload.places, payload.levels, payload.norms)
    )
    plans, tables = np.empty((len(norms), 3), np.int64), np.empty(len(norms), np.bool_)
    kernel.sparse_lengths(starts, levels, norms, layout.levels, layout.d, _fixed(layout), _costs(layout), plans, tables)

    def row(i: int) -> NDArray[np.int32]:
        own, whole = slice(starts[i], starts[i + 1]), np.zeros(layout.d, np.int32)
        whole[places[own]] = levels[own]
        return whole

    return _with_entropy(plans[:, 2], tables, row, layout)


def encode(payload: Levels) -> list[bytes]:
    """One message a row."""
    levels, norms = _numbers(payload)
    heads, (plans, tables) = norms.astype("<f4"), _plans(levels, norms, payload.layout)
    return [
        heads[i].tobytes() + (_entropy(row, payload.layout) if tables[i] else _written(row, plans[i], payload.layout))
        for i, row in enumerate(levels)
    ]


def decode(messages: Sequence[bytes], layout: LevelsLayout) -> Levels:
    """Messages whose lengths are within ``bounds``. Raises WireError unless they are the encodings of their rows."""
    least, _ = bounds(layout)
    levels, found = np.zeros((len(messages), layout.d), np.int32), []
    for i, (row, message) in enumerate(zip(levels, messages, strict=True)):
        body = np.frombuffer(message, np.uint8, offset=least) if len(message) > least else _TABLE[:0]
        found.append(_read(body, row, layout))
        if found[i] == OVERRUN:
            raise _refused(i)
    norms = matrix([message[:least] for message in messages], np.dtype("<f4"), layout.buckets)
    payload = Levels(layout, torch.from_numpy(levels), torch.from_numpy(norms))
    plans, tables = _plans(*_numbers(payload), layout)
    for i, message in enumerate(messages):
        if not _canonical(message[least:], found[i], levels[i], plans[i], bool(tables[i]), layout):
            raise _refused(i)
    return payload


def _canonical(
    body: bytes, said: tuple[int, int] | None, row: NDArray[np.int32], plan: Ints, table: bool, layout: LevelsLayout
) -> bool:
    """Whether a body, which said its odds and shape (None: a table), is the encoding of a row with this plan.

    One that does not say what the row asks for is known without encoding the row, which takes as long as reading it.
    """
    if table:
        return said is None and body == _entropy(row, layout)
    return said == tuple(plan[:2].tolist()) and len(body) == plan[2] and body == _written(row, plan, layout)


def _refused(i: int) -> WireError:
    return WireError(f"message {i} is not the encoding of the row it holds; it was damaged or made by other code")


def _read(body: NDArray[np.uint8], row: NDArray[np.int32], layout: LevelsLayout) -> tuple[int, int] | None:
    """Fill a row of zeros: odds and shape, or None for the entropy code."""
    if not body.size:
        return 0, 0
    if body[0] == _TABLE_BYTE:
        symbols = ans.decode(body, _TABLE.size, layout.d, 2 * layout.levels + 1)
        np.subtract(symbols, np.int32(layout.levels), out=row)
        return None
    if not kernels.installed():
        return arithmetic.read(body.tobytes(), row, model.tables(layout))
    from fedsim.kernels import arithmetic as kernel

    odds, shape = kernel.read(body, _shares(layout), row)
    return odds, shape


def _plans(
    levels: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout
) -> tuple[Ints, NDArray[np.bool_]]:
    """Odds, shape and bytes of each row's body under the model, int64[n, 3], and whether the entropy code is taken,
    bool[n]. Raises WireError where a row does not fit its layout or its norms.
    """
    plans, tables = np.zeros((len(levels), 3), np.int64), np.zeros(len(levels), np.bool_)
    if kernels.installed():
        from fedsim.kernels import arithmetic as kernel

        if kernel.lengths(levels, norms, layout.levels, layout.bucket, _fixed(layout), _costs(layout), plans, tables):
            return plans, tables
    for i, (row, scales) in enumerate(zip(levels, norms, strict=True)):
        _check(row, scales, layout)
        if scales.any():
            counts, s = _counts(row, layout), layout.levels
            magnitudes = counts[s + 1 :] + counts[:s][::-1]
            found = arithmetic.plan(int(counts[s]), magnitudes, model.tables(layout))
            plans[i] = found.odds, found.shape, found.octets
            tables[i] = ans.least(counts) < 8 * found.octets - _fixed(layout)[2]
    return plans, tables


def _check(row: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout) -> None:
    top = max(int(row.max()), -int(row.min()))
    if top > layout.levels:
        raise WireError(f"level of magnitude {top}, expected at most {layout.levels}")
    if not norms.all() and row[np.repeat(norms == 0, layout.bucket)[: layout.d]].any():
        raise WireError("nonzero level in a bucket of norm zero; its norm cannot be zero")


def _written(row: NDArray[np.int32], plan: Ints, layout: LevelsLayout) -> bytes:
    found = Plan(*plan.tolist())
    if not found.octets:
        return b""
    if not kernels.installed():
        return arithmetic.write(row.tolist(), found, model.tables(layout))
    from fedsim.kernels import arithmetic as kernel

    out = np.empty(found.octets, np.uint8)
    kernel.write(row, found.odds, found.shape, _shares(layout), out)
    return out.tobytes()


def _fixed(layout: LevelsLayout) -> tuple[int, int, int]:
    return START, SHAPE_COST, _MARGIN + layout.levels // 2


def _shares(layout: LevelsLayout) -> tuple[Ints, Ints, Ints]:
    tables = model.tables(layout)
    return tables.heads, tables.zeros, tables.magnitudes


def _costs(layout: LevelsLayout) -> tuple[Ints, Ints, Ints, Ints]:
    tables = model.tables(layout)
    return tables.head_costs, tables.zero_costs, tables.nonzero_costs, tables.magnitude_costs


def _entropy(levels: NDArray[np.int32], layout: LevelsLayout) -> bytes:
    return ans.encode(levels, _counts(levels, layout), _TABLE, -layout.levels)


def _counts(levels: NDArray[np.int32], layout: LevelsLayout) -> Ints:
    return ans.counted(levels, -layout.levels, 2 * layout.levels + 1)


def _with_entropy(
    octets: Ints, tables: NDArray[np.bool_], row: Callable[[int], NDArray[np.int32]], layout: LevelsLayout
) -> Tensor:
    """Bits of messages of bodies whose bytes are known but for the entropy code."""
    for i in np.flatnonzero(tables).tolist():
        octets[i] = len(_entropy(row(i), layout))
    return torch.from_numpy(8 * (octets + 4 * layout.buckets))


def _numbers(payload: Levels) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    bounds(payload.layout)
    levels, norms, layout = payload.levels, payload.norms, payload.layout
    if levels.ndim != 2 or levels.shape[1] != layout.d or levels.dtype != torch.int32:
        raise WireError(f"levels are {levels.dtype}{list(levels.shape)}, expected torch.int32[n, {layout.d}]")
    if norms.shape != (len(levels), layout.buckets) or norms.dtype != torch.float32:
        shape = [len(levels), layout.buckets]
        raise WireError(f"norms are {norms.dtype}{list(norms.shape)}, expected torch.float32{shape}")
    return np.ascontiguousarray(levels.detach().cpu().numpy()), scales_of(norms)
