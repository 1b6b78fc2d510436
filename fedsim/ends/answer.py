"""What a machine says when its clients were called. Needs no torch, for relays that must start quickly."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """replies: the frames of each client. troubles: of each client that has none, one line that says why."""

    replies: tuple[tuple[int, tuple[bytes, ...]], ...]
    troubles: tuple[tuple[int, str], ...] = ()
