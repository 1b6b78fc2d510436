"""Damaged copies of valid inputs, many at once: cut, repeated, spliced, or set to a number at the edge of a type.

Compiled, so that a million of them take a second or two; the same seed gives the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

EDGES = np.array(
    [
        *(0, 1, 2, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24),
        *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, -(2**63), -1, -2, -128, 0x7F800000, 0x7FC00000),
    ],
    np.int64,
)


@njit(cache=True)
def _next(state: NDArray[np.uint64]) -> np.uint64:
    """SplitMix64."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def _below(state: NDArray[np.uint64], n: int) -> int:
    return np.int64(_next(state) >> np.uint64(1)) % n


@njit(cache=True)
def _hole(row: Bytes, length: int, at: int, size: int) -> int:
    """Make room for ``size`` bytes; returns the new length."""
    size = min(size, len(row) - length)
    for i in range(length - 1, at - 1, -1):
        row[i + size] = row[i]
    return length + size


@njit(cache=True)
def _damage(
    row: Bytes, length: int, other: Bytes, words: Bytes, word_starts: Ints, edges: Ints, state: NDArray[np.uint64]
) -> int:
    """One change; returns the new length."""
    kind = _below(state, 12)
    if length == 0 and kind not in (6, 7, 10):
        kind = 7
    at = _below(state, length) if length else 0
    if kind == 0:
        row[at] ^= 1 << _below(state, 8)
    elif kind == 1:
        row[at] = _below(state, 256)
    elif kind == 2:
        row[at] = (row[at] + _below(state, 33) - 16) & 255
    elif kind == 3 or kind == 4:
        size, number, big = 1 << _below(state, 4), edges[_below(state, len(edges))], kind == 4
        for i in range(min(size, length - at)):
            row[at + i] = (number >> 8 * (size - 1 - i if big else i)) & 255
    elif kind == 5:
        size = min(1 + _below(state, 1 << _below(state, 7)), length - at)
        for i in range(at, length - size):
            row[i] = row[i + size]
        length -= size
    elif kind == 6:
        if len(other):
            start = _below(state, len(other))
            size = min(1 + _below(state, 1 << _below(state, 7)), len(other) - start)
            longer = _hole(row, length, at, size)
            for i in range(longer - length):
                row[at + i] = other[start + i]
            length = longer
    elif kind == 7:
        fill, noise = _below(state, 256), _below(state, 2)
        longer = _hole(row, length, at, 1 + _below(state, 1 << _below(state, 7)))
        for i in range(longer - length):
            row[at + i] = _below(state, 256) if noise else fill
        length = longer
    elif kind == 8:
        length = at
    elif kind == 9:
        if len(other):
            start = min(at, len(other))
            size = min(len(other) - start, len(row) - at)
            row[at : at + size] = other[start : start + size]
            length = at + size
    elif kind == 10:
        if len(word_starts) > 1:
            k = _below(state, len(word_starts) - 1)
            word = words[word_starts[k] : word_starts[k + 1]]
            if _below(state, 2) and length:
                size = min(len(word), length - at)
                row[at : at + size] = word[:size]
            else:
                longer = _hole(row, length, at, len(word))
                row[at : at + longer - length] = word[: longer - length]
                length = longer
    else:
        start, size = _below(state, length), 1 + _below(state, 1 << _below(state, 6))
        size = min(size, length - start, length - at)
        for i in range(size):
            row[at + i] = row[start + i]
    return length


@njit(cache=True)
def _fill(
    corpus: Bytes, starts: Ints, words: Bytes, word_starts: Ints, edges: Ints, seed: int, out: Bytes, lengths: Ints
) -> None:
    """Each row of ``out``: uint8[count, most] becomes one input of lengths[i] bytes."""
    state = np.array([seed], np.uint64)
    inputs = len(starts) - 1
    for i in range(len(lengths)):
        row, k, j = out[i], _below(state, inputs), _below(state, inputs)
        length = min(starts[k + 1] - starts[k], len(row))
        row[:length] = corpus[starts[k] : starts[k] + length]
        other = corpus[starts[j] : starts[j + 1]]
        for _ in range(1 + _below(state, 1 << _below(state, 4))):
            length = _damage(row, length, other, words, word_starts, edges, state)
        lengths[i] = length


def flat(parts: Sequence[bytes]) -> tuple[Bytes, Ints]:
    """Parts one after another, and where each begins: uint8[total], int64[len(parts) + 1]."""
    starts = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), starts


def mutants(corpus: Sequence[bytes], words: Sequence[bytes], seed: int, count: int, most: int) -> tuple[Bytes, Ints]:
    """``count`` damaged inputs of at most ``most`` bytes: uint8[count, most] and their lengths, int64[count]."""
    out, lengths = np.empty((count, most), np.uint8), np.empty(count, np.int64)
    _fill(*flat(corpus), *flat(words), EDGES, seed, out, lengths)
    return out, lengths


def each(rows: Bytes, lengths: Ints) -> Iterator[bytes]:
    """The inputs, one by one."""
    most, octets = rows.shape[1], rows.tobytes()
    for i, length in enumerate(lengths.tolist()):
        yield octets[i * most : i * most + length]
