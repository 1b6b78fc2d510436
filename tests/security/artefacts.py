"""Hostile contents for any file or message, made here: none of them lies in the repository."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEEP = 20_000


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    def save(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)

    return _saved(save)


def _tar(marker: Path) -> bytes:
    def save(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as file:
            up = tarfile.TarInfo(f"../../../../../../..{marker}")
            up.size = 4
            file.addfile(up, io.BytesIO(b"here"))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)

    return _saved(save)


def anything(marker: Path) -> dict[str, bytes]:
    """Contents that no reader of any kind may take, by name. marker: appears when one of them is executed."""
    evil = Evil(marker)
    objects = np.array([evil], dtype=object)
    shell = f"touch '{marker}'"
    return {
        **{f"pickle, protocol {p}": pickle.dumps(evil, protocol=p) for p in range(6)},
        "torch.save": _saved(lambda stream: torch.save({"model": evil}, stream)),
        "torch.save, the old form": _saved(
            lambda stream: torch.save({"model": evil}, stream, _use_new_zipfile_serialization=False)
        ),
        "npy of objects": _saved(lambda stream: np.save(stream, objects, allow_pickle=True)),
        "npz of objects": _saved(lambda stream: np.savez(stream, model=objects)),
        "npy that announces a terabyte": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,), }"),
        "npy whose header is code": _npy(f"__import__('os').system({shell!r})"),
        "zip, names that climb": _zip({f"../../../../../../..{marker}": b"here", "/etc/cron.d/x": b"here"}),
        "zip bomb": _zip({"model": bytes(1 << 26)}),
        "tar, names that climb and a link": _tar(marker),
        "gzip bomb": gzip.compress(bytes(1 << 26)),
        "gzip cut short": gzip.compress(os.urandom(2000))[:1000],
        "yaml that calls": f'!!python/object/apply:os.system ["{shell}"]\n'.encode(),
        "python": f"__import__('os').system({shell!r})\n".encode(),
        "shell": f"#!/bin/sh\n{shell}\n".encode(),
        "xml with entities": b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>\n',
        "json, deep": b"[" * DEEP + b"]" * DEEP,
        "json, deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "json, endless number": b'{"status": ' + b"9" * 5000 + b"}\n",
        "NUL bytes": bytes(4096),
        "0xff": b"\xff" * 4096,
        "UTF-16": "algorithm = 'artemis'\n".encode("utf-16"),
        "latin-1": "größe = 1\n".encode("latin-1"),
        "terminal escapes": b"\x1b]0;owned\x07\x1b[2J = \x9b1m\n",
        "one line of a megabyte": b"a" * (1 << 20),
        "msgpack, deep": b"\x91" * DEEP,
        "msgpack, announces 4 GiB": b"\xdd\xff\xff\xff\xff",
    }


def _npy(header: str) -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header: JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(**changes: Any) -> dict[str, Any]:
    return {"__metadata__": {"fedsim": "1"}, "model": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def headers() -> dict[str, bytes]:
    """Damaged and lying headers of safetensors files."""
    eight, two = bytes(8), {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    plain = _one()
    return {
        "length 2^62": safetensors(plain, eight, 1 << 62),
        "length 2^64 - 1": safetensors(plain, eight, (1 << 64) - 1),
        "length beyond the file": safetensors(plain, eight, 4096),
        "length 0": safetensors(b"", eight, 0),
        "offsets that overlap": safetensors(plain | {"other": two}, eight),
        "offsets that fall": safetensors(_one(data_offsets=[8, 0]), eight),
        "negative offsets": safetensors(_one(data_offsets=[-8, 0]), eight),
        "offsets beyond the end": safetensors(_one(data_offsets=[0, 1 << 40]), eight),
        "a hole": safetensors(plain | {"other": {**two, "data_offsets": [16, 24]}}, bytes(24)),
        "a shape that overflows": safetensors(_one(shape=[1 << 32, 1 << 32]), eight),
        "a negative shape": safetensors(_one(shape=[-2]), eight),
        "a dtype NaN": safetensors(_one(dtype="NaN"), eight),
        "a dtype of objects": safetensors(_one(dtype="O"), eight),
        "a key twice": safetensors(
            json.dumps(plain)[:-1].encode() + b',"model":' + json.dumps(two).encode() + b"}", eight
        ),
        "metadata that is no text": safetensors(plain | {"__metadata__": {"fedsim": 1}}, eight),
        "no metadata": safetensors({"model": two}, eight),
        "another version": safetensors(plain | {"__metadata__": {"fedsim": "99"}}, eight),
        "a digest that is wrong": safetensors(
            plain | {"__metadata__": {"fedsim": "1", "round": "1", "turn": "1", "notes": "{}", "digest": "0" * 32}},
            eight,
        ),
        "a deep header": safetensors(b"[" * DEEP, eight),
        "a header that is not UTF-8": safetensors(b'{"\xff": 1}', eight),
        "a header that is a list": safetensors([plain], eight),
    }


TOML: dict[str, str] = {
    "arrays, deep": "seed = " + "[" * DEEP,
    "tables, deep": "rate = " + "{a=" * DEEP,
    "a deep key": "rate." + "a." * DEEP + "a = 1",
    "own options, deep": "rate = {rule = 'own', factory = 'a:b'}\nrate.options." + "a." * DEEP + "a = 1",
    "thousands of digits": "seed = " + "9" * 5000,
    "thousands of hexadecimal digits": "seed = 0x" + "f" * 6000,
    "a client for every grain of sand": "partition.clients = 0x" + "f" * 30,
    "NUL": "algorithm = 'arte\0mis'",
    "a key of a megabyte": "k" * (1 << 20) + " = 1",
    "a name of a megabyte": "algorithm = '" + "a" * (1 << 20) + "'",
    "not a number": "server.step = nan",
    "infinite": "deploy.deadline_s = inf",
    "a list of tables": "[[data]]\nsource = 'digits'",
    "a key twice": "seed = 1\nseed = 2",
    "a table that is a date": "data = 1979-05-27",
    "a source by path": "data.source = '../../etc/passwd'",
    "a recipe by path": "algorithm = '../../artemis'",
    "a device by path": "run.device = '../../dev/mem'",
    "terminal escapes in a key": '"\\u001b[2J\\u202e" = 1',
}
"""Texts that are no experiment."""
