"""Real Flower processes on loopback: a SuperLink, SuperNodes and whatever those start, and never a leftover.

    with Federation(folder, nodes=3) as federation:
        ended = federation.run(app, {"rounds": 3})       # waits; ended.status, ended.log, ended.seconds
        federation.nodes[1].kill()                       # as kill -9 does, with the processes that it started
        federation.nodes[1].start()

Flower starts processes of its own (a SuperExec beside every SuperLink and SuperNode, one process a message), some in
sessions of their own. All inherit one environment variable from here, and by it they are found when it is time to stop.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from tests.flower.proxy import Proxy

MARK = "FEDSIM_FEDERATION"
PROGRAMS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_PROXY": "127.0.0.1,localhost",
    "OMP_NUM_THREADS": "1",
}
TERMINAL = ("finished:completed", "finished:failed", "finished:stopped")


class FlowerError(AssertionError):
    """A Flower process did not do what the test needs; the message ends with the last lines of its log."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def marked(mark: str) -> list[int]:
    """Process ids whose environment holds the mark, without this process and without zombies."""
    needle, found = f"{MARK}={mark}".encode(), []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with suppress(OSError):
                if needle in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
    return found


def end(mark: str) -> None:
    """SIGKILL to marked processes, until none is left: they may be starting others."""
    limit = time.monotonic() + 10
    while left := marked(mark):
        if time.monotonic() > limit:
            raise FlowerError(f"processes {left} outlive SIGKILL")
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass
class Program:
    """One long-lived process and all that it starts. A second start is a new process with the same command."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    mark: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; a process that was killed is started again, its log goes on."""
        assert self.process is None, f"{self.name} runs"
        self.mark = f"{self.name}-{uuid.uuid4().hex}"
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                list(self.command),
                env={**self.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                preexec_fn=_die_with_parent,
            )

    def kill(self) -> None:
        """SIGKILL to the process and to all that it started, at once, as when a machine loses power."""
        self._end(0.0)

    def stop(self) -> None:
        """SIGTERM, which Flower answers within 5 s, then SIGKILL to what is left."""
        self._end(6.0)

    def _end(self, seconds: float) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        (process.terminate if seconds else process.kill)()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds or 5.0)
        process.kill()
        process.wait()
        end(self.mark)

    def wait_for(self, text: str, seconds: float = 40.0, occurrences: int = 1) -> None:
        """Wait for a line of its log. Raises FlowerError when the process ends or the time is over."""
        limit = time.monotonic() + seconds
        while self.log.read_text(errors="replace").count(text) < occurrences:
            if self.process is not None and (status := self.process.poll()) is not None:
                raise FlowerError(f"{self.name} ended with status {status}:\n{self.tail()}")
            if time.monotonic() > limit:
                raise FlowerError(f"{self.name} has not said {text!r} in {seconds} s:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self, lines: int = 25) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True)
class Ended:
    """A run that is over. status: finished:completed, finished:failed, ...; log: what its ServerApp printed."""

    run: int
    status: str
    log: str
    seconds: float

    def completed(self) -> Ended:
        """Itself. Raises FlowerError with the reason unless the run completed."""
        if self.status != "finished:completed":
            raise FlowerError(f"run {self.run} ended as {self.status}:\n" + "\n".join(self.log.splitlines()[-25:]))
        return self


def partition(node: int, nodes: int) -> str:
    """Flower's own convention of a node's configuration."""
    return f"partition-id={node} num-partitions={nodes}"


@dataclass
class Federation:
    """A SuperLink and SuperNodes on loopback. proxied: nodes reach the SuperLink through ``proxies``, one each.

    address: where the SuperLink listens; elsewhere: of each SuperNode the address at which it finds that, and words
    before its command, that start it elsewhere.
    """

    folder: Path
    count: int = 3
    database: bool = False
    proxied: bool = False
    config: Callable[[int, int], str] = partition
    extra: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    elsewhere: Sequence[tuple[str, tuple[str, ...]]] = ()
    link: Program = field(init=False)
    nodes: list[Program] = field(init=False, default_factory=list)
    proxies: list[Proxy] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.home = self.folder / "flwr"
        self.home.mkdir(parents=True)
        self.port = free_port()
        path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
        own = {"PATH": path, "FLWR_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        own["NO_PROXY"] = f"{QUIET['NO_PROXY']},{self.address}"
        self.environment = {**os.environ, **QUIET, **own, **self.extra}
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self.address}:{self.port}"\n'
            "insecure = true\n"
        )
        kept = ["--database", str(self.folder / "state.db")] if self.database else []
        link = ["flower-superlink", "--insecure", "--host", self.address, "--port", str(self.port), *kept]
        self.link = self._program("superlink", link)

    def __enter__(self) -> Federation:
        try:
            self.start_link()
            for number in range(self.count):
                self.add_node(number)
            for node in self.nodes:
                self.wait_for_node(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start_link(self) -> None:
        """Start the SuperLink (again) and wait until it is healthy."""
        self.link.start()
        limit = time.monotonic() + 40
        while not self.healthy():
            assert self.link.process is not None
            if self.link.process.poll() is not None or time.monotonic() > limit:
                raise FlowerError(f"the SuperLink is not healthy:\n{self.link.tail()}")
            time.sleep(0.1)

    def healthy(self) -> bool:
        """Whether the SuperLink answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.address}:{self.port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def add_node(self, number: int) -> Program:
        """Start a SuperNode; its number decides its configuration."""
        port = self.port
        if self.proxied:
            self.proxies.append(Proxy(self.port))
            port = self.proxies[-1].port
        address, inside = self.elsewhere[number] if self.elsewhere else (self.address, ())
        address = "127.0.0.1" if self.proxied else address
        command = ["flower-supernode", "--insecure", "--superlink", f"{address}:{port}", "--port", str(free_port())]
        command += ["--node-config", self.config(number, self.count)]
        node = self._program(f"supernode-{number}", command, inside)
        self.nodes.append(node)
        node.start()
        return node

    def wait_for_node(self, node: Program, starts: int = 1) -> None:
        """Wait until a SuperNode has been registered so many times since its log began."""
        node.wait_for("Node ID", occurrences=starts)

    def submit(self, app: Path, config: Mapping[str, object] | None = None) -> int:
        """Hand in an app (a folder with a pyproject.toml) with run configuration; returns the number of the run."""
        given = self.folder / "run.toml"
        given.write_text(tomli_w.dumps(dict(config or {})))
        return int(self.flwr("run", str(app), "here", "--format", "json", "-c", str(given))["run-id"])

    def wait(self, run: int, seconds: float = 300.0) -> Ended:
        """Wait for the end of a run, by its log (a stream, which costs this machine nothing)."""
        began = time.monotonic()
        try:
            stream = self._flwr("log", str(run), "here", "--stream", seconds=seconds)
            log = stream.stdout
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
            text = output.decode(errors="replace") if isinstance(output, bytes) else output
            raise FlowerError(f"run {run} goes on after {seconds} s:\n{text[-3000:]}") from None
        while (status := self.status(run)) not in TERMINAL:
            if time.monotonic() - began > seconds:
                raise FlowerError(f"run {run} is {status} after {seconds} s:\n{log[-3000:]}")
            time.sleep(0.5)
        return Ended(run, status, log, time.monotonic() - began)

    def run(self, app: Path, config: Mapping[str, object] | None = None, seconds: float = 300.0) -> Ended:
        """Submit an app and wait for its end."""
        return self.wait(self.submit(app, config), seconds)

    def status(self, run: int) -> str:
        """As Flower says it: pending, starting, running, finished:completed, ..."""
        return str(self.listed(run)["status"])

    def listed(self, run: int) -> dict[str, Any]:
        """What ``flwr list`` knows of a run, its network traffic for one."""
        found: dict[str, Any] = self.flwr("list", "here", "--run-id", str(run), "--format", "json")["runs"][0]
        return found

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """The JSON that a command of Flower's prints. Raises FlowerError when it fails."""
        done = self._flwr(*arguments)
        try:
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            raise FlowerError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}") from None
        if not answer.get("success", True):
            raise FlowerError(f"flwr {' '.join(arguments)}: {done.stdout}\n{self.link.tail()}")
        return answer

    def _flwr(self, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["flwr", *arguments],
            env=self.environment,
            executable=str(PROGRAMS / "flwr"),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _program(self, name: str, command: list[str], inside: tuple[str, ...] = ()) -> Program:
        words = [*inside, str(PROGRAMS / command[0]), *command[1:]]
        return Program(name, words, self.environment, self.folder / f"{name}.log")

    def close(self) -> None:
        """Stop everything; nothing that was started here outlives it."""
        for program in [*self.nodes, self.link]:
            if program.process is not None:
                program.process.terminate()
        for program in [*self.nodes, self.link]:
            program.stop()
        for proxy in self.proxies:
            proxy.close()
