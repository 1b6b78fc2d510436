"""Flower's command line, which fedsim calls and never imports: what it says comes back as one line with the way out."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.errors import DeployError

SUPPORTED = ((1, 41), (1, 43))
"""Releases of Flower, from the first to before the second."""

STARTING = 60.0
"""Seconds that a SuperLink may take to start."""

SHARE = ("share", "fedsim", "app")

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flower would tell its makers of each run, ask them for news, and install an app's requirements again for each."""


def environment() -> dict[str, str]:
    """Of the processes that Flower starts: its commands are those beside this Python, and 127.0.0.1 needs no proxy."""
    own = dict(os.environ)
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    near = ",".join(filter(None, [own.get("NO_PROXY", own.get("no_proxy", "")), "127.0.0.1,localhost"]))
    return {**QUIET, **own, "PATH": path, "NO_PROXY": near, "no_proxy": near}


def app_folder() -> Path:
    """Where the Flower app is: in a checkout the checkout itself, else in the installation's share/fedsim/app.

    Raises DeployError where it is in neither.
    """
    home = Path(__file__).resolve().parents[2]
    listed = [file for file in distribution("fedsim").files or () if file.parts[-4:] == (*SHARE, "pyproject.toml")]
    # pip's list is wrong after --target, where the share folder is beside the package.
    for folder in (home, *(Path(str(file.locate())).resolve().parent for file in listed), home.joinpath(*SHARE)):
        if (folder / "server" / "app.py").is_file() and (folder / "pyproject.toml").is_file():
            return folder
    raise DeployError("this installation of fedsim has no Flower app; install it again with pip, or run in a checkout")


def check(ray: bool = False, command: bool = True) -> None:
    """Raise DeployError unless a Flower that fits is installed. ray, command: with its simulation, its command line."""
    extra = "flower-simulation" if ray else "flower"
    install = f"pip install 'fedsim[{extra}]'"
    try:
        found = version("flwr")
        if ray:
            version("ray")
    except PackageNotFoundError as error:
        raise DeployError(f"{error.name} is not installed for {sys.executable}; {install}") from None
    if not SUPPORTED[0] <= tuple(map(int, re.findall(r"\d+", found)[:2])) < SUPPORTED[1]:
        raise DeployError(f"flwr {found} is installed, expected 1.41 or 1.42; {install}")
    if command and not _command("flwr").is_file():
        raise DeployError(f"there is no flwr command beside {sys.executable}; {install} there")


class Flower:
    """One SuperLink, by the name of its connection in Flower's configuration. env: of Flower's commands."""

    def __init__(self, superlink: str, env: Mapping[str, str]) -> None:
        self.superlink, self.env = superlink, dict(env)

    def submit(self, config: Mapping[str, str], options: Sequence[str] = ()) -> str:
        """Start a run of the app; its number. Raises DeployError."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.toml"
            file.write_text(tomli_w.dumps(dict(config)), encoding="utf-8")
            said = self._call("run", str(app_folder()), self.superlink, "-c", str(file), *options)
        return str(said["run-id"])

    def status(self, number: str) -> tuple[str, str]:
        """``running``, ``finished:completed`` ... and what Flower says of a failure."""
        (run,) = self._call("list", self.superlink, "--run-id", number)["runs"]
        return str(run["status"]), str(run.get("status-details", ""))

    def stop(self, number: str) -> None:
        """Stop a run."""
        self._call("stop", number, self.superlink)

    def register(self, key: Path, name: str) -> bool:
        """Admit the node of a public key; False where it is known already. Raises DeployError."""
        try:
            self._call("supernode", "register", str(key), self.superlink, "--name", name)
        except DeployError as error:
            if "already in use" not in str(error):
                raise
            return False
        return True

    def _call(self, *arguments: str) -> dict[str, Any]:
        command = [str(_command("flwr")), *arguments, "--format", "json"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # nosec B603 # a list, no shell
        try:
            said: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            raise DeployError(f"`flwr {arguments[0]}` failed: {last_line(done.stderr or done.stdout)}") from None
        if not said.get("success"):
            raise DeployError(self._explained(str(said.get("error-message", ""))))
        return said

    def _explained(self, message: str) -> str:
        """The error message of a command in one line, with the way out."""
        home = Path(self.env.get("FLWR_HOME") or Path.home() / ".flwr")
        name, file = self.superlink, home / "config.toml"
        if "not found in the Flower configuration" in message:
            known = _known(file)
            return f"--superlink {name}: no such connection in {file}{known}; add [superlink.{name}] with its address"
        if "Connection to the SuperLink is unavailable" in message:
            address = re.search(r"Using SuperLink: \S+ \((.*?)\)", message)
            where = f" at {address[1]}" if address else ""
            return f"no SuperLink{where}; start `flower-superlink` there, or correct [superlink.{name}] in {file}"
        if "version" in message.lower() and "match" in message.lower():
            return f"SuperLink {name}: {last_line(message)}; install the same flwr on both"
        return f"SuperLink {name}: {last_line(message)}"


@contextmanager
def local_superlink() -> Iterator[Flower]:
    """A SuperLink for simulations on this machine that lives as long as the context, and shares nothing with others.

    Flower's own local one stays for ever, in the environment and with the Python of whoever needed one first.
    """
    with tempfile.TemporaryDirectory(prefix="fedsim-flower-") as home:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (Path(home) / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        env, log = environment() | {"FLWR_HOME": home}, Path(home) / "superlink.log"
        options = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port"]
        with log.open("wb") as output:
            process = subprocess.Popen(  # nosec B603 # a list, no shell
                [str(_command("flower-superlink")), *options, str(port)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for fedsim, which then ends this
            )
        try:
            _await(f"http://127.0.0.1:{port}/health", process, log)
            yield Flower("local", env)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    near, end = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < end:
        try:
            with near.open(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    said = last_line(log.read_text(errors="replace"))
    raise DeployError(f"Flower's SuperLink did not start within {STARTING:g} s: {said}")


def last_line(text: str) -> str:
    """The last line that says something.

    >>> last_line("Traceback:\\n  File\\nValueError: no\\n\\n")
    'ValueError: no'
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _command(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def _known(file: Path) -> str:
    """The connections that a configuration has."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except (OSError, ValueError):
        return ""
    names = [name for name, value in table.items() if isinstance(value, dict)]
    return f" (it has {', '.join(names)})" if names else ""
