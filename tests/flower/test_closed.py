"""The six that a deployment refuses, with Flower's own processes: plaintext, an unknown key, another authority, another
name, a node that was struck off, and a request that was recorded and sent again."""

from __future__ import annotations

import os
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedsim[flower]'")

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from fedsim.cli import identity
from fedsim.cli.flower import Flower
from server.gate import REMEMBERED, REPEATED, Served
from tests.flower.federation import PROGRAMS, QUIET, ROOT, Program, free_port
from tests.flower.recorder import HEAD_END, Recorder, status

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
"""Of the group of P-384's points."""


@dataclass
class Closed:
    """A SuperLink behind its gate, over TLS, that admits two keys. port: its own; theirs: a recorder's before it."""

    folder: Path
    port: int
    environment: dict[str, str]
    link: Program
    recorder: Recorder

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def node(self, name: str, *options: str, port: int = 0, host: str = "localhost") -> Program:
        """A SuperNode that has started, and tries twice."""
        command = [str(PROGRAMS / "flower-supernode"), "--superlink", f"{host}:{port or self.port}", *options]
        command += ["--port", str(free_port()), "--max-retries", "1"]
        node = Program(name, command, self.environment, self.folder / f"{name}.log")
        node.start()
        return node

    def options(self, key: str, authority: str = "keys") -> list[str]:
        """Of a node with this key, if any, that trusts this authority, or nobody and speaks plainly."""
        trust = (
            ["--root-certificates", str(self.folder / authority / "public" / "ca.crt")] if authority else ["--insecure"]
        )
        return [*trust, *(["--auth-supernode-private-key", str(self.folder / key)] if key else [])]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder, port = tmp_path_factory.mktemp("closed"), free_port()
    keys, others = folder / "keys", folder / "others"
    identity.make(keys, ["localhost"], 2)
    identity.make(others, ["localhost"], 1)
    path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(folder / "flwr")}
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink.here]\naddress = "localhost:{port}"\nroot-certificates = "{keys}/public/ca.crt"\n'
    )
    command = [sys.executable, "-P", str(ROOT / "server" / "gate.py"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ssl-ca-certfile", f"{keys}/public/ca.crt", "--ssl-certfile", f"{keys}/server/server.crt"]
    command += ["--ssl-keyfile", f"{keys}/server/server.key", "--enable-supernode-auth"]
    link = Program("superlink", command, environment, folder / "superlink.log")
    recorder = Recorder(keys, port)
    try:
        link.start()
        link.wait_for("Uvicorn running", 240)
        flower = Flower("here", environment)
        assert [flower.register(key, key.stem) for key in identity.public_keys(keys)] == [True, True]
        yield Closed(folder, port, environment, link, recorder)
    finally:
        link.stop()
        recorder.close()


STRANGERS = {
    "plaintext": ("", "", "localhost", "disconnected without sending a response"),
    "unknown key": ("others/node-0/node.key", "keys", "localhost", "[code: 2004] Failed to activate SuperNode"),
    "no key": ("", "keys", "localhost", "[code: 2001] SuperNode authentication is enabled"),
    "another authority": ("keys/node-0/node.key", "others", "localhost", "unable to get local issuer certificate"),
    "another name": ("keys/node-0/node.key", "keys", "127.0.0.1", "IP address mismatch"),
}
"""Key, authority that it trusts, where it believes the server to be, and what it is told."""


@pytest.fixture(scope="module")
def strangers(closed: Closed) -> Iterator[dict[str, Program]]:
    """All of them, started at once."""
    started: dict[str, Program] = {}
    try:
        for name, (key, authority, host, _) in STRANGERS.items():
            started[name] = closed.node(name, *closed.options(key, authority), host=host)
        yield started
    finally:
        for node in started.values():
            node.stop()


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_refused(strangers: dict[str, Program], name: str) -> None:
    node = strangers[name]
    assert node.process is not None
    assert node.process.wait(300) != 0
    said = " ".join(node.tail(1000).split())
    assert "Node ID" not in said
    assert STRANGERS[name][3] in said


@pytest.mark.slow
def test_a_node_that_is_struck_off_is_cut_and_stays_out(closed: Closed) -> None:
    flower = Flower("here", closed.environment)
    options = closed.options("keys/node-1/node.key")
    node = closed.node("struck-off", *options)
    try:
        node.wait_for("Node ID", 240)
        (listed,) = [one for one in flower._call("supernode", "list", "here")["nodes"] if one["status"] == "online"]
        flower._call("supernode", "unregister", str(listed["node-id"]), "here")
        assert node.process is not None
        began = time.monotonic()
        node.process.wait(300)  # its next request is refused, and it ends
        print(f"cut after {time.monotonic() - began:.1f} s")
    finally:
        node.stop()
    again = closed.node("again", *options)
    try:
        assert again.process is not None
        assert again.process.wait(300) != 0
        assert "[code: 2004] Failed to activate SuperNode" in again.tail()
    finally:
        again.stop()


def test_what_a_node_has_signed_is_served_once(closed: Closed) -> None:
    """Each request of a real node, recorded: not again, neither with another body nor with the signature's twin."""
    node = closed.node("recorded", *closed.options("keys/node-0/node.key"), port=closed.recorder.port)
    try:
        node.wait_for("Node ID", 240)
        limit = time.monotonic() + 240
        while len(closed.recorder.requests) < 4 and time.monotonic() < limit:
            time.sleep(0.2)
        recorded = list(closed.recorder.requests)
        assert len(recorded) >= 4
        assert {number for _, number in recorded} == {200}
        pull = next(request for request, _ in recorded if b"pull-messages" in request)
        elsewhere = pull.replace(b"/pull-messages", b"/deactivate-node", 1)
        for request in (*(request for request, _ in recorded), elsewhere, twin(pull)):
            answer = closed.recorder.say(request)
            assert (status(answer), answer.partition(HEAD_END)[2]) == (403, REPEATED)
    finally:
        node.stop()


def twin(request: bytes) -> bytes:
    """The same request with the other signature (r, n - s) that verifies as well as (r, s)."""
    name = b"flwr-signature: "
    before, _, rest = request.partition(name)
    old, end, after = rest.partition(b"\r\n")
    r, s = decode_dss_signature(b64decode(old))
    return before + name + b64encode(encode_dss_signature(r, ORDER - s)) + end + after


def test_what_cannot_be_sent_again_is_forgotten() -> None:
    """Memory is bounded by the requests of some minutes."""
    now = [0.0]
    served = Served(lambda: now[0])
    assert [served.first(bytes([i])) for i in (1, 2, 1)] == [True, True, False]
    now[0] = REMEMBERED
    assert not served.first(b"\x01")
    now[0] = 2 * REMEMBERED
    assert served.first(b"\x03")
    assert list(served.at) == [b"\x03"]
    served.forget(b"\x03")
    assert served.first(b"\x03")
