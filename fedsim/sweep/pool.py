"""Runs side by side: processes that each play one run after another, and say how far they are.

    parent -> child    a line of JSON: ``Work``. The end of the pipe: stop after this round, and leave
    child -> parent    lines of JSON: ``Told``

The end of the pipe also comes when the parent dies, so no child outlives it by more than a round. Children are sessions
of their own: Ctrl-C in a terminal reaches the parent alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Literal, Protocol

import msgspec

MAIN = "import sys; sys.path[:] = sys.argv[1:]; from fedsim.sweep.child import main; main()"
"""A child finds what its parent finds."""

LOOK = 0.2
"""Seconds after which the parent looks whether it was asked to stop."""


What = Literal["playing", "finished", "diverged", "failed", "stopped"]


class Work(msgspec.Struct, frozen=True):
    """A run to play. folder: of the run, begun or not; experiment: its TOML text."""

    folder: str
    experiment: str


class Told(msgspec.Struct, frozen=True):
    """How far a run is. Anything but "playing" is the last word on it; reason: of "diverged" and "failed"."""

    what: What
    round: int = 0
    loss: float | None = None
    accuracy: float | None = None
    reason: str = ""


def said(what: What, metrics: Mapping[str, Any], round: int) -> Told:
    """The words for an evaluation: its loss, or that on test data where the training data is elsewhere."""
    return Told(what, round, metrics.get("loss", metrics.get("test_loss")), metrics.get("test_accuracy"))


class Asked(Protocol):
    """Whether somebody asked to stop."""

    @property
    def asked(self) -> bool:
        """Set at any time, never taken back."""
        ...


def play(works: Sequence[Work], jobs: int, stop: Asked, tell: Callable[[int, Told], None]) -> None:
    """Play runs in ``jobs`` processes; return when all have ended, one way or another.

    tell: called in this process with the number of a run and what it said. Once stop is asked, runs stop after the
    round that they are in, with a checkpoint, and no other begins. Whatever is raised here ends all processes at once;
    their runs go on from their last checkpoints.
    """
    waiting = deque(enumerate(works))
    children: list[Child] = []
    selector = DefaultSelector()
    try:
        while waiting or children:
            if stop.asked:
                waiting.clear()
                for child in children:
                    child.dismiss()
            elif waiting and len(children) < jobs:
                children.append(child := Child(*waiting.popleft()))
                selector.register(child.pipe, EVENT_READ, child)
                continue
            for key, _ in selector.select(LOOK):
                child = key.data
                alive = child.hear(tell)
                if child.work is None and alive and waiting:
                    child.give(*waiting.popleft())
                elif child.work is None:
                    child.dismiss()
                if not alive:
                    selector.unregister(child.pipe)
                    children.remove(child)
                    child.end(tell)
    finally:
        selector.close()
        for child in children:
            child.kill()


class Child:
    """A process, and the number of the run that it plays; None between two."""

    def __init__(self, number: int, work: Work) -> None:
        self.process = subprocess.Popen(  # nosec B603 # this Python, a list, no shell
            [sys.executable, "-c", MAIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.pipe = self.process.stdin, self.process.stdout.fileno()
        self.work: int | None = None
        self.unread = b""
        self.give(number, work)

    def give(self, number: int, work: Work) -> None:
        """The next run. One that died meanwhile is found out by ``hear``."""
        self.work = number
        with suppress(BrokenPipeError):
            self.stdin.write(msgspec.json.encode(work) + b"\n")
            self.stdin.flush()

    def dismiss(self) -> None:
        """Nothing more is coming."""
        with suppress(BrokenPipeError):
            self.stdin.close()

    def hear(self, tell: Callable[[int, Told], None]) -> bool:
        """Pass on what it said; whether it still lives."""
        read = os.read(self.pipe, 2**16)
        *lines, self.unread = (self.unread + read).split(b"\n")
        for line in lines:
            told = msgspec.json.decode(line, type=Told)
            assert self.work is not None
            number = self.work
            if told.what != "playing":
                self.work = None
            tell(number, told)
        return bool(read)

    def end(self, tell: Callable[[int, Told], None]) -> None:
        """It has ended; a run that it leaves behind without a word has failed."""
        self.dismiss()
        code = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.work is not None:
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            tell(self.work, Told("failed", reason=f"its process died with {how}; if the memory is full, lower --jobs"))

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        self.end(lambda number, told: None)
