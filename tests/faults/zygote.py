"""A process that has imported everything and forks a real ``fedsim`` process for each request, which saves the import.

One JSON request a line on standard input, one JSON answer a line on standard output:

    argv, cwd, out, err     the command line, where it runs, the files its output goes to
    signals                 [[seconds after the fork, signal number], ...]
    module                  whose main() runs instead of fedsim's
    fault                   {"root", "at", "kind", "part", "log", "shadow"}: see ``Disk``; none: nothing is patched
    detached                true: not awaited, the answer is {"pid"}; later {"poll": pid} asks for {"status"}, or null
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any

import torch

from fedsim.cli.main import main

PRELOADED = ("scipy.signal", "sklearn.datasets", "fedsim.cli.play", "fedsim.simulation.forecast", "fedsim.ends")

Request = dict[str, Any]


class Disk:
    """Counts every step by which a process changes the files under ``root``, and lets one of them go wrong.

    at: the number of that step, from 1. kind: what happens instead of it:
        kill         SIGKILL; of a write, the first half is done
        full         OSError ENOSPC; of a write, the first half is done
        interrupt    SIGINT, then the step itself
        interrupts   SIGINT twice
    log: a file for the names of the steps, written when the process ends by itself.
    shadow: a folder for what would outlive a power cut, after each step that forces something to disk: see ``Shadow``.
    """

    def __init__(self, root: str, at: int = 0, kind: str = "kill", log: str = "", shadow: str = "") -> None:
        self.root, self.at, self.kind, self.log = os.path.realpath(root), at, kind, log
        self.steps: list[str] = []
        self.shadow = Shadow(self.root, shadow) if shadow else None
        self.open, self.fsync = io.open, os.fsync
        io.open = self._open  # type: ignore[assignment]
        os.fsync = self._fsync
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def step(self, name: str, path: str) -> bool:
        """Count a step; True: do half of it and call ``fail``."""
        path = os.path.realpath(path)
        if not path.startswith(self.root) and path != os.path.dirname(self.root):
            return False
        self.steps.append(f"{name} {os.path.relpath(path, self.root)}")
        if len(self.steps) != self.at:
            return False
        if self.kind.startswith("interrupt"):
            os.kill(os.getpid(), signal.SIGINT)
            if self.kind == "interrupts":
                os.kill(os.getpid(), signal.SIGINT)
            return False
        if name != "write":
            self.fail()
        return True

    def fail(self) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self) -> None:
        if self.log:
            with self.open(self.log, "w") as file:
                json.dump(self.steps, file)

    def _counted(self, name: str, real: Any) -> Any:
        def counted(path: Any, *rest: Any, **options: Any) -> Any:
            self.step(name, os.fspath(path))
            return real(path, *rest, **options)

        return counted

    def _open(self, path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return self.open(path, mode, *rest, **options)
        self.step("open", os.fspath(path))
        return Handle(self, self.open(path, mode, *rest, **options), os.fspath(path))

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.step("fsync", path)
        self.fsync(descriptor)
        if self.shadow and os.path.realpath(path).startswith(os.path.dirname(self.root)):
            self.shadow.forced(path)


class Handle:
    """A file opened for writing whose steps are counted."""

    def __init__(self, disk: Disk, real: Any, path: str) -> None:
        self.disk, self.real, self.path = disk, real, path

    def write(self, data: Any) -> Any:
        if self.disk.step("write", self.path):
            self.real.write(data[: len(data) // 2])
            self.real.flush()
            self.disk.fail()
        return self.real.write(data)

    def truncate(self, size: int | None = None) -> Any:
        self.disk.step("truncate", self.path)
        return self.real.truncate(size)

    def close(self) -> None:
        if not self.real.closed:
            try:
                self.disk.step("close", self.path)
            finally:
                self.real.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Shadow:
    """What is certain to be on disk: each file as it was last forced to disk, under the names its folder had when that
    was last forced to disk. What is there when the process begins counts as forced.

    Writes 0.json, 1.json, ... after each step that forces something: {"names": {folder: {name: "folder" or a file's
    number}}, "copies": {a file's number: path of its content}}.
    """

    def __init__(self, root: str, folder: str) -> None:
        self.root, self.folder = root, folder
        self.copies: dict[int, str] = {}
        self.names: dict[str, dict[str, int | str]] = {}
        self.saved = 0
        for place, _, files in os.walk(root):
            for name in files:
                self._copy(os.path.join(place, name))
            self._list(place)
        self._list(os.path.dirname(root))
        self._save()

    def forced(self, path: str) -> None:
        (self._list if os.path.isdir(path) else self._copy)(path)
        self._save()

    def _copy(self, path: str) -> None:
        copy = os.path.join(self.folder, str(len(os.listdir(self.folder))))
        shutil.copyfile(path, copy)
        self.copies[os.stat(path).st_ino] = copy

    def _list(self, path: str) -> None:
        entries = os.scandir(path)
        self.names[path] = {entry.name: "folder" if entry.is_dir() else entry.inode() for entry in entries}

    def _save(self) -> None:
        with open(os.path.join(self.folder, f"{self.saved}.json"), "w") as file:
            json.dump({"names": self.names, "copies": self.copies}, file)
        self.saved += 1


def child(request: Request) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive this process
    os.chdir(request["cwd"])
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    disk = Disk(**request["fault"]) if request.get("fault") else None
    sys.argv = ["fedsim", *request["argv"]]
    status = 0
    try:
        status = (import_module(request["module"]).main if "module" in request else main)() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    if disk:
        disk.finish()
    sys.stdout.flush()
    os._exit(status)


def serve(request: Request) -> dict[str, Any]:
    if "poll" in request:
        done, status = os.waitpid(request["poll"], os.WNOHANG)
        return {"status": os.waitstatus_to_exitcode(status) if done else None}
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(request)
    if request.get("detached"):
        return {"pid": pid}
    signals = list(request.get("signals", []))
    while True:
        done, status = os.waitpid(pid, os.WNOHANG if signals else 0)
        if done:
            return {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}
        if time.monotonic() - began >= signals[0][0]:
            os.kill(pid, signals.pop(0)[1])
        else:
            time.sleep(0.0005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in PRELOADED:
        import_module(name)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            print(json.dumps(serve(json.loads(line))), flush=True)
