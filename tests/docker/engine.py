"""A container engine for tests: one that runs already, or a Docker engine of our own for as long as the tests last.

Our own (root, Debian's docker.io) leaves the machine's network as it is: no rules, no forwarding, no bridge but those
of the tests' own networks. There ``python:3.11-slim`` is a STAND-IN made of Debian packages (mmdebstrap), so that no
registry is needed: the Dockerfiles' own steps are what is proven, not the registry's image.

    FEDSIM_BASE=file.tar      where the stand-in is kept from one time to the next
    FEDSIM_IMAGES=tag         images that the running engine has already: none are built
    PIP_FIND_LINKS=folder     wheels (torch's CPU build, say), served to builds on loopback
"""

from __future__ import annotations

import ctypes
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
BASE = "python:3.11-slim"
SIDE = ["mmdebstrap", "--quiet", "--format=tar", "--variant=minbase", "--mode=root"]
HOOKS = (
    'chroot "$1" python3 -m venv --symlinks /usr/local',
    'chroot "$1" ln -sf pip3 /usr/local/bin/pip',
    'test ! -f /etc/pip.conf || cp /etc/pip.conf "$1/etc/pip.conf"',
    'cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"',
)
SETTINGS = (
    "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8",
    'CMD ["python3"]',
)


class EngineError(AssertionError):
    """A command of the engine failed; the message is the end of what it said."""


def composer() -> str | None:
    """Docker Compose, beside this Python or on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return shutil.which("docker-compose", path=path)


def running() -> bool:
    """Whether an engine answers already."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return shutil.which("docker") is not None and subprocess.run(command, capture_output=True).returncode == 0


def obstacle() -> str:
    """Why there can be no engine; empty if there can."""
    if composer() is None:
        return "no docker-compose: pip install 'fedsim[dev]'"
    if running():
        return ""
    if os.geteuid() != 0:
        return "no container engine runs, and only root can start one"
    missing = [name for name in ("docker", "dockerd", "iptables", "mmdebstrap") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install --no-install-recommends docker.io iptables mmdebstrap"
    return ""


@dataclass
class Engine:
    """An engine that runs. environment: for its clients; ours: whether it was started here."""

    work: Path
    environment: dict[str, str] = field(default_factory=dict)
    ours: bool = False

    def docker(self, *arguments: str, seconds: float = 60.0, check: bool = True) -> str:
        """What a command prints. Raises EngineError when it fails."""
        return self.call(["docker", *arguments], seconds, check)

    def call(self, command: Sequence[str], seconds: float, check: bool = True) -> str:
        """The same of any command."""
        done = subprocess.run(
            list(command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise EngineError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    @contextmanager
    def output(self, *arguments: str) -> Iterator[IO[bytes]]:
        """What a command says, as it says it. Raises EngineError when it fails."""
        with subprocess.Popen(["docker", *arguments], env=self.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
        if process.returncode:
            raise EngineError(f"docker {' '.join(arguments)}: status {process.returncode}")

    def build(self, part: str, tag: str, wheels: str = "") -> float:
        """Build docker/PART.Dockerfile; seconds that it took. wheels: where pip looks first, an address."""
        began = time.monotonic()
        given = ["--build-arg", f"PIP_FIND_LINKS={wheels}", "--build-arg", "TORCH_INDEX="] if wheels else []
        network = ["--network=host"] if self.ours else []
        file = str(ROOT / "docker" / f"{part}.Dockerfile")
        self.docker("build", "-q", *network, *given, "-f", file, "-t", tag, str(ROOT), seconds=1800.0)
        return time.monotonic() - began


@contextmanager
def engine(work: Path) -> Iterator[Engine]:
    """An engine; nothing that was started here is left afterwards, whatever happened."""
    if running():
        yield Engine(work, dict(os.environ))
        return
    own = {"DOCKER_HOST": f"unix://{work}/docker.sock", "DOCKER_CONFIG": str(work / "config"), "DOCKER_BUILDKIT": "0"}
    here = Engine(work, {**os.environ, **own}, ours=True)
    with (work / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("dockerd", "--host", own["DOCKER_HOST"], "--pidfile", str(work / "docker.pid")),
                *("--data-root", str(work / "data"), "--exec-root", str(work / "exec")),
                *("--bridge=none", "--iptables=false", "--ip-forward=false"),
                *("--default-address-pool", "base=198.19.0.0/16,size=24"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        _wait(here, process)
        _stand_in(here)
        yield here
    finally:
        with suppress(EngineError, subprocess.TimeoutExpired):
            if names := here.docker("ps", "-aq", check=False).split():
                here.docker("rm", "-f", *names, seconds=120.0, check=False)
            here.docker("network", "prune", "-f", check=False)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for place in (work / "exec" / "netns").glob("*"):
            subprocess.run(["umount", str(place)], capture_output=True, check=False)
        for name in ("data", "exec"):
            shutil.rmtree(work / name, ignore_errors=True)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: containers are stopped, also when tests are killed


def _wait(here: Engine, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60.0
    while not here.docker("version", "--format", "{{.Server.Version}}", check=False).strip():
        if process.poll() is not None or time.monotonic() > limit:
            raise EngineError((here.work / "dockerd.log").read_text(errors="replace")[-2000:])
        time.sleep(0.25)


def _stand_in(here: Engine) -> None:
    base = Path(os.environ.get("FEDSIM_BASE") or here.work / "base.tar")
    if not base.exists():
        part = base.with_name(base.name + ".part")
        paths = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        hooks = [f"--customize-hook={hook}" for hook in HOOKS]
        packages = "--include=python3,python3-venv,ca-certificates"
        sources = "/etc/apt/sources.list.d/debian.sources"
        here.call([*SIDE, packages, *paths, *hooks, "bookworm", str(part), sources], 900.0)
        part.replace(base)
    changes = [option for setting in SETTINGS for option in ("-c", setting)]
    here.docker("import", *changes, str(base), BASE, seconds=300.0)


@contextmanager
def wheels() -> Iterator[str]:
    """The folder of wheels at an address on loopback; empty where there is none. Layers are kept by it."""
    folder = os.environ.get("PIP_FIND_LINKS", "")
    if not folder or not Path(folder).is_dir():
        yield ""
        return

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Project:
    """A compose file of docker/ under a name of its own. environment: for its variables; overrides: more files."""

    engine: Engine
    name: str
    environment: dict[str, str]
    file: str = "compose.yaml"
    overrides: tuple[Path, ...] = ()

    def compose(self, *arguments: str, seconds: float = 300.0, check: bool = True) -> str:
        """What a command of Compose prints. Raises EngineError when it fails."""
        program = composer()
        assert program is not None
        files = [option for file in (ROOT / "docker" / self.file, *self.overrides) for option in ("-f", str(file))]
        command = [program, "-p", self.name, *files, *arguments]
        given = Engine(self.engine.work, {**self.engine.environment, **self.environment})
        return given.call(command, seconds, check)

    def container(self, service: str) -> str:
        """The engine's name of a service's container."""
        return f"{self.name}-{service}-1"

    def state(self, service: str) -> dict[str, object]:
        """Status, Pid, ExitCode, ... of a service's container."""
        found: dict[str, object] = json.loads(
            self.engine.docker("inspect", "-f", "{{json .State}}", self.container(service))
        )
        return found

    def wait(self, service: str, seconds: float) -> None:
        """Until a one-shot service has ended well. Raises EngineError with the logs when it has not."""
        limit = time.monotonic() + seconds
        while (state := self.state(service))["Status"] != "exited" or state["ExitCode"] != 0:
            if time.monotonic() > limit:
                logs = self.compose("logs", "--no-color", "--tail", "15", check=False)
                raise EngineError(f"{service} is {state} after {seconds} s:\n{logs[-6000:]}")
            time.sleep(1.0)

    def read(self, pattern: str) -> str:
        """Files below /runs."""
        return self.compose("exec", "-T", "superlink", "sh", "-c", f"cat /runs/{pattern}")

    def kill(self, service: str) -> None:
        """As when its processes die by themselves: SIGKILL from outside, which the engine takes for a crash."""
        os.kill(int(str(self.state(service)["Pid"])), 9)

    def close(self) -> None:
        """Remove all of it."""
        self.compose("--profile", "*", "down", "-v", "-t", "2", "--remove-orphans", seconds=180.0, check=False)
