"""What the clients of one node answer in a round. Without torch: a relay only passes it on."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """replies: client -> its frames; troubles: client -> one line, why it has none."""

    replies: tuple[tuple[int, tuple[bytes, ...]], ...]
    troubles: tuple[tuple[int, str], ...] = ()
