"""Keys and certificates of a federation, as files: a certificate authority, the server's certificate, a key a node.

    authority/   ca.crt ca.key                      needed only to make the rest; kept away from every server
    public/      ca.crt node-0.pub node-1.pub ...   known to all: whom nodes trust, whom the server admits
    server/      server.crt server.key              the SuperLink's
    node-0/      node.key node.pub                  one node's, in OpenSSH's format

Curve P-384, which Flower asks of nodes' keys. A private key is its owner's alone to read (0600). What is there is
kept, but for a server's certificate that lacks a name, ends within a month or is another authority's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.checkpoint import write_whole
from fedsim.errors import DeployError

Key = ec.EllipticCurvePrivateKey
AUTHORITY = timedelta(days=3650)
SERVER = timedelta(days=825)
MONTH = timedelta(days=30)
CLOCKS = timedelta(minutes=5)
"""By how much clocks may differ: a certificate is valid from so long ago."""


def make(folder: Path, names: Sequence[str], nodes: int, now: datetime | None = None) -> list[Path]:
    """Make what is missing for ``nodes`` nodes and a server of these host names and addresses; the files that are new.

    Raises DeployError for files that are there and cannot be used.
    """
    now, made = now or datetime.now(UTC), list[Path]()
    key, certificate = _authority(folder, now, made)
    text = certificate.public_bytes(Encoding.PEM)
    if not _holds(folder / "public" / "ca.crt", text):
        _write(folder / "public" / "ca.crt", text, 0o644, made)
    _server(folder / "server", names, key, certificate, now, made)
    for number in range(nodes):
        place = folder / f"node-{number}"
        if not (place / "node.key").exists():
            _private(place / "node.key", ec.generate_private_key(ec.SECP384R1()), PrivateFormat.OpenSSH, made)
        public = _openssh(place / "node.key")
        for path in (place / "node.pub", folder / "public" / f"node-{number}.pub"):
            if not _holds(path, public):
                _write(path, public, 0o644, made)
    return made


def public_keys(folder: Path) -> list[Path]:
    """The nodes' public keys. Raises DeployError where there is none."""
    found = sorted((folder / "public").glob("*.pub"))
    if not found:
        raise DeployError(f"{folder / 'public'} has no node's key (*.pub); `fedsim certs --folder {folder}` makes them")
    return found


def _authority(folder: Path, now: datetime, made: list[Path]) -> tuple[Key, x509.Certificate]:
    place = folder / "authority"
    if (place / "ca.crt").exists():
        key = _pem_key(place / "ca.key")
        certificate = _certificate(place / "ca.crt")
        if certificate.public_key() != key.public_key():
            raise DeployError(f"{place}: ca.crt is not that of ca.key; put the right ones back, or delete {folder}")
        return key, certificate
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim authority")])
    builder = _builder(name, name, key, key, now, AUTHORITY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    certificate = builder.sign(key, hashes.SHA384())
    _private(place / "ca.key", key, PrivateFormat.PKCS8, made)
    _write(place / "ca.crt", certificate.public_bytes(Encoding.PEM), 0o644, made)
    return key, certificate


def _server(
    place: Path, names: Sequence[str], authority: Key, issuer: x509.Certificate, now: datetime, made: list[Path]
) -> None:
    wanted = [_name(name) for name in names]
    if (place / "server.key").exists() and (place / "server.crt").exists():
        found = _certificate(place / "server.crt")
        ours = _pem_key(place / "server.key").public_key() == found.public_key()
        known = _names(found)
        lasts = found.not_valid_after_utc - now > MONTH
        if ours and lasts and all(name in known for name in wanted) and _issued(found, issuer):
            return
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim server")])
    builder = _builder(subject, issuer.subject, key, authority, now, min(SERVER, issuer.not_valid_after_utc - now))
    builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    _private(place / "server.key", key, PrivateFormat.PKCS8, made)
    _write(place / "server.crt", builder.sign(authority, hashes.SHA384()).public_bytes(Encoding.PEM), 0o644, made)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, authority: Key, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCKS).not_valid_after(now + lasts)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.add_extension(identifier, critical=False)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise DeployError(f"--name {name!r}: expected a host name in ASCII, or an address") from None


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem_key(path: Path) -> Key:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, error) from None
    return _p384(path, key)


def _openssh(path: Path) -> bytes:
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, error) from None
    return _p384(path, key).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def _p384(path: Path, key: object) -> Key:
    if not isinstance(key, Key) or not isinstance(key.curve, ec.SECP384R1):
        raise _unusable(path, ValueError("not a private key of curve P-384"))
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> DeployError:
    why = error.strerror if isinstance(error, OSError) else error
    why = " ".join(str(why).split())
    return DeployError(f"{path}: {why}; put it back, or delete it and what was made with it")


def _private(path: Path, key: Key, format: PrivateFormat, made: list[Path]) -> None:
    _write(path, key.private_bytes(Encoding.PEM, format, NoEncryption()), 0o600, made)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.exists() and path.read_bytes() == content
    except OSError as error:
        raise _unusable(path, error) from None


def _write(path: Path, content: bytes, mode: int, made: list[Path]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.umask(0o777 & ~mode)  # from its first byte on
    try:
        path.with_name(path.name + ".new").unlink(missing_ok=True)  # may be another's, who would go on reading it
        write_whole(path, content)
    finally:
        os.umask(before)
    made.append(path)
