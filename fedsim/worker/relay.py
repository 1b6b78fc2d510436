"""The caller's side: hands a node's frames to the worker of its machine, and brings back the answer. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from fedsim import errors
from fedsim.ends.answer import Answer
from fedsim.errors import FedsimError, WorkerError
from fedsim.worker import worker_pb2
from fedsim.worker.place import path_of, reach, uri
from fedsim.worker.protocol import HELLO, KIND, LIMIT, PLAY, fedsim_version, options, unpack, weight

Code = grpc.StatusCode


def play(address: str, experiment: str, frames: Sequence[bytes], timeout: float, limit: int = LIMIT) -> Answer:
    """What the worker at ``address`` (``unix:/path``) answers. experiment: TOML text; limit: bytes of a message.

    timeout: seconds, for all of it. Raises the FedsimError that the worker met, and WorkerError when it cannot be
    reached, runs another fedsim, dies, fails, takes too long, or when a message is too large.
    """
    path, end = path_of(address), time.monotonic() + timeout
    if (size := weight(frames, experiment)) > limit:
        raise WorkerError(
            f"a call of {len(frames)} frames has {size} bytes, expected at most {limit}; let more nodes share the "
            "clients (num-partitions)"
        )
    reach(path, timeout)
    ours, greeting, errand, answer = fedsim_version(), worker_pb2.Greeting, worker_pb2.Errand, worker_pb2.Answer
    with grpc.insecure_channel(uri(path), options=options(limit)) as channel:
        hello = channel.unary_unary(HELLO, greeting.SerializeToString, greeting.FromString)
        errands = channel.unary_unary(PLAY, errand.SerializeToString, answer.FromString)
        try:
            theirs = hello(greeting(fedsim=ours), timeout=max(end - time.monotonic(), 0.0)).fedsim
            if theirs != ours:
                raise WorkerError(
                    f"worker at unix:{path} runs fedsim {theirs}, its caller fedsim {ours}; install the same for both, "
                    "and start the worker again"
                )
            work = errand(experiment=experiment, frames=frames)
            return unpack(errands(work, timeout=max(end - time.monotonic(), 0.0)))
        except grpc.RpcError as error:
            raise _explained(error, path, timeout) from None


def _explained(error: grpc.RpcError, path: Path, timeout: float) -> FedsimError:
    code, details = error.code(), " ".join((error.details() or "").split())
    kind = dict(error.trailing_metadata() or ()).get(KIND)
    if kind is not None:
        found = getattr(errors, str(kind), None)
        return found(details) if isinstance(found, type) and issubclass(found, FedsimError) else WorkerError(details)
    who = f"worker at unix:{path}"
    if code is Code.DEADLINE_EXCEEDED:
        return WorkerError(f"{who} did not answer within {timeout:g} s; allow more time, or give it fewer clients")
    if code in (Code.UNAVAILABLE, Code.CANCELLED):
        return WorkerError(f"{who} ended during a call; start it again on the same folder, and its clients go on")
    if code is Code.RESOURCE_EXHAUSTED:
        return WorkerError(f"{who}: {details}; let more nodes share the clients (num-partitions)")
    return WorkerError(f"{who} is not one of this fedsim's ({code.name}: {details}); start `fedsim worker` there")
