"""The worker's side: one host behind a Unix socket, which does one errand at a time in a thread of its own.

One thread, because torch keeps threads for each of its callers; the loop stays free to greet and to stop meanwhile. An
errand whose time is over before its turn comes is not begun.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc import aio

from fedsim.ends.answer import Answer
from fedsim.errors import FedsimError, WorkerError
from fedsim.worker import worker_pb2
from fedsim.worker.place import claim, uri
from fedsim.worker.protocol import HELLO, KIND, LIMIT, PLAY, fedsim_version, options, pack

GRACE = 1.0
"""Seconds that an errand in progress is given when the worker is told to end."""

LONGEST_LINE = 4000
"""Characters of an error: gRPC sends them in a header."""


class Host(Protocol):
    """``fedsim.ends.host.Host``."""

    def play(self, experiment: str, frames: Sequence[bytes]) -> Answer:
        """What the clients reply. Raises FedsimError."""
        ...


def run(host: Host, path: Path, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then leave within two seconds and without the socket. ready: called once, before.

    An errand that is not done by then is given up, and with it the process: what leaves a client is on disk, so that
    its round counts as missed. Raises WorkerError when the socket cannot be had.
    """

    async def main() -> bool:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await serve(host, path, ready, stop)

    if not asyncio.run(main()):
        sys.stdout.flush()
        os._exit(0)  # no thread can be ended by another


async def serve(
    host: Host, path: Path, ready: Callable[[], None], stop: asyncio.Event, limit: int = LIMIT, grace: float = GRACE
) -> bool:
    """Serve until ``stop``; whether all that was begun is done. Raises WorkerError when the socket cannot be had."""
    claim(path)
    desk = _Desk(host, limit)
    server = aio.server(options=options(limit))
    server.add_generic_rpc_handlers((desk.handler(),))
    before = os.umask(0o177)
    try:
        server.add_insecure_port(uri(path))
    except RuntimeError as error:
        raise WorkerError(f"--socket {path}: cannot listen there ({error}); give another path") from None
    finally:
        os.umask(before)
    try:
        await server.start()
        ready()
        await stop.wait()
        asyncio.get_running_loop().call_later(grace, desk.leaving.set)
        await server.stop(grace + 0.5)
    finally:
        path.unlink(missing_ok=True)
    return desk.close()


class _Desk:
    def __init__(self, host: Host, limit: int) -> None:
        self.host, self.limit, self.working, self.leaving = host, limit, False, asyncio.Event()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="host")

    def handler(self) -> Any:
        calls = {
            HELLO: grpc.unary_unary_rpc_method_handler(
                self.hello, worker_pb2.Greeting.FromString, worker_pb2.Greeting.SerializeToString
            ),
            PLAY: grpc.unary_unary_rpc_method_handler(
                self.play, worker_pb2.Errand.FromString, worker_pb2.Answer.SerializeToString
            ),
        }
        service = HELLO.split("/")[1]
        return grpc.method_handlers_generic_handler(service, {name.split("/")[2]: call for name, call in calls.items()})

    async def hello(self, greeting: Any, context: Any) -> Any:
        return worker_pb2.Greeting(fedsim=fedsim_version())

    async def play(self, errand: Any, context: Any) -> Any:
        loop, left = asyncio.get_running_loop(), context.time_remaining()
        until = inf if left is None else loop.time() + left
        work = loop.run_in_executor(self.thread, self._work, errand, lambda: loop.time() < until)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may have gone
        leaving = asyncio.ensure_future(self.leaving.wait())
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not work.done():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker was told to end")
        try:
            return work.result()
        except FedsimError as error:
            kind, line = type(error).__name__, str(error)
        except Exception as error:
            traceback.print_exception(error)
            kind, line = WorkerError.__name__, f"the worker failed with {type(error).__name__}: {error}; see its log"
        await context.abort(grpc.StatusCode.ABORTED, " ".join(line.split())[:LONGEST_LINE], ((KIND, kind),))

    def close(self) -> bool:
        """Begin nothing more; whether nothing is being done."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        return not self.working

    def _work(self, errand: Any, awaited: Callable[[], bool]) -> Any:
        if not awaited():
            raise WorkerError("the worker was busy for as long as the caller waited; this errand was not begun")
        self.working = True
        try:
            return pack(self.host.play(errand.experiment, list(errand.frames)), self.limit)
        finally:
            self.working = False
