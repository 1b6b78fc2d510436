"""Places of k of d coordinates <-> bytes, before the message of what was kept there; see ``coding`` for the calls.

Nothing if k = d. Else a string of bits, most significant bit of a byte first, that starts with a 5-bit code and is
padded with zeros to whole bytes. A gap are the places left out before one: since the place before it, or the start.

  code b < 30, Golomb-Rice with b remainder bits, in two planes
                    code | gap mod 2^b of each place, in b bits | floor(gap / 2^b) ones and a zero, of each place
  code 30, fixed    code | each place in ceil(log2 d) bits, in ascending order

With b = 0 that is a bitmap, a one for each place left out, as far as the last place: no bitmap of the row is shorter.
The code is the one with the fewest bits before padding, the smaller code on a tie. Of all places the last k have the
longest code: no set has a larger sum of floor(gap / 2^b), for any b, than the one gap of d - k, and the length of code
30 does not depend on the places. The first k have the shortest, k + 5 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fedsim.compression.chosen import Placed, PlacedLayout
from fedsim.errors import WireError
from fedsim.wire.bits import Bits, Ints, fixed, read_fixed, read_unary, unary
from fedsim.wire.kept import Head

_HEADER, _FIXED = 5, 30


@cache
def bounds(layout: PlacedLayout) -> tuple[int, int]:
    """Bytes of the shortest and longest head. Raises WireError if it has no format."""
    d, k = layout.d, layout.k
    if not 1 <= k <= d < 2**31 or layout.kept.d != k:
        raise WireError(f"{layout} has no wire format; use 1 <= k <= d < 2^31 and k coordinates in what is kept")
    if k == d:
        return 0, 0
    _, bits = _plan(np.arange(d - k, d)[None], layout)
    return (_HEADER + k + 7) // 8, (int(bits[0]) + 7) // 8


def size(payload: Placed) -> Tensor:
    """Bits of each head, int64[n]."""
    places = _places(payload)
    if payload.layout.k == payload.layout.d:
        return torch.zeros(len(places), dtype=torch.int64)
    return torch.from_numpy((_plan(places, payload.layout)[1] + 7) // 8 * 8)


def encode(payload: Placed) -> list[bytes]:
    """One head a row."""
    return _heads(_places(payload), payload.layout)


def _heads(places: Ints, layout: PlacedLayout) -> list[bytes]:
    if layout.k == layout.d:
        return [b""] * len(places)
    codes, _ = _plan(places, layout)
    heads = []
    for row, code in zip(places, codes.tolist(), strict=True):
        header = fixed(np.array([code]), _HEADER)
        heads.append(np.packbits(np.concatenate([header, _body(row, code, layout)])).tobytes())
    return heads


def _plan(places: Ints, layout: PlacedLayout) -> tuple[Ints, Ints]:
    """Code and bits before padding of each row: int64[n, k] -> int64[n] twice."""
    d, k = layout.d, layout.k
    gaps, lengths = np.diff(places, prepend=-1, axis=1) - 1, []
    for b in range(_FIXED):
        lengths.append(k * (1 + b) + gaps.sum(axis=1))
        if b and (lengths[-2] <= lengths[-1]).all():  # convex in b, as ``levels`` says
            break
        gaps >>= 1
    codes = np.array([*range(len(lengths)), _FIXED])
    lengths.append(np.full(len(places), k * _width(d)))
    best = np.argmin(lengths, axis=0)
    return codes[best], _HEADER + np.min(lengths, axis=0)


def _body(places: Ints, code: int, layout: PlacedLayout) -> Bits:
    if code == _FIXED:
        return fixed(places, _width(layout.d))
    gaps = np.diff(places, prepend=-1) - 1
    return np.concatenate([fixed(gaps & ((1 << code) - 1), code), unary(gaps >> code)])


def decode(messages: Sequence[bytes], layout: PlacedLayout) -> tuple[dict[str, Tensor], list[int]]:
    """Messages that start with a head and have as many bytes as the shortest one -> places, bytes of each head."""
    places = np.empty((len(messages), layout.k), np.int64)
    if layout.k == layout.d:
        places[:] = np.arange(layout.d)
        return {"places": torch.from_numpy(places.astype(np.int32))}, [0] * len(messages)
    most = bounds(layout)[1]
    for i, message in enumerate(messages):
        bits = np.unpackbits(np.frombuffer(message[:most], np.uint8))
        places[i] = _read(bits[_HEADER:], int(read_fixed(bits[:_HEADER], _HEADER)[0]), layout)
    heads = _heads(places, layout)
    for i, (message, head) in enumerate(zip(messages, heads, strict=True)):
        if not message.startswith(head):
            raise WireError(f"message {i} does not start with the encoding of its places; it was damaged")
    return {"places": torch.from_numpy(places.astype(np.int32))}, [len(head) for head in heads]


def _read(bits: Bits, code: int, layout: PlacedLayout) -> Ints:
    """Places of one row, ascending and in range; that no other code is shorter is left to the caller."""
    d, k = layout.d, layout.k
    if code > _FIXED:
        raise WireError(f"places in code {code}, expected 0 to {_FIXED}; it was damaged")
    if code == _FIXED:
        width = _width(d)
        places = read_fixed(bits[: min(k, bits.size // width) * width], width)
    else:
        plane = bits[: min(k, bits.size // max(code, 1)) * code]
        remainders = read_fixed(plane, code) if code else np.zeros(k, np.int64)
        quotients = read_unary(bits[plane.size :])[: remainders.size]
        places = np.cumsum((quotients << code | remainders[: quotients.size]) + 1) - 1
    if places.size != k or places[-1] >= d or (np.diff(places) <= 0).any():
        raise WireError(f"a message does not tell {k} places below {d} in ascending order; it was cut or damaged")
    return places


def _places(payload: Placed) -> Ints:
    bounds(payload.layout)
    places, layout = payload.places, payload.layout
    if places.ndim != 2 or places.shape[1] != layout.k or places.dtype != torch.int32:
        raise WireError(f"places are {places.dtype}{list(places.shape)}, expected torch.int32[n, {layout.k}]")
    numbers = places.cpu().numpy().astype(np.int64)
    if (np.diff(numbers, prepend=-1, append=layout.d, axis=1) <= 0).any():
        raise WireError(f"places are not in ascending order from 0 to {layout.d - 1}")
    return numbers


def _width(d: int) -> int:
    return (d - 1).bit_length()


HEAD = Head(Placed, bounds, size, encode, decode)
