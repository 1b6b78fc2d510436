"""Where a worker listens: the path of a Unix socket, and who is there."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import quote

from fedsim.errors import WorkerError

LONGEST = 107
"""Bytes of a path that a Unix socket can have; some systems allow a few less."""


def path_of(address: str) -> Path:
    """``unix:/run/fedsim.sock`` -> its path. Raises WorkerError for anything else."""
    kind, _, path = address.partition(":")
    if kind != "unix" or not path:
        raise WorkerError(f"worker = {address!r}: expected unix: and the path of its socket, as in 'unix:/run/w.sock'")
    return _short(Path(path))


def uri(path: Path) -> str:
    """The path as gRPC wants it."""
    return "unix:" + quote(os.fsencode(path))


def reach(path: Path, seconds: float) -> None:
    """Return if somebody listens there. Raises WorkerError with the reason why not, and the way out."""
    start = f"start one with `fedsim worker --socket {path} --folder ROOT`"
    try:
        _connect(path, seconds)
    except FileNotFoundError:
        raise WorkerError(f"no worker at unix:{path}: there is no such file; {start}") from None
    except ConnectionRefusedError:
        raise WorkerError(f"no worker at unix:{path}: nobody listens, it has died or is no socket; {start}") from None
    except PermissionError:
        raise WorkerError(
            f"no access to the worker at unix:{path}: permission denied; run as the user who started it"
        ) from None
    except TimeoutError:
        raise WorkerError(f"worker at unix:{path} took no call within {seconds:g} s; start it again") from None
    except OSError as error:
        raise WorkerError(f"no worker at unix:{path}: {error.strerror or error}; {start}") from None


def claim(path: Path) -> None:
    """Make room for a new worker: remove the socket of a dead one. Raises WorkerError when the path is not free."""
    _short(path)
    if not path.parent.is_dir():
        raise WorkerError(f"--socket {path}: there is no folder {path.parent}; make it first, or give another path")
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise WorkerError(f"--socket {path}: there is something that is not a socket; give another path")
    try:
        _connect(path, 1.0)
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except PermissionError:
        raise WorkerError(f"--socket {path}: the worker there is another user's; give another path") from None
    except TimeoutError:
        raise WorkerError(f"--socket {path}: a busy worker listens there; stop it, or give another path") from None
    else:
        raise WorkerError(f"--socket {path}: a worker listens there already; stop it, or give another path")


def _connect(path: Path, seconds: float) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(seconds)
        probe.connect(str(path))


def _short(path: Path) -> Path:
    if len(os.fsencode(path)) > LONGEST:
        raise WorkerError(f"{path}: the path of a socket can have {LONGEST} bytes; give a shorter one")
    return path
