"""s-quantization into levels without their zeros, and weighted sums of that, bit for bit as the dense forms.

Of a long row with few levels hardly any level is not zero: about s sqrt(d) of d in the 2-norm. So each row is read
once, with its memory; only what is not zero is divided, written, learnt and summed. ``fedsim.kernels.quantize`` is the
dense form, and says what a level is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels import philox
from fedsim.kernels.average import _halve
from fedsim.kernels.compile import compiled
from fedsim.kernels.quantize import Counts, Norms, Rows, _norms

Ints = NDArray[np.int64]
Levels = NDArray[np.int32]
Flags = NDArray[np.uint8]

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""All 64 six-bit words follow in its bits, so that its product with 2^i begins with a word that tells i."""

_PLACES = np.zeros(64, np.uint8)
_PLACES[[(int(_DE_BRUIJN) << i) % 2**64 >> 58 for i in range(64)]] = np.arange(64)
_SCRATCH = 2**13
"""Numbers of a portion of columns, all clients folded once: they stay in the first-level cache."""


@compiled
def _difference(row: Rows, memory: Rows, bits: Counts, out: Rows) -> bool:
    """out = row - memory. Whether the memory has a zero with a minus sign. bits: the memory as whole numbers."""
    least, found = np.iinfo(bits.dtype).min, False
    for j in range(len(row)):
        out[j] = row[j] - memory[j]
        found |= bits[j] == least
    return found


@compiled
def _suspects(piece: Rows, norm: np.floating[Any], words: NDArray[np.uint32], bound: Any, flags: Flags) -> None:
    """Where a level may be other than zero: u norm <= bound |x|, without a division.

    u < s |x| / norm, as it is rounded, implies this for every bound of at least s (1 + 2^-20): rounding is monotonic.
    """
    kind = piece.dtype.type
    shift, unit = (np.uint32(8), kind(2.0**-24)) if piece.itemsize == 4 else (np.uint32(0), kind(2.0**-32))
    for i in range(len(piece)):
        flags[i] = kind(np.uint32(words[i] >> shift)) * unit * norm <= abs(piece[i]) * bound


@compiled
def quantize(
    rows: Rows,
    memory: Rows,
    signs: Counts,
    clients: Ints,
    work: Rows,
    bits: Counts,
    key: np.uint64,
    round: np.uint32,
    tag: np.uint32,
    s: np.floating[Any],
    alpha: np.floating[Any],
    bucket: int,
    linf: bool,
    room: int,
    starts: Ints,
    norms: Norms,
) -> tuple[bool, NDArray[np.int32], Levels]:
    """Quantize rows - memory[clients], and step those memories where they lie: (finite, places, levels).

    rows: float[n, d]; memory: float[N, d]; clients: int64[n], all different. work: scratch float[d]. signs, bits:
    memory, work as whole numbers of their size. room: nonzeros to make room for at first. Written: starts int64[n + 1],
    norms[n, buckets]. The nonzeros of row i are starts[i]:starts[i + 1] of what is returned. When a norm is not finite,
    memories of earlier rows have been stepped already.
    """
    n, d = rows.shape
    kind, count = rows.dtype.type, 0
    places, levels = np.empty(room, np.int32), np.empty(room, np.int32)
    scratch, peak = np.empty(bucket // 2 + 1, np.float64), np.empty(1, rows.dtype)
    words, flags = np.empty(philox.PORTION, np.uint32), np.zeros(philox.PORTION, np.uint8)
    eights = flags.view(np.uint64)
    bound, one = kind(s * (1 + 2.0**-20)), np.uint64(1)
    shift, unit = (np.uint32(8), kind(2.0**-24)) if rows.itemsize == 4 else (np.uint32(0), kind(2.0**-32))
    starts[0] = 0
    for i in range(n):
        client = clients[i]
        negative = _difference(rows[i], memory[client], signs[client], work)
        if not _norms(work, bits, bucket, linf, peak, scratch, norms[i]):
            return False, places, levels
        for start in range(0, d, philox.PORTION):
            stop = min(d, start + philox.PORTION)
            philox.fill(words[: -((start - stop) // 4) * 4], key, np.uint32(client), round, tag, start // 4)
            first = start
            while first < stop:
                k = first // bucket
                last = min(stop, (k + 1) * bucket)
                norm = kind(norms[i, k] if norms[i, k] > 0 else np.float32(1))
                some = slice(first - start, last - start)
                _suspects(work[first:last], norm, words[some], bound, flags[some])
                first = last
            flags[stop - start :] = 0
            if count + philox.PORTION > len(places):
                size = 2 * len(places) + philox.PORTION
                more, further = np.empty(size, np.int32), np.empty(size, np.int32)
                more[:count], further[:count] = places[:count], levels[:count]
                places, levels = more, further
            for eight in range(len(eights)):
                flagged = eights[eight]
                while flagged:
                    j = 8 * eight + int(_PLACES[((flagged & (~flagged + one)) * _DE_BRUIJN) >> np.uint64(58)] >> 3)
                    flagged &= flagged - one
                    at = start + j
                    norm = kind(norms[i, 0 if len(norms[i]) == 1 else at // bucket])
                    norm = norm if norm > 0 else kind(1)
                    scaled = abs(work[at]) / norm * s
                    low = np.int32(scaled)
                    level = low + np.int32(kind(np.uint32(words[j] >> shift)) * unit < scaled - kind(low))
                    level = np.int32(-level if work[at] < 0 else level)
                    # without a branch: what is zero is overwritten
                    places[count], levels[count] = at, level
                    if level != 0:
                        memory[client, at] += alpha * (norm * (kind(level) / s))
                        count += 1
        starts[i + 1] = count
        if negative:  # -0.0 + 0.0 is 0.0
            following = starts[i]
            for j in range(d):
                if following < count and places[following] == j:
                    following += 1
                else:
                    memory[client, j] += kind(0)
    return True, places[:count], levels[:count]


@compiled
def weighted_sums(
    starts: Ints,
    places: NDArray[np.int32],
    levels: Levels,
    norms: Norms,
    bucket: int,
    s: np.floating[Any],
    weights: Rows,
    out: Rows,
) -> None:
    """As ``average.weighted_sums`` of the rows with their zeros, for weights that are not negative.

    starts: int64[n + 1], n >= 1; places, levels: int32[starts[n]]; norms: float32[n, buckets]; weights: float[m, n];
    out: float[m, d].
    """
    (sums, d), n, kind = out.shape, len(norms), out.dtype.type
    half = max(n // 2, 1)
    width = min(d, max(16, _SCRATCH // (half * sums)))
    folded, following = np.empty((sums, half, width), out.dtype), starts[:n].copy()
    for start in range(0, d, width):
        stop = min(d, start + width)
        folded[:] = 0
        for i in range(n):
            k, row = following[i], i % half if i < 2 * half else 0
            while k < starts[i + 1] and places[k] < stop:
                place = places[k]
                value = kind(norms[i, place // bucket]) * (kind(levels[k]) / s)
                for m in range(sums):
                    if i < half:
                        folded[m, row, place - start] = weights[m, i] * value
                    else:
                        folded[m, row, place - start] += weights[m, i] * value
                k += 1
            following[i] = k
        for m in range(sums):
            _halve(folded[m], out[m, start:stop])
