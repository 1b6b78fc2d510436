"""Flower's SuperLink behind a gate: ``python -P gate.py`` takes the options of ``flower-superlink``.

Flower serves all its interfaces at one port, and only that for nodes asks who is there: whoever reaches the port can
submit an app, which every node runs, or register a key. Here only nodes are served from elsewhere; orders are taken
from this machine (in a container: from this network namespace) alone.

A node signs each request, but of the request only its time, to the microsecond, and Flower takes a signature again and
again for five minutes, with whatever comes with it. Here a node's time is good for one request. What was served is
forgotten when the SuperLink ends: what a node signed in the five minutes before, the next one takes once more.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

FOR_NODES = "/v1/fleet/"
FOR_ALL = "/health"
FORBIDDEN = b"only nodes are served here; give orders where the SuperLink runs\n"
REPEATED = b"this was signed for a request that has been served; sign each by itself\n"
KEY, TIME = b"flwr-public-key", b"flwr-timestamp"
UNAUTHORIZED = 401
REMEMBERED = 330.0
"""Seconds: longer than from the earliest (5 s before its time) to the latest (305 s after) that Flower takes one."""


class Gate:
    """An ASGI app that passes on what may be asked from where it comes, and what a node has signed once."""

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.served = app, Served(clock)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer 403, or let the app answer. What is no request (the app's own start and end) is passed on."""
        kind, path = scope["type"], str(scope.get("path", ""))
        if kind == "lifespan":
            await self.app(scope, receive, send)
        elif kind != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not open_to(scope.get("client"), path):
            await _refuse(send, FORBIDDEN)
        elif (signed := signed_by(scope["headers"])) is None or not path.startswith(FOR_NODES):
            await self.app(scope, receive, send)
        elif not self.served.first(signed):
            await _refuse(send, REPEATED)
        else:

            async def watched(message: Any) -> None:
                if message.get("status") == UNAUTHORIZED:  # whoever holds no key leaves no trace
                    self.served.forget(signed)
                await send(message)

            await self.app(scope, receive, watched)


class Served:
    """What the nodes' signatures of the last minutes were for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.at = clock, dict[bytes, float]()

    def first(self, signed: bytes) -> bool:
        """Remember one; whether it is new."""
        now = self.clock()
        while self.at and next(iter(self.at.values())) < now - REMEMBERED:
            del self.at[next(iter(self.at))]
        if signed in self.at:
            return False
        self.at[signed] = now
        return True

    def forget(self, signed: bytes) -> None:
        """As if it had not been."""
        self.at.pop(signed, None)


def signed_by(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Which key, and when, 16 bytes; None without both, which Flower refuses. Not the signature: it has many forms.

    >>> one, two = (b"flwr-timestamp", b"2026-01-01T00:00:00+00:00"), (b"flwr-public-key", b"QQ==")
    >>> signed_by([one, two]) == signed_by([two, one, two]), signed_by([one]), signed_by([(b"flwr-public-key", b"?")])
    (True, None, None)
    """
    found = dict(reversed(list(headers)))  # Flower reads the first of each name
    try:
        key, at = b64decode(found[KEY], validate=True), found[TIME]
    except (KeyError, ValueError):
        return None
    return blake2b(b"%d " % len(key) + key + at, digest_size=16).digest()


async def _refuse(send: Callable[[Any], Awaitable[None]], why: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(why))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": why})


def open_to(caller: tuple[str, int] | None, path: str) -> bool:
    """Whether an address may ask for a path.

    >>> [open_to(("198.51.100.7", 40000), path) for path in ("/v1/fleet/pull-messages", "/v1/control/start-run")]
    [True, False]
    >>> open_to(("127.0.0.1", 40000), "/v1/control/start-run"), open_to(None, "/v1/control/start-run")
    (True, False)
    """
    return path.startswith(FOR_NODES) or path == FOR_ALL or (caller is not None and _local(caller[0]))


def _local(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Run ``flower-superlink`` with its app behind the gate; fails rather than serve without it."""
    import uvicorn
    from flwr.superlink.cli import flower_superlink

    serve = uvicorn.run

    def gated(app: Any, **options: Any) -> None:
        # A header must not say where a request comes from.
        serve(Gate(app), **{**options, "proxy_headers": False})

    uvicorn.run = gated
    flower_superlink()


if __name__ == "__main__":
    main()
