"""Rows of levels <-> bytes; see ``coding`` for the calls.

  norms  one little-endian float32 for each bucket: finite, >= 0, not -0.0.
  body   nothing if every norm is zero. Else a string of bits, most significant bit of a byte first, that starts with a
         4-bit code and is padded to whole bytes.

  code 15, dense    code | level + s of each coordinate as digits of base 2 s + 1, grouped (see ``bits``) | zeros
  code 15, entropy  code | a table of the counts of level + s, zeros to a whole byte, words (see ``ans``); always
                    shorter than the dense body, so that its length tells which one it is
  code b < 15, sparse (Golomb-Rice with b remainder bits, split into two planes)
                    code | w, in 4 bits, only if s > 1 | fixed plane | unary plane | ones
    gap             zeros between a nonzero level and the nonzero before it (or the start of the row)
    w               bit length of max |level| - 1 over the row, 0 without nonzeros; where s = 1 it is 0 and not sent
    fixed plane     for each nonzero, in order: sign (1: negative), |level| - 1 in w bits, gap mod 2^b in b bits
    unary plane     for each nonzero, in order: floor(gap / 2^b) ones and a zero

The number k of nonzeros is not sent. Let f(k) = (zeros among the bits from k (1 + w + b) after the header on) - k. The
first term never grows with k, so f falls strictly and has at most one root; the true k is one, because the unary plane
holds k zeros and its padding none.

Of sparse and dense the code is the one with the fewest bits before padding, the smaller code on a tie. The entropy code
is tried where its 4 bits, its table and the zero-order entropy (``ans.estimate``) are fewer, and taken where its bytes
are: heavy tails, and rows in which most levels are not zero. A level in a bucket of norm zero is
zero. The sparse length of k nonzeros is 4 (+ 4 if s > 1) + k (2 + w + b) + sum floor(gap / 2^b). One more remainder bit
adds k - sum ceil(floor(gap / 2^b) / 2), which never falls as b grows: the length is convex in b, so the best b is the
first one that the next does not beat.

Source: Rice, "Some practical universal noiseless coding techniques", JPL 79-22, 1979; the planes are this format's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import kernels
from fedsim.compression.payload import Levels, LevelsLayout, Sparse
from fedsim.errors import WireError
from fedsim.wire import ans
from fedsim.wire.bits import (
    Bits,
    Ints,
    fixed,
    group,
    group_width,
    grouped,
    grouped_length,
    read_fixed,
    read_grouped,
    read_unary,
    unary,
)
from fedsim.wire.values import matrix, scales_of

MAX_LEVELS = 2**15
"""Largest s of a layout: |level| - 1 then fits the 15 bits that the 4-bit w can announce."""

_DENSE = 15
_DENSE_BITS = np.ones(4, np.uint8)
_BLOCK = 2**22
"""Coordinates planned at once, so that the working memory does not grow with the cohort."""


@cache
def bounds(layout: LevelsLayout) -> tuple[int, int]:
    """Bytes of the shortest and of the longest message (a dense row). Raises WireError if it has no format."""
    if layout.d < 1 or layout.bucket < 1 or not 1 <= layout.levels <= MAX_LEVELS:
        raise WireError(f"{layout} has no wire format; use d >= 1, bucket >= 1 and levels from 1 to {MAX_LEVELS}")
    return 4 * layout.buckets, 4 * layout.buckets + _dense_bytes(layout)


def size(payload: Levels) -> Tensor:
    """Bits of each row's message, int64[n]. Only a row for which the entropy code is tried is encoded."""
    layout = payload.layout
    if kernels.available(payload.levels):
        _check_shapes(payload)
        parts = [np.ascontiguousarray(part.detach().numpy()) for part in (payload.levels, payload.norms)]
        if (found := _compiled_bytes(parts[0], parts[1], layout)) is not None:
            octets, tried = found
            return _with_entropy(octets, tried, lambda i: parts[0][i], layout)
    levels, norms = _levels(payload)
    octets, tried = np.full(len(levels), 4 * layout.buckets), np.zeros(len(levels), bool)
    for block in _blocks(levels):
        bits = _plan(levels[block], norms[block], layout).bits
        octets[block] += (bits + 7) // 8
        tried[block] = [_tried(*each, layout) for each in zip(levels[block], bits.tolist(), strict=True)]
    return _with_entropy(octets, tried, lambda i: levels[i], layout)


def encode(payload: Levels) -> list[bytes]:
    """One message a row."""
    levels, norms = _levels(payload)
    heads = norms.astype("<f4")
    if kernels.installed():
        bodies = _compiled_bodies(levels, norms, payload.layout)
    else:
        blocks = _blocks(levels)
        bodies = [body for block in blocks for body in _bodies(levels[block], norms[block], payload.layout)]
    return [head.tobytes() + body for head, body in zip(heads, bodies, strict=True)]


def decode(messages: Sequence[bytes], layout: LevelsLayout) -> Levels:
    """Messages whose lengths are within ``bounds``; whether they are canonical is left to the caller."""
    least, _ = bounds(layout)
    levels = np.zeros((len(messages), layout.d), np.int32)
    for i, message in enumerate(messages):
        if len(message) > least:
            body = np.frombuffer(message, np.uint8, offset=least)
            if body[0] >> 4 == _DENSE and body.size < _dense_bytes(layout):
                symbols = ans.decode(body, 4, layout.d, 2 * layout.levels + 1)
                np.subtract(symbols, np.int32(layout.levels), out=levels[i])
            elif kernels.installed():
                _compiled_read(body, levels[i], layout)
            else:
                _read_body(np.unpackbits(body), levels[i], layout)
    norms = matrix([message[:least] for message in messages], np.dtype("<f4"), layout.buckets)
    return Levels(layout, torch.from_numpy(levels), torch.from_numpy(norms))


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a block of n rows with K nonzeros in all is written; row i owns the nonzeros starts[i]:starts[i + 1]."""

    starts: Ints  # [n + 1]
    nonzeros: Ints  # [K], their levels
    gaps: Ints  # [K]
    codes: Ints  # [n]
    widths: Ints  # [n], w
    bits: Ints  # [n], of the body before padding; 0 where every norm is zero


def _plan(levels: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout) -> _Plan:
    n, d = levels.shape
    index = np.flatnonzero(levels != 0)
    nonzeros = levels.reshape(-1)[index].astype(np.int64)
    magnitudes = np.abs(nonzeros)
    _check_nonzeros(index, magnitudes, norms, layout)
    starts = np.searchsorted(index, np.arange(n + 1) * d)
    counts = np.diff(starts)
    filled = np.flatnonzero(counts)
    firsts = starts[filled]
    gaps = np.diff(index, prepend=-1) - 1
    gaps[firsts] = index[firsts] % d
    widths = np.zeros(n, np.int64)
    widths[filled] = _bit_lengths(np.maximum.reduceat(magnitudes, firsts) - 1)

    codes, quotients = _rice(gaps, counts, filled, firsts)
    sparse = _header_bits(layout) + counts * (2 + widths + codes) + quotients
    dense = _dense_bits(layout)
    codes[sparse > dense] = _DENSE
    return _Plan(starts, nonzeros, gaps, codes, widths, np.where(norms.any(axis=1), np.minimum(sparse, dense), 0))


def _rice(gaps: Ints, counts: Ints, filled: Ints, firsts: Ints) -> tuple[Ints, Ints]:
    """Best remainder bits b of each row, int64[n], and its sum of floor(gap / 2^b), int64[n]."""
    codes, sums = np.zeros_like(counts), np.zeros_like(counts)
    sums[filled] = np.add.reduceat(gaps, firsts)
    for b in range(1, _DENSE):
        gaps, shorter = gaps >> 1, np.zeros_like(counts)
        shorter[filled] = np.add.reduceat(gaps, firsts)
        better = (codes == b - 1) & (sums - shorter > counts)
        if not better.any():
            break
        codes[better], sums[better] = b, shorter[better]
    return codes, sums


def _bodies(levels: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout) -> Iterator[bytes]:
    plan = _plan(levels, norms, layout)
    for i, (start, stop) in enumerate(pairwise(plan.starts.tolist())):
        bits = int(plan.bits[i])
        body = _planned(plan, i, slice(start, stop), levels[i], layout) if bits else b""
        yield min(body, _entropy(levels[i], layout), key=len) if _tried(levels[i], bits, layout) else body


def _planned(plan: _Plan, i: int, own: slice, levels: NDArray[np.int32], layout: LevelsLayout) -> bytes:
    code, width = int(plan.codes[i]), int(plan.widths[i])
    if code == _DENSE:
        digits = grouped(levels.astype(np.int64) + layout.levels, 2 * layout.levels + 1)
        return np.packbits(np.concatenate([_DENSE_BITS, digits])).tobytes()
    nonzeros, gaps = plan.nonzeros[own], plan.gaps[own]
    header = fixed(np.array([code, width][: _header_bits(layout) // 4]), 4)
    signs = (nonzeros < 0).astype(np.int64)
    fields = (signs << width | np.abs(nonzeros) - 1) << code | gaps & ((1 << code) - 1)
    padding = np.ones(-plan.bits[i] % 8, np.uint8)
    planes = fixed(fields, 1 + width + code), unary(gaps >> code)
    return np.packbits(np.concatenate([header, *planes, padding])).tobytes()


def _tried(levels: NDArray[np.int32], bits: int, layout: LevelsLayout) -> bool:
    """Whether the entropy code is tried against a body of so many bits."""
    if not bits:
        return False
    counts = _counts(levels, layout)
    return _DENSE_BITS.size + ans.least(counts) < bits


def _entropy(levels: NDArray[np.int32], layout: LevelsLayout) -> bytes:
    return ans.encode(levels, _counts(levels, layout), _DENSE_BITS, -layout.levels)


def _counts(levels: NDArray[np.int32], layout: LevelsLayout) -> Ints:
    return ans.counted(levels, -layout.levels, 2 * layout.levels + 1)


def _with_entropy(
    octets: Ints, tried: NDArray[np.bool_], row: Callable[[int], NDArray[np.int32]], layout: LevelsLayout
) -> Tensor:
    """Bits of messages whose bytes are known but for the entropy code."""
    for i in np.flatnonzero(tried).tolist():
        octets[i] = min(octets[i], 4 * layout.buckets + len(_entropy(row(i), layout)))
    return torch.from_numpy(8 * octets)


def _read_body(bits: Bits, levels: NDArray[np.int32], layout: LevelsLayout) -> None:
    """Fill a zero row from its body; whatever is not canonical is left to the comparison in ``decode``."""
    code, width = read_fixed(bits[:8], 4).tolist()
    if code == _DENSE:
        base = 2 * layout.levels + 1
        levels[:] = read_grouped(bits[4 : 4 + grouped_length(layout.d, base)], layout.d, base) - layout.levels
        return
    if layout.levels == 1:
        width = 0
    bits = bits[_header_bits(layout) :]
    field = 1 + width + code
    zeros = np.concatenate([[0], np.cumsum(bits == 0)])
    excess = np.arange(bits.size // field + 1) - (zeros[-1] - zeros[::field])  # -f of k = 0, 1, ...
    k = int(np.searchsorted(excess, 0))
    if k == excess.size or excess[k] != 0:
        raise _not_whole(bits.size)
    fields, quotients = read_fixed(bits[: k * field], field), read_unary(bits[k * field :])
    index = np.cumsum((quotients << code | fields & ((1 << code) - 1)) + 1) - 1
    if k and index[-1] >= layout.d:
        raise _beyond(index[np.searchsorted(index, layout.d)], layout)
    magnitudes = (fields >> code & ((1 << width) - 1)) + 1
    levels[index] = np.where(fields >> (width + code), -magnitudes, magnitudes)


def _check_nonzeros(index: Ints, magnitudes: Ints, norms: NDArray[np.float32], layout: LevelsLayout) -> None:
    if index.size and magnitudes.max() > layout.levels:
        raise _too_large(magnitudes.max(), layout)
    if not norms.all() and not norms[index // layout.d, index % layout.d // layout.bucket].all():
        raise _stray()


def _not_whole(bits: int) -> WireError:
    return WireError(f"body of {bits} bits does not hold a whole number of nonzero levels; it was cut or damaged")


def _beyond(place: int, layout: LevelsLayout) -> WireError:
    return WireError(f"nonzero level at coordinate {place}, expected below {layout.d}")


def _too_large(magnitude: int, layout: LevelsLayout) -> WireError:
    return WireError(f"level of magnitude {magnitude}, expected at most {layout.levels}")


def _stray() -> WireError:
    return WireError("nonzero level in a bucket of norm zero; its norm cannot be zero")


def _compiled_bytes(
    levels: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout
) -> tuple[Ints, NDArray[np.bool_]] | None:
    """See ``rice.message_bytes``; None where that has something to refuse."""
    from fedsim.kernels import rice

    octets, tried = np.empty(len(levels), np.int64), np.empty(len(levels), np.bool_)
    sizes = _header_bits(layout), _dense_bits(layout)
    return (
        (octets, tried)
        if rice.message_bytes(levels, norms, layout.levels, layout.bucket, *sizes, octets, tried)
        else None
    )


def _compiled_bodies(levels: NDArray[np.int32], norms: NDArray[np.float32], layout: LevelsLayout) -> list[bytes]:
    """As ``_bodies``."""
    from fedsim.kernels import code, rice

    found = _compiled_bytes(levels, norms, layout)
    if found is None:
        top = rice.largest(levels.reshape(-1))
        raise _too_large(top, layout) if top > layout.levels else _stray()
    gaps, out = np.empty(layout.d, np.int32), np.empty(_dense_bytes(layout), np.uint8)
    sizes = _header_bits(layout), _dense_bits(layout), _group_sizes(layout)
    bodies = []
    for row, scales, octets, tried in zip(levels, norms, *(part.tolist() for part in found), strict=True):
        entropy = _entropy(row, layout) if tried else None
        if entropy is not None and 4 * layout.buckets + len(entropy) < octets:
            bodies.append(entropy)
        else:
            bodies.append(out[: code.write(row, scales, layout.levels, *sizes, gaps, out)].tobytes())
    return bodies


def _compiled_read(body: Bits, levels: NDArray[np.int32], layout: LevelsLayout) -> None:
    """As ``_read_body``, of bytes. That one needs some 20 bytes a bit, so it is no help to find what is wrong."""
    from fedsim.kernels import code

    sizes = _header_bits(layout), _dense_bits(layout), _group_sizes(layout)
    found = code.read(body, layout.levels, *sizes, levels)
    if found == code.NOT_WHOLE:
        raise _not_whole(8 * len(body) - _header_bits(layout))
    if found != code.READ:
        raise _beyond(found, layout)


@cache
def _group_sizes(layout: LevelsLayout) -> tuple[int, int, int]:
    """Digits in a group of a dense body, its bits, bits of the last group."""
    base = 2 * layout.levels + 1
    size = group(base)
    return size, group_width(size, base), group_width(layout.d % size, base)


def sparse_size(payload: Sparse) -> Tensor:
    """As ``size``, of rows that a compressor made."""
    from fedsim.kernels import rice

    layout = payload.layout
    bounds(layout)
    octets, tried = np.empty(len(payload.norms), np.int64), np.empty(len(payload.norms), np.bool_)
    starts, places, levels, norms = (
        part.numpy() for part in (payload.starts, payload.places, payload.levels, payload.norms)
    )
    sizes = _header_bits(layout), _dense_bits(layout)
    rice.sparse_bytes(starts, places, levels, norms, layout.levels, layout.d, *sizes, octets, tried)

    def row(i: int) -> NDArray[np.int32]:
        own, whole = slice(starts[i], starts[i + 1]), np.zeros(layout.d, np.int32)
        whole[places[own]] = levels[own]
        return whole

    return _with_entropy(octets, tried, row, layout)


def _check_shapes(payload: Levels) -> None:
    bounds(payload.layout)
    levels, norms, layout = payload.levels, payload.norms, payload.layout
    if levels.ndim != 2 or levels.shape[1] != layout.d or levels.dtype != torch.int32:
        raise WireError(f"levels are {levels.dtype}{list(levels.shape)}, expected torch.int32[n, {layout.d}]")
    if norms.shape != (len(levels), layout.buckets) or norms.dtype != torch.float32:
        shape = [len(levels), layout.buckets]
        raise WireError(f"norms are {norms.dtype}{list(norms.shape)}, expected torch.float32{shape}")


def _levels(payload: Levels) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    _check_shapes(payload)
    levels, norms = payload.levels, payload.norms
    numbers = scales_of(norms)
    return np.ascontiguousarray(levels.detach().cpu().numpy()), numbers


def _blocks(levels: NDArray[np.int32]) -> Iterator[slice]:
    n, d = levels.shape
    step = max(1, _BLOCK // d)
    return (slice(start, start + step) for start in range(0, n, step))


def _bit_lengths(numbers: Ints) -> Ints:
    # frexp's exponent is the bit length of a whole number below 2^53, and 0 for 0
    return np.frexp(numbers)[1].astype(np.int64)


def _header_bits(layout: LevelsLayout) -> int:
    return 8 if layout.levels > 1 else 4


@cache
def _dense_bits(layout: LevelsLayout) -> int:
    return 4 + grouped_length(layout.d, 2 * layout.levels + 1)


def _dense_bytes(layout: LevelsLayout) -> int:
    return (_dense_bits(layout) + 7) // 8
