"""Rows of which the places are drawn from a seed <-> bytes; see ``coding`` for the calls.

  a block of an order   seed, u32 | number of the block, in the fewest whole bytes that hold blocks - 1 | the message of
                        what was kept, in ascending order of places; +0.0 at a place beyond the row
  a mask                seed, u32 | float32 of each coordinate that crosses, in ascending order

All little-endian. ``fedsim.compression.places`` says which places a seed means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.compression import places
from fedsim.compression.chosen import Drawn, DrawnLayout, Masked, MaskedLayout
from fedsim.compression.payload import parts
from fedsim.errors import WireError
from fedsim.wire.kept import Head

_SEED = 4


def bounds(layout: DrawnLayout) -> tuple[int, int]:
    """Bytes of a head, twice. Raises WireError if it has no format."""
    d, k = layout.d, layout.k
    if not 1 <= k <= d or layout.width >= 2**31 or not 1 <= layout.blocks < 2**31 or layout.kept.d != k:
        raise WireError(
            f"{layout} has no wire format; use 1 <= k <= d, k blocks < 2^31 and k coordinates in what is kept"
        )
    octets = _SEED + _block_bytes(layout)
    return octets, octets


def size(payload: Drawn) -> Tensor:
    """Bits of each head, int64[n]."""
    return torch.full((len(_numbers(payload)[0]),), 8 * bounds(payload.layout)[0])


def encode(payload: Drawn) -> list[bytes]:
    """One head a row."""
    width = _block_bytes(payload.layout)
    pairs = zip(*_numbers(payload), strict=True)
    return [seed.to_bytes(_SEED, "little") + number.to_bytes(width, "little") for seed, number in pairs]


def decode(messages: Sequence[bytes], layout: DrawnLayout) -> tuple[dict[str, Tensor], list[int]]:
    """Messages that start with a head -> seeds, numbers of blocks, and bytes of each head."""
    end = bounds(layout)[0]
    seeds = [int.from_bytes(message[:_SEED], "little") for message in messages]
    numbers = [int.from_bytes(message[_SEED:end], "little") for message in messages]
    if max(numbers, default=0) >= layout.blocks:
        raise WireError(f"block {max(numbers)} of an order of {layout.blocks}; the message was damaged")
    tensors = {"seeds": torch.tensor(seeds, dtype=torch.int64), "numbers": torch.tensor(numbers, dtype=torch.int64)}
    return tensors, [end] * len(messages)


def check(payload: Drawn) -> None:
    """Raise WireError unless everything is +0.0 at places beyond the row."""
    layout = payload.layout
    if layout.width > layout.d:
        beyond = places.drawn(layout, payload.seeds, payload.numbers) >= layout.d
        for part in parts(payload.kept).values():
            if part.shape == beyond.shape and any(part[beyond].numpy().tobytes()):
                raise WireError("a number beyond the end of the row is not zero; the message was damaged")


def _numbers(payload: Drawn) -> tuple[list[int], list[int]]:
    bounds(payload.layout)
    seeds, numbers = _words(payload.seeds, 2**32, "seeds"), _words(payload.numbers, payload.layout.blocks, "blocks")
    return seeds.tolist(), numbers.tolist()


def _words(numbers: Tensor, end: int, name: str) -> Tensor:
    if numbers.ndim != 1 or numbers.dtype != torch.int64 or bool(((numbers < 0) | (numbers >= end)).any()):
        raise WireError(f"{name} are {numbers.dtype}{list(numbers.shape)}, expected torch.int64[n] from 0 to {end - 1}")
    return numbers


def _block_bytes(layout: DrawnLayout) -> int:
    return ((layout.blocks - 1).bit_length() + 7) // 8


HEAD = Head(Drawn, bounds, size, encode, decode, check)


def masked_bounds(layout: MaskedLayout) -> tuple[int, int]:
    """Bytes of messages of nothing and of every coordinate. Raises WireError if it has no format."""
    if layout.d < 1 or not 1 <= layout.chance <= 2**32:
        raise WireError(f"{layout} has no wire format; use d >= 1 and a chance from 1 to 2^32")
    return _SEED, _SEED + 4 * layout.d


def masked_size(payload: Masked) -> Tensor:
    """Bits of each row's message, int64[n]."""
    return 8 * (_SEED + 4 * _mask(payload).sum(dim=1))


def masked_encode(payload: Masked) -> list[bytes]:
    """One message a row."""
    mask, values = _mask(payload).numpy(), payload.values.detach().cpu().numpy().astype("<f4")
    return [
        seed.to_bytes(_SEED, "little") + row[kept].tobytes()
        for seed, row, kept in zip(payload.seeds.tolist(), values, mask, strict=True)
    ]


def masked_decode(messages: Sequence[bytes], layout: MaskedLayout) -> Masked:
    """Messages whose lengths are within bounds; every one that has the length of its mask is canonical."""
    seeds = torch.tensor([int.from_bytes(message[:_SEED], "little") for message in messages], dtype=torch.int64)
    mask, values = places.mask(layout, seeds).numpy(), np.zeros((len(messages), layout.d), np.float32)
    for row, kept, message in zip(values, mask, messages, strict=True):
        count = int(kept.sum())
        if len(message) != _SEED + 4 * count:
            raise WireError(f"message of {len(message)} bytes, expected {_SEED + 4 * count} for the mask of its seed")
        row[kept] = np.frombuffer(message, "<f4", offset=_SEED)
    return Masked(layout, seeds, torch.from_numpy(values))


def _mask(payload: Masked) -> Tensor:
    masked_bounds(payload.layout)
    seeds, values, layout = _words(payload.seeds, 2**32, "seeds"), payload.values, payload.layout
    if values.shape != (len(seeds), layout.d) or values.dtype != torch.float32:
        shape = [len(seeds), layout.d]
        raise WireError(f"values are {values.dtype}{list(values.shape)}, expected torch.float32{shape}")
    mask = places.mask(layout, seeds.cpu())
    if bool((values.detach().cpu().view(torch.int32).bool() & ~mask).any()):
        raise WireError("a number outside the mask of its seed is not +0.0")
    return mask
