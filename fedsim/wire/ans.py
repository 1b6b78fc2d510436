"""Rows of symbols <-> bits by an entropy code: a table of how often each symbol occurs, then an ANS code of the row.

    table   lo | hi, the least and the largest symbol, in the fewest bits that hold base - 1 each; then for lo, ..., hi
            the bit length L of the symbol's count in unary (see ``bits``), in one plane; then, in another, the L // 2
            bits after the first of each count. A count of 0 has L = 0. The count is taken to be the middle of those
            that begin so: w = first 1 + L // 2 bits, then a one, then zeros.
    words   none if one symbol is all that occurs, else little-endian 32-bit words, those of the last symbols first, but
            for the zero bytes at the end

The symbols that occur, in ascending order, get frequencies f = 1 + floor(w (2^24 - m) / sum w), m of them; what lacks
to 2^24 goes to the (first) one of largest w; c is the sum of the f before. The code is stream ANS with a 64-bit state
x: from the last symbol to the first, if x >= 2^40 f, the low 32 bits of x become a word and x its high bits; then
x = floor(x / f) 2^24 + c + x mod f. x is 0 at first and its words, low ones first, are the last ones. All of
this is arithmetic of whole numbers, so that both ends build the same frequencies on any machine.

That is the code of the library constriction, which does it here (its quantization of probabilities is exact for those
given). Half the bits of a count are as many as are worth sending: an error of 2^(-L / 2) costs as much as they do.

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540, 2013; Bamler, "Understanding entropy coding with
asymmetric numeral systems", arXiv 2201.01741, 2022 (constriction).
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.errors import WireError
from fedsim.wire.bits import Bits, Ints, fields, fixed, log2, read_fields, read_fixed, unary

Symbols = NDArray[np.int32]

_TOTAL = 2**24
_LONGEST = 32
"""Bit length that no count exceeds."""
_BLOCK = 2**16
"""Symbols looked up at once: numpy does that by int64, which of a whole row would be twice its size."""
_FRACTION = 16
"""Bits after the point of a logarithm."""


def table(counts: Ints) -> Bits:
    """The table of symbols that occur counts[symbol] times, int64[base], at least one of them."""
    used = np.flatnonzero(counts)
    lo, hi = int(used[0]), int(used[-1])
    some = counts[lo : hi + 1]
    lengths = _bit_lengths(some)
    kept = lengths // 2
    tops = some >> np.maximum(lengths - 1 - kept, 0)
    ends = fixed(np.array([lo, hi]), int(counts.size - 1).bit_length())
    return np.concatenate([ends, unary(lengths), fields(tops - (np.sign(tops) << kept), kept)])


def estimate(counts: Ints) -> int:
    """Zero-order entropy of all symbols in bits, rounded down; the same on every machine."""
    some = counts[counts > 0]
    total = some.sum(keepdims=True)
    return int((some * (log2(total, _FRACTION) - log2(some, _FRACTION))).sum()) >> _FRACTION


def least(counts: Ints) -> int:
    """Bits of the table and estimate of those of the words."""
    if kernels.installed():
        from fedsim.kernels import entropy

        return entropy.bits(counts.copy(), 0, counts.size - 1)
    return table(counts).size + estimate(counts)


def encode(symbols: Symbols, counts: Ints, head: Bits, lowest: int = 0) -> bytes:
    """``head``, the table, zeros to a whole byte, words.

    symbols: int32[d], d >= 1, from ``lowest`` on; counts: of lowest, lowest + 1 ..., int64[base].
    """
    used = np.flatnonzero(counts)
    start: bytes = np.packbits(np.concatenate([head, table(counts)])).tobytes()
    if used.size == 1:
        return start
    ranks = np.zeros(counts.size, np.int32)
    ranks[used] = np.arange(used.size)
    coder = constriction.stream.stack.AnsCoder()
    model = _model(_middles(counts[used]))
    for first in reversed(range(0, symbols.size, _BLOCK)):
        coder.encode_reverse(ranks[symbols[first : first + _BLOCK] - lowest], model)
    words: NDArray[np.uint32] = coder.get_compressed()
    return start + words.astype("<u4").tobytes().rstrip(b"\0")


def decode(body: Bits, skip: int, d: int, base: int) -> Symbols:
    """Inverse of ``encode``: octets uint8[k] with a head of ``skip`` bits -> int32[d].

    Raises WireError where no symbols can be read; whether they are canonical is left to the caller.
    """
    width = int(base - 1).bit_length()
    longest = skip + 2 * width + base * (_LONGEST + 1 + _LONGEST // 2)
    bits = np.unpackbits(body[: longest // 8 + 1])[skip:]
    lo, hi = read_fixed(_first(bits, 2 * width), width).tolist()
    ends = np.flatnonzero(bits[2 * width :] == 0)[: hi - lo + 1]
    if not lo <= hi < base or ends.size <= hi - lo:
        raise _damaged()
    lengths = np.diff(ends, prepend=-1) - 1
    if lengths.max() > _LONGEST:
        raise _damaged()
    kept, at = lengths // 2, int(2 * width + ends[-1] + 1)
    stop = at + int(kept.sum())
    tops = (np.sign(lengths) << kept) | read_fields(_first(bits, stop)[at:], kept)
    counts = tops << np.maximum(lengths - 1 - kept, 0)
    used, octets = np.flatnonzero(counts), body[(skip + stop + 7) // 8 :]
    if not used.size or (octets.size and not octets[-1]):
        raise _damaged()
    symbols = (used + lo).astype(np.int32)
    if used.size == 1:
        return np.repeat(symbols, d)
    words = np.pad(octets, (0, -octets.size % 4)).view("<u4")
    coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32))
    model, found = _model(_middles(counts[used])), np.empty(d, np.int32)
    for first in range(0, d, _BLOCK):
        found[first : first + _BLOCK] = symbols[coder.decode(model, min(_BLOCK, d - first))]
    return found


def counted(symbols: Symbols, lowest: int, base: int) -> Ints:
    """How often each of lowest, lowest + 1 ... occurs, int64[base]."""
    counts = np.zeros(base, np.int64)
    for start in range(0, symbols.size, _BLOCK):
        counts += np.bincount(symbols[start : start + _BLOCK] - lowest, minlength=base)
    return counts


def _middles(counts: Ints) -> Ints:
    """w of counts >= 1 or of any numbers that begin as they do."""
    lengths = _bit_lengths(counts)
    below = lengths - 1 - lengths // 2
    return (counts >> below << below) + (1 << below >> 1)


def frequencies(weights: Ints) -> Ints:
    """f of each w, int64[m]."""
    found: Ints = 1 + weights * (_TOTAL - weights.size) // weights.sum()
    found[np.argmax(weights)] += _TOTAL - found.sum()
    return found


def _model(weights: Ints) -> Any:
    # constriction adds 1 to each of m symbols and scales what it is given to 2^24 - m, which it is already
    return constriction.stream.model.Categorical((frequencies(weights) - 1).astype(np.float64), perfect=False)


def _bit_lengths(numbers: Ints) -> Ints:
    # frexp's exponent is the bit length of a whole number below 2^53, and 0 for 0
    return np.frexp(numbers)[1].astype(np.int64)


def _first(bits: Bits, count: int) -> Bits:
    if bits.size < count:
        raise _damaged()
    return bits[:count]


def _damaged() -> WireError:
    return WireError("body is no entropy code: its table or its words are cut or damaged")
