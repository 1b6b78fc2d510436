"""What travels in a Flower message: one ConfigRecord, whose bytes are frames of fedsim.

    call      to a node     frames: of all its clients in this round
    answer    from a node   clients, counts: how many of the frames are whose; frames; troubles: "client: why none"
    hello     from a node   partition-id, num-partitions, version of fedsim, trouble: why it cannot compute

A frame says by itself for which client it is. A key whose list would be empty is left out: Flower's own records can
neither be measured nor typed with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from flwr.app import ConfigRecord, RecordDict

Reply = tuple[int, tuple[bytes, ...]]
Trouble = tuple[int, str]
T = TypeVar("T", int, str, bytes)


class Hello(NamedTuple):
    """What a node says of itself. partition: it hosts every client whose number is that modulo ``partitions``."""

    partition: int
    partitions: int
    version: str
    trouble: str


def of_call(frames: Sequence[bytes]) -> RecordDict:
    """The content of a call."""
    return RecordDict({"call": ConfigRecord({"frames": list(frames)} if frames else {})})


def call_of(content: RecordDict) -> list[bytes]:
    """The frames of a call. Raises ValueError for another content."""
    return _list(_record(content, "call"), "frames", bytes)


def of_answer(replies: Iterable[Reply], troubles: Iterable[Trouble]) -> RecordDict:
    """The content of an answer: the frames of each client, and why others have none."""
    replies = list(replies)
    lists: dict[str, list[int] | list[bytes] | list[str]] = {
        "clients": [client for client, _ in replies],
        "counts": [len(frames) for _, frames in replies],
        "frames": [frame for _, frames in replies for frame in frames],
        "troubles": [f"{client}: {' '.join(why.split())}" for client, why in troubles],
    }
    record = ConfigRecord()
    for key, values in lists.items():
        if values:
            record[key] = values
    return RecordDict({"answer": record})


def answer_of(content: RecordDict) -> tuple[list[Reply], list[Trouble]]:
    """Inverse of ``of_answer``. Raises ValueError for another content."""
    record = _record(content, "answer")
    clients, counts = _list(record, "clients", int), _list(record, "counts", int)
    frames, replies, at = _list(record, "frames", bytes), [], 0
    if len(clients) != len(counts) or min(counts, default=0) < 0 or sum(counts) != len(frames):
        raise ValueError(f"an answer with {len(clients)} clients, {len(counts)} counts and {len(frames)} frames")
    for client, count in zip(clients, counts, strict=True):
        replies.append((client, tuple(frames[at : at + count])))
        at += count
    troubles = []
    for line in _list(record, "troubles", str):
        number, separator, why = line.partition(": ")
        if not separator or not number.isdecimal():
            raise ValueError(f"a trouble {line[:80]!r} that names no client")
        troubles.append((int(number), " ".join(why.split())))
    return replies, troubles


def of_hello(hello: Hello) -> RecordDict:
    """The content of a node's reply to a query."""
    return RecordDict({"hello": ConfigRecord(dict(zip(KEYS, hello, strict=True)))})


def hello_of(content: RecordDict) -> Hello:
    """Inverse of ``of_hello``. Raises ValueError for another content."""
    record = _record(content, "hello")
    values = [record.get(key) for key in KEYS]
    if [type(value) for value in values] != [int, int, str, str]:
        raise ValueError(f"a hello with {' '.join(', '.join(map(str, record)).split())[:80] or 'nothing'}")
    partition, partitions, version, trouble = values
    return Hello(int(str(partition)), int(str(partitions)), str(version), " ".join(str(trouble).split()))


KEYS = ("partition-id", "num-partitions", "version", "trouble")


def _record(content: RecordDict, name: str) -> ConfigRecord:
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise ValueError(f"a message without the record {name!r}")
    return record


def _list(record: ConfigRecord, key: str, kind: type[T]) -> list[T]:
    values = record.get(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ValueError(f"{key!r} is not a list of {kind.__name__}")
    return [value for value in values if isinstance(value, kind)]
