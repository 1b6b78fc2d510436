"""Keys and certificates of a federation: real handshakes with them, and files that are kept, or made again when due."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedsim[flower]'")

from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from typer.testing import CliRunner

from fedsim.cli import identity
from fedsim.cli.main import app
from fedsim.errors import DeployError

NAMES = ["superlink", "localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    identity.make(folder, NAMES, 2)
    return folder


def handshake(server: Path, authority: Path, name: str) -> str:
    """Over a socket pair; the protocol, or raises ssl.SSLError on the client's side."""
    ours, theirs = socket.socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.crt", server / "server.key")

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    asking = ssl.create_default_context(cafile=str(authority))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with asking.wrap_socket(ours, server_hostname=name) as link:
            return str(link.version())
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_nodes_trust_the_server_by_each_of_its_names(made: Path, name: str) -> None:
    assert handshake(made / "server", made / "public" / "ca.crt", name) == "TLSv1.3"


def test_no_other_name_and_no_other_authority_is_trusted(made: Path, tmp_path: Path) -> None:
    identity.make(tmp_path, NAMES, 0)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made / "server", made / "public" / "ca.crt", "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(made / "server", tmp_path / "public" / "ca.crt", "superlink")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tmp_path / "server", made / "public" / "ca.crt", "superlink")


def test_a_servers_certificate_vouches_for_nobody(made: Path, tmp_path: Path) -> None:
    """With the server's certificate in the place of an authority nothing is trusted."""
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made / "server", made / "server" / "server.crt", "elsewhere")


def test_nodes_keys_are_what_flower_takes(made: Path) -> None:
    keys = [load_ssh_private_key((made / f"node-{i}" / "node.key").read_bytes(), None) for i in range(2)]
    published = [load_ssh_public_key((made / "public" / f"node-{i}.pub").read_bytes()) for i in range(2)]
    assert [key.public_key() for key in keys] == published
    assert keys[0].public_key() != keys[1].public_key()
    for key in published:
        assert uses_nist_ec_curve(key)  # type: ignore[arg-type]


def test_private_keys_are_their_owners_alone(made: Path) -> None:
    private = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.key"))
    assert private == ["authority/ca.key", "node-0/node.key", "node-1/node.key", "server/server.key"]
    for path in private:
        assert stat.S_IMODE((made / path).stat().st_mode) == 0o600
    for folder in made.iterdir():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not any(b"PRIVATE" in path.read_bytes() for path in (made / "public").iterdir())


def test_what_is_there_is_kept(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    assert identity.make(folder, NAMES[:2], 1) == []
    new = identity.make(folder, NAMES, 3)
    assert {path.relative_to(folder).as_posix() for path in new} == {
        "node-2/node.key",
        "node-2/node.pub",
        "public/node-2.pub",
    }


SERVER = {"server/server.key", "server/server.crt"}


@pytest.mark.parametrize("days", [700, 800])
def test_a_servers_certificate_is_made_again_before_it_ends(made: Path, tmp_path: Path, days: int) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    new = identity.make(folder, NAMES, 2, datetime.now(UTC) + timedelta(days=days))
    assert {path.relative_to(folder).as_posix() for path in new} == (SERVER if days == 800 else set())


def test_a_new_name_or_authority_makes_a_new_certificate(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    new = identity.make(folder, [*NAMES, "fed.example"], 2)
    assert {path.relative_to(folder).as_posix() for path in new} == SERVER
    assert handshake(folder / "server", folder / "public" / "ca.crt", "fed.example")
    shutil.rmtree(folder / "authority")
    new = identity.make(folder, NAMES, 2)
    assert {path.relative_to(folder).as_posix() for path in new} == SERVER | {
        "authority/ca.key",
        "authority/ca.crt",
        "public/ca.crt",
    }
    assert handshake(folder / "server", folder / "public" / "ca.crt", "superlink")


@pytest.mark.parametrize("name", ["authority/ca.key", "authority/ca.crt", "server/server.crt", "node-0/node.key"])
def test_a_damaged_file_is_named(made: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (folder / name).write_bytes(b"-----BEGIN NOTHING-----\n")
    with pytest.raises(DeployError, match=f"{name}: .*put it back, or delete it") as raised:
        identity.make(folder, NAMES, 2)
    assert "\n" not in str(raised.value)


def test_an_authority_with_anothers_key_is_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    shutil.copy(folder / "server" / "server.key", folder / "authority" / "ca.key")
    with pytest.raises(DeployError, match=r"ca.crt is not that of ca.key"):
        identity.make(folder, NAMES, 2)


def test_the_command(tmp_path: Path) -> None:
    arguments = ["certs", "--folder", str(tmp_path / "x"), "--nodes", "1"]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert first.output.count("made ") == 8
    assert second.output == ""
    assert handshake(tmp_path / "x" / "server", tmp_path / "x" / "public" / "ca.crt", "localhost")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "fête"], "expected a host name in ASCII, or an address"),
        (["--register", "nowhere"], "has no node's key"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], expected: str) -> None:
    outcome = CliRunner().invoke(app, ["certs", "--folder", str(tmp_path), *arguments])
    assert isinstance(outcome.exception, DeployError)
    assert expected in str(outcome.exception)
