"""What both sides of the socket agree on: the calls, the version, how large a message may be, how an answer travels.

This module and all that it imports do without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version as installed
from typing import Any

from fedsim.ends.answer import Answer
from fedsim.errors import WorkerError
from fedsim.worker import worker_pb2

HELLO, PLAY = (f"/fedsim.worker.Worker/{name}" for name in ("Hello", "Play"))

LIMIT = 2**31 - 1
"""Bytes of a message: as many as protobuf allows. Five models of 1e8 parameters in float32, or two in float64."""

KIND = "fedsim-error"
"""Trailing metadata of a refusal: the name of the class in ``fedsim.errors``."""

SPARE = 2**12
"""Bytes for what a message holds beside frames and text."""


def fedsim_version() -> str:
    """Of this process."""
    return installed("fedsim")


def options(limit: int) -> list[tuple[str, int]]:
    """Of a channel or a server. What stays on this machine goes through no proxy."""
    return [
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.enable_http_proxy", 0),
    ]


def weight(frames: Iterable[bytes], text: str = "") -> int:
    """At least the bytes of a message with these frames, each of which a reply may hold alone, and this text."""
    return sum(len(frame) + 32 for frame in frames) + 4 * len(text) + SPARE


def pack(answer: Answer, limit: int) -> Any:
    """The message. Raises WorkerError when it would exceed ``limit`` bytes."""
    frames = (frame for _, frames in answer.replies for frame in frames)
    if (size := weight(frames, "".join(reason for _, reason in answer.troubles))) > limit:
        raise WorkerError(
            f"the answer of {len(answer.replies)} clients has {size} bytes, expected at most {limit}; let more nodes "
            "share the clients (num-partitions)"
        )
    replies = [worker_pb2.Reply(client=client, frames=frames) for client, frames in answer.replies]
    troubles = [worker_pb2.Trouble(client=client, reason=reason) for client, reason in answer.troubles]
    return worker_pb2.Answer(replies=replies, troubles=troubles)


def unpack(message: Any) -> Answer:
    """Inverse of ``pack``."""
    return Answer(
        tuple((reply.client, tuple(reply.frames)) for reply in message.replies),
        tuple((trouble.client, trouble.reason) for trouble in message.troubles),
    )
