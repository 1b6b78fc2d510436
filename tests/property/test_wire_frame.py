"""Frames and bundles of messages for any content; the decoders take any bytes and any damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import WireError
from fedsim.wire import (
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

U32 = st.integers(0, 2**32 - 1)
EIGHT = st.binary(min_size=8, max_size=8)
FRAMES = st.builds(Frame, st.sampled_from(Kind), EIGHT, U32, U32, U32, EIGHT, st.binary(max_size=60))
BUNDLES = st.lists(st.binary(max_size=20) | st.integers(100, 400).map(bytes), max_size=5)


@given(FRAMES)
def test_round_trip(frame: Frame) -> None:
    data = encode_frame(frame)
    assert len(data) == HEADER_BYTES + len(frame.body)
    assert decode_frame(data, len(frame.body)) == frame


@given(FRAMES, st.data())
def test_any_damage_of_up_to_32_bits_in_a_row_is_found(frame: Frame, data: st.DataObject) -> None:
    sent = encode_frame(frame)
    burst = data.draw(st.integers(1, 2**32 - 1))
    shift = data.draw(st.integers(0, 8 * len(sent) - burst.bit_length()))
    damaged = (int.from_bytes(sent, "big") ^ burst << shift).to_bytes(len(sent), "big")
    with pytest.raises(WireError):
        decode_frame(damaged, 2**32)


@given(FRAMES, st.data())
def test_cut_and_extended_frames(frame: Frame, data: st.DataObject) -> None:
    sent = encode_frame(frame)
    with pytest.raises(WireError):
        decode_frame(sent[: data.draw(st.integers(0, len(sent) - 1))], 2**32)
    with pytest.raises(WireError):
        decode_frame(sent + data.draw(st.binary(min_size=1, max_size=50)), 2**32)
    with pytest.raises(WireError, match="expected at most"):
        decode_frame(sent, len(frame.body) - 1)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(b"FS\x01\x01".__add__))
def test_any_bytes_are_no_frame(data: bytes) -> None:
    with pytest.raises(WireError):  # a checksum that fits by chance: 1 in 2^32
        decode_frame(data, 100)


@given(BUNDLES)
def test_bundle_round_trip(messages: list[bytes]) -> None:
    body = pack_messages(messages)
    shortest, longest = min(map(len, messages), default=0), max(map(len, messages), default=0)
    assert unpack_messages(body, (shortest, longest), len(messages)) == messages
    if messages:
        with pytest.raises(WireError, match="more than"):
            unpack_messages(body, (shortest, longest), len(messages) - 1)
    if longest:
        with pytest.raises(WireError, match="expected at most"):
            unpack_messages(body, (0, longest - 1), len(messages))
    if messages:
        with pytest.raises(WireError, match="expected at least"):
            unpack_messages(body, (shortest + 1, longest + 1), len(messages))


@given(st.binary(max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_any_bytes_as_a_bundle(body: bytes, limit: int, count: int) -> None:
    try:
        messages = unpack_messages(body, (0, limit), count)
    except WireError:
        return
    assert len(messages) <= count
    assert all(len(message) <= limit for message in messages)
    assert pack_messages(messages) == body


@given(st.lists(st.binary(max_size=9), max_size=4), st.lists(st.binary(max_size=9), max_size=4))
def test_histories_differ_exactly_where_their_digests_do(one: list[bytes], other: list[bytes]) -> None:
    ends = []
    for history in (one, other):
        digest = GENESIS
        for message in history:
            digest = chain(digest, message)
        ends.append(digest)
    assert (ends[0] == ends[1]) == (one == other)
