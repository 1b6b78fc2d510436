"""The gate before a SuperLink, with Flower's own SuperLink behind it."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedsim[flower]'")

from tests.flower.federation import QUIET, ROOT, free_port


def own_address() -> str:
    """An address of this machine that is not loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, number = tmp_path_factory.mktemp("gate"), free_port()
    command = [sys.executable, "-P", str(ROOT / "server" / "gate.py"), "--insecure", "--host", "0.0.0.0"]
    env = {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(number)], env=env, stdout=log, stderr=log, cwd=folder)
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                assert ask("127.0.0.1", number, "/health", "GET") == 200
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    raise
                time.sleep(0.2)
        yield number
    finally:
        process.terminate()
        process.wait(15)


def ask(host: str, port: int, path: str, method: str = "POST", headers: dict[str, str] | None = None) -> int:
    link = http.client.HTTPConnection(host, port, timeout=10)
    try:
        link.request(method, path, b"", headers or {})
        return link.getresponse().status
    finally:
        link.close()


@pytest.mark.parametrize(
    "path", ["control/start-run", "control/register-node", "control/list-runs", "runtime/pull-task-input"]
)
def test_orders_are_taken_from_this_machine_alone(port: int, path: str) -> None:
    elsewhere = own_address()
    assert ask(elsewhere, port, f"/v1/{path}") == 403
    assert ask(elsewhere, port, f"/v1/{path}", headers={"X-Forwarded-For": "127.0.0.1"}) == 403
    assert ask("127.0.0.1", port, f"/v1/{path}") != 403


def test_nodes_and_health_checks_are_served(port: int) -> None:
    elsewhere = own_address()
    assert ask(elsewhere, port, "/health", "GET") == 200
    assert ask(elsewhere, port, "/docs", "GET") == 403
    assert ask(elsewhere, port, "/v1/fleet/../control/start-run") == 404  # paths are taken literally
    assert ask(elsewhere, port, "/v1/fleet/pull-messages") == ask("127.0.0.1", port, "/v1/fleet/pull-messages") != 403
