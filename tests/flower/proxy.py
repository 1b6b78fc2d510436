"""A TCP proxy on loopback that counts bytes, and can be made slow, narrow or dead.

    proxy = Proxy(port_of_the_superlink)         # proxy.port is where the SuperNode connects
    proxy.traffic(since, until)                  # bytes each way between two instants of time.time()
    proxy.delay, proxy.rate = 0.2, 125_000       # seconds each way; bytes a second each way
    proxy.cut(); proxy.mend()                    # all connections reset and none accepted, until mended

Bytes are those of the TCP streams: HTTP headers, polls and heartbeats included, headers of TCP and IP not.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

PIECE = 65_536


class Way(Enum):
    """UP: node to SuperLink. DOWN: SuperLink to node."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that passed at an instant of time.time(), on a connection (they are numbered)."""

    at: float
    way: Way
    octets: int
    connection: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes each way, and the connections that they came over."""

    up: int
    down: int
    connections: int


class Proxy:
    """Listens on ``port`` from the beginning; ``close`` ends its thread."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.target, self.host = target, host
        self.delay, self.rate = 0.0, 0.0
        self.pieces: list[Piece] = []
        self._connections = 0
        self._broken = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def traffic(self, since: float = 0.0, until: float = float("inf")) -> Traffic:
        """What passed from ``since`` to before ``until``, instants of time.time()."""
        pieces = [piece for piece in list(self.pieces) if since <= piece.at < until]
        up, down = (sum(piece.octets for piece in pieces if piece.way is way) for way in (Way.UP, Way.DOWN))
        return Traffic(up, down, len({piece.connection for piece in pieces}))

    def cut(self) -> None:
        """Reset every connection, and every new one, until mended."""
        self._broken = True
        self._loop.call_soon_threadsafe(self._abort)

    def mend(self) -> None:
        """Let connections pass again."""
        self._broken = False

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def _abort(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main(ready))
        finally:
            self._loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = int(server.sockets[0].getsockname()[1])
        ready.set()
        await self._stopped.wait()
        server.close()
        self._abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        with suppress(OSError, asyncio.CancelledError):
            self._writers.add(writer)
            if self._broken:
                _reset(writer)
                return
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
            self._writers.add(far_writer)
            await asyncio.gather(
                self._pump(reader, far_writer, Way.UP, number), self._pump(far_reader, writer, Way.DOWN, number)
            )
            far_writer.close()
            self._writers.discard(far_writer)
        writer.close()
        self._writers.discard(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way, number: int) -> None:
        """Move what comes, as it comes, until the source ends; then say so to the sink."""
        try:
            while data := await source.read(PIECE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                self.pieces.append(Piece(time.time(), way, len(data), number))
                sink.write(data)
                await sink.drain()
            with suppress(OSError):
                sink.write_eof()
        except OSError:
            _reset(sink)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a farewell: the other end sees a reset, whatever it was doing."""
    with suppress(OSError):  # closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
