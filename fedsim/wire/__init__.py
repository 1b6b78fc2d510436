"""Bytes: payload rows <-> messages, messages <-> frames. Decoders are strict, bounded, and raise WireError alone."""

from fedsim.wire.coding import decode, encode, longest, size
from fedsim.wire.frame import (
    GENESIS,
    HEADER_BYTES,
    Frame,
    Kind,
    chain,
    decode_frame,
    encode_frame,
    pack_messages,
    unpack_messages,
)

__all__ = [
    "GENESIS",
    "HEADER_BYTES",
    "Frame",
    "Kind",
    "chain",
    "decode",
    "decode_frame",
    "encode",
    "encode_frame",
    "longest",
    "pack_messages",
    "size",
    "unpack_messages",
]
