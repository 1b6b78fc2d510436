"""What travels between a pool and its workers: msgpack of plain numbers, and tensors as safetensors. No code, ever.

An error comes back as itself if it is one of fedsim's or Python's own and made of one text; otherwise as a RuntimeError
that names it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim import errors
from fedsim.errors import WorkerError
from fedsim.randomness import Stream
from fedsim.solvers.memory import Memory
from fedsim.solvers.plan import Done


class Work(msgspec.Struct, frozen=True, array_like=True):
    """Groups to solve for. shared: whether there is one model for all; numbers: the cohort's clients.

    known: memories by client number; groups: places in the cohort.
    """

    shared: bool
    numbers: list[int]
    stream: Stream
    known: dict[int, Memory]
    groups: list[list[int]]


class _Did(msgspec.Struct, frozen=True, array_like=True):
    samples: list[int]
    gradients: list[int]
    memories: list[Memory]


class _Finished(msgspec.Struct, frozen=True, array_like=True, tag="finished"):
    groups: list[_Did]


class _Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    kind: str
    text: str


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return save({"": value.detach().cpu().contiguous()})
    if isinstance(value, Mapping):
        return dict(value)
    # what msgspec asks of an encoder's hook for a type that it does not know
    raise NotImplementedError(f"{type(value).__name__} does not travel between processes")


def _tensor(kind: Any, value: Any) -> Any:
    return load(value)[""]


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_decode_work = msgspec.msgpack.Decoder(Work, dec_hook=_tensor).decode
_decode_answer = msgspec.msgpack.Decoder(_Finished | _Failed, dec_hook=_tensor).decode


def work_bytes(work: Work) -> bytes:
    """The message of some work."""
    return _encode(work)


def work_of(message: bytes) -> Work:
    """Inverse of ``work_bytes``. Raises WorkerError for other bytes."""
    with _one_of_ours():
        return _decode_work(message)


def answer_bytes(answer: list[Done] | BaseException) -> bytes:
    """The message of what was done, or of what went wrong."""
    if isinstance(answer, BaseException):
        return _encode(_Failed(type(answer).__name__, str(answer)))
    return _encode(_Finished([_Did(one.samples.tolist(), one.gradients.tolist(), one.memories) for one in answer]))


def answer_of(message: bytes) -> list[Done] | BaseException:
    """Inverse of ``answer_bytes``. Raises WorkerError for other bytes."""
    with _one_of_ours():
        answer = _decode_answer(message)
    if isinstance(answer, _Failed):
        return _error(answer.kind, answer.text)
    return [
        Done(np.array(one.samples, np.int64), np.array(one.gradients, np.int64), one.memories) for one in answer.groups
    ]


@contextmanager
def _one_of_ours() -> Iterator[None]:
    try:
        yield
    except (msgspec.MsgspecError, SafetensorError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise WorkerError(f"a message between processes that is none ({reason}); run again") from None


def _error(kind: str, text: str) -> BaseException:
    for place in (errors, builtins):
        found = getattr(place, kind, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            try:
                return found(text)
            except TypeError:  # it is made of more than a text
                break
    return RuntimeError(f"{kind}: {text}")
