"""Runs as a page while they go: the same page, on this machine alone, that asks for news once a second.

Only 127.0.0.1 listens. A request must name this server in its Host header, so that a page from elsewhere whose name was
made to point here (DNS rebinding) reads nothing. There is nothing to write, and only two addresses to read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from fedsim.errors import FedsimError
from fedsim.reporting.content import content, study
from fedsim.reporting.detail import SIZES
from fedsim.reporting.page import render, to_json
from fedsim.reporting.runs import find_runs

FILES = ("metrics.jsonl", "ledger.csv", "manifest.json")
SHORTEST = 0.9
"""Seconds between two readings of the runs."""

PATIENCE = 5.0
"""A reading that took t seconds is not repeated within 5 t, so that to watch a large run does not slow it down."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass
class Watched:
    """Run folders, read again when their files have changed. told: set once somebody has been told that they ended."""

    paths: Sequence[Path]
    title: str
    told: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _report: dict[str, Any] = field(default_factory=dict)
    _signs: list[tuple[int, int]] | None = None
    _next: float = 0.0

    def report(self) -> dict[str, Any]:
        """What the page shows now. Raises FedsimError as long as the folders have never been read.

        A folder that cannot be read for a moment, because its run is just being resumed, leaves what was there.
        """
        with self._lock:
            began = time.monotonic()
            if began < self._next:
                return self._report
            if (signs := self._look()) != self._signs:
                try:
                    found = study(find_runs(self.paths), None)
                    self._report = content(found, self.title, None, SIZES[1]) | {"live": True, "notes": []}
                    self._signs = signs
                except FedsimError:
                    if not self._report:
                        raise
            took = time.monotonic() - began
            self._next = began + took + max(SHORTEST, PATIENCE * took)
            return self._report

    def _look(self) -> list[tuple[int, int]]:
        found = []
        for file in sorted(file for path in self.paths for name in FILES for file in path.rglob(name)):
            with suppress(OSError):  # replaced just now
                status = file.stat()
                found.append((status.st_size, status.st_mtime_ns))
        return found


class Handler(BaseHTTPRequestHandler):
    """Answers GET of the page and of its data, and nothing else."""

    timeout = 10
    server: Server

    def do_GET(self) -> None:
        """Answer one request."""
        if self.headers.get("Host") not in self.server.names:
            self._send(403, "text/plain", b"this server is known by another name\n")
        elif self.path == "/":
            self._send(200, "text/html", render(self.server.watched.report()).encode())
        elif self.path == "/data.json":
            report = self.server.watched.report()
            self._send(200, "application/json", to_json(report))
            if report["ended"]:
                self.server.watched.told.set()
        else:
            self._send(404, "text/plain", b"there is / and /data.json\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in {
            **HEADERS,
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal is the user's."""


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 only. names: what a request may call it."""

    def __init__(self, watched: Watched, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.watched = watched
        self.names = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def handle_error(self, *_: object) -> None:
        """Say nothing of a reader that went away."""


@contextmanager
def serving(watched: Watched, port: int = 0) -> Iterator[str]:
    """Serve while inside; the address. port: 0 takes a free one. Raises OSError where the port is taken."""
    with Server(watched, port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def wait(watched: Watched, linger: float) -> None:
    """Return when the runs have ended and a page was told so, or ``linger`` seconds after their end without one."""
    ended: float | None = None
    while not watched.told.wait(0.2):
        if watched.report()["ended"]:
            ended = time.monotonic() if ended is None else ended
            if time.monotonic() - ended > linger:
                return
