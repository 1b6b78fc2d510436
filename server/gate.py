"""Flower's SuperLink behind a gate: ``python -P gate.py`` takes the options of ``flower-superlink``.

Flower serves all its interfaces at one port, and only that for nodes asks who is there: whoever reaches the port can
submit an app, which every node runs, or register a key. Here only nodes are served from elsewhere; orders are taken
from this machine (in a container: from this network namespace) alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

FOR_NODES = "/v1/fleet/"
FOR_ALL = "/health"
FORBIDDEN = b"only nodes are served here; give orders where the SuperLink runs\n"


class Gate:
    """An ASGI app that passes on what may be asked from where it comes."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer 403, or let the app answer. What is no request (the app's own start and end) is passed on."""
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and open_to(scope.get("client"), str(scope["path"]))):
            await self.app(scope, receive, send)
        elif kind == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": FORBIDDEN})
        else:
            await send({"type": "websocket.close", "code": 1008})


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
