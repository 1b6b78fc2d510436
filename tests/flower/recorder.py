"""A man in the middle who has the server's key: what a node sends over TLS is passed on, and kept word for word."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HEAD_END = b"\r\n\r\n"


class Recorder:
    """Listens on ``port``. identity: as ``fedsim certs`` makes it. requests: with the statuses of the answers."""

    def __init__(self, identity: Path, target: int) -> None:
        self.target = target
        self.requests: list[tuple[bytes, int]] = []
        self._ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ours.load_cert_chain(identity / "server" / "server.crt", identity / "server" / "server.key")
        self.theirs = ssl.create_default_context(cafile=str(identity / "public" / "ca.crt"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def say(self, request: bytes) -> bytes:
        """Send a request on a connection of its own; the answer."""
        with self._connect() as link:
            return exchange(link, request)

    def close(self) -> None:
        """Listen no more; connections end with their ends."""
        self._listener.close()

    def _connect(self) -> ssl.SSLSocket:
        link = socket.create_connection(("127.0.0.1", self.target), timeout=30)
        return self.theirs.wrap_socket(link, server_hostname="localhost")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with suppress(OSError), self._ours.wrap_socket(link, server_side=True) as near, self._connect() as far:
            while request := message(near.recv):
                answer = exchange(far, request)
                self.requests.append((request, status(answer)))
                near.sendall(answer)


def exchange(link: ssl.SSLSocket, request: bytes) -> bytes:
    """Send a request; the answer."""
    link.sendall(request)
    return message(link.recv)


def message(receive: Callable[[int], bytes]) -> bytes:
    """One HTTP message that says how long it is; empty at the end of the stream."""
    data = b""
    while HEAD_END not in data:
        if not (more := receive(1 << 16)):
            return b""
        data += more
    head, _, body = data.partition(HEAD_END)
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        if not (more := receive(1 << 16)):
            return b""
        body += more
    return head + HEAD_END + body


def status(answer: bytes) -> int:
    """Of an answer; 0 of none."""
    return int(answer.split(b" ", 2)[1]) if answer else 0
