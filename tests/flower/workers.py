"""Real ``fedsim worker`` processes for runs in this process: killed at any instant, and started again in a moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsim import checkpoint
from fedsim.ends.store import Standing, Store
from fedsim.wire.link import End
from tests.faults.conftest import ZYGOTE, Done
from tests.flower.federation import ROOT


@dataclass
class Workers:
    """Processes forked from one that has imported everything. Worker i listens at ``addresses[i]``."""

    zygote: subprocess.Popen[str]
    place: Path
    count: int
    pids: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def addresses(self) -> list[str]:
        return [f"unix:{self.place / str(i)}" for i in range(self.count)]

    def folder(self, i: int) -> Path:
        """Where its clients keep what they must still know."""
        return self.place / f"clients-{i}"

    def start(self, i: int, **fault: object) -> None:
        """Start it and wait until it listens. fault: as in ``tests.faults.zygote.Disk``, in its folder."""
        argv = ["worker", "--socket", str(self.place / str(i)), "--folder", str(self.folder(i))]
        out, err = self.place / f"{i}.out", self.place / f"{i}.err"
        out.unlink(missing_ok=True)
        asked = {"argv": argv, "cwd": str(self.place), "out": str(out), "err": str(err), "detached": True}
        self.pids[i] = self._ask(asked | ({"fault": {"root": str(self.folder(i)), **fault}} if fault else {}))["pid"]
        limit = time.monotonic() + 60
        while not out.exists() or "fedsim worker: process" not in out.read_text():
            assert time.monotonic() < limit, err.read_text()
            assert self.alive(i), err.read_text()
            time.sleep(0.01)

    def alive(self, i: int) -> bool:
        """Whether it runs."""
        if i in self.pids:
            status = self._ask({"poll": self.pids[i]})["status"]
            if status is None:
                return True
            assert status == -signal.SIGKILL, (self.place / f"{i}.err").read_text()
            del self.pids[i]
        return False

    def kill(self, i: int) -> None:
        """SIGKILL; returns when it is gone."""
        if i in self.pids:
            with suppress(ProcessLookupError):
                os.kill(self.pids[i], signal.SIGKILL)
            while self.alive(i):
                time.sleep(0.002)

    def play(self, *argv: object, **request: Any) -> Done:
        """A process that runs ``python -m server.inprocess`` on these workers to its end. request: as in zygote.py."""
        out, err = self.place / "server.out", self.place / "server.err"
        words = [*map(str, argv), *(word for address in self.addresses for word in ("--worker", address))]
        asked = {"argv": words, "cwd": str(self.place), "out": str(out), "err": str(err), "module": "server.inprocess"}
        done = self._ask(asked | request)
        return Done(done["status"], out.read_text(), err.read_text(), done["seconds"])

    def standing(self, run: bytes, client: int, machines: int) -> Standing | None:
        """What a client would know if it came back now; None: nothing. machines: that share the clients."""
        return Store(self.folder(client % machines), run, client).load(torch.device("cpu"))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.zygote.stdin
        assert self.zygote.stdout
        with self.lock:
            self.zygote.stdin.write(json.dumps(request) + "\n")
            self.zygote.stdin.flush()
            answer: dict[str, Any] = json.loads(self.zygote.stdout.readline())
        return answer


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Started; all of them are gone in the end. In memory where that can be had: SIGKILL knows no difference."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="fs", dir=memory if os.access(memory, os.W_OK) else None))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    zygote = subprocess.Popen(
        [sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    made = Workers(zygote, place, count)
    try:
        for i in range(count):
            made.start(i)
        yield made
    finally:
        for i in list(made.pids):
            made.kill(i)
        zygote.communicate()
        shutil.rmtree(place)


@dataclass(frozen=True)
class Known:
    """What a server knows of a client. memory: float[d]; None: the client has none yet, or the method knows none."""

    end: End
    memory: torch.Tensor | None

    def same(self, end: End, memory: torch.Tensor | None) -> bool:
        """Whether a client knows the same of itself. memory: float[1, d]."""
        mine = torch.zeros(()) if self.memory is None else self.memory
        return self.end == end and (memory is None or bool((memory == mine).all()))


def known(folder: Path, client: int) -> Known:
    """By the last checkpoint of a run folder."""
    found = checkpoint.read(folder / "checkpoint")
    if found is None:
        return Known(End(), None)
    tensors = found[0].tensors
    end = End(int(tensors["epochs"][client]), tensors["digests"][client].numpy().tobytes())
    contacted = (tensors["seen"] != -1).nonzero()[:, 0].tolist()
    if "clients.memory" not in tensors or client not in contacted:
        return Known(end, None)
    return Known(end, tensors["clients.memory"][contacted.index(client)])
