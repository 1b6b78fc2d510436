"""python -m tests.fuzz.bounded: what hostile inputs of at most 1 MiB cost, each in a process of its own.

Prints JSON lines: name, d, octets, mib (by how much the peak of resident memory rose), bound (2 x 4 d bytes + 16 MiB,
of one's own checkpoints + 32 MiB), ms (of the processor), allowed (20 ms + 5 ns d), outcome. The address space is
limited a little above the bound, so that what asks for more fails at once, and its outcome is no documented error.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from fedsim.compression.payload import LevelsLayout, ValuesLayout
from fedsim.ends.client import ClientEnd
from fedsim.ends.guard import Desk
from fedsim.ends.host import prepared
from fedsim.ends.part import whole
from fedsim.ends.server import ServerEnd
from fedsim.errors import FedsimError
from fedsim.experiment import Experiment
from fedsim.wire import Frame, Kind, coding, decode_frame, encode_frame, pack_messages
from fedsim.worker import worker_pb2
from tests.fuzz import ends, files
from tests.fuzz.wire import rows_of

MIB = 2**20
SLACK = 96 * MIB
"""Of address space: what is reserved but never touched."""

_OWN = 32 * MIB
"""For a file that its reader wrote itself: a tensor without numbers takes 1 kB, and its line in the file 60 bytes."""

_HEAD = Frame(Kind.UPLOAD, bytes(8), 3, 0, 0, bytes(8), b"")


class Hostile(NamedTuple):
    """An input, and who reads it. d: coordinates of the model; warm: the same with a small input; room: bytes allowed
    beside the model's."""

    name: str
    d: int
    read: Callable[[bytes], object]
    data: bytes
    warm: Callable[[], object]
    room: int = 16 * MIB


def _frame(body: bytes) -> bytes:
    head = _HEAD.kind, _HEAD.run, _HEAD.round, _HEAD.client, _HEAD.epoch, _HEAD.digest
    return encode_frame(Frame(*head, body))


def _decode(layout: LevelsLayout | ValuesLayout, data: bytes) -> object:
    return coding.decode([decode_frame(data, coding.longest(layout)).body], layout)


def _bodies(layout: LevelsLayout, room: int) -> Iterator[tuple[str, bytes]]:
    """Bodies as long as fits, whose bits claim as much as bits can."""
    norms = np.ones(layout.buckets, "<f4").tobytes()
    size = min(coding.longest(layout), room) - len(norms)
    octets = np.random.default_rng(1).bytes(size)
    for first in (0, 1, 60, 128, 200, 254):  # of the odds
        yield f"first byte {first}, zeros", norms + bytes([first]) + bytes(size - 1)
        yield f"first byte {first}, ones", norms + bytes([first]) + b"\xff" * (size - 1)
        yield f"first byte {first}, noise", norms + bytes([first]) + octets[1:]
        yield f"first byte {first}, short", norms + bytes([first]) + octets[:20]
    yield "a table of noise", norms + b"\xff" + octets[1:]
    yield "all ones", norms + b"\xff" * size
    yield "nothing", norms


def _codes() -> Iterator[Hostile]:
    layouts = [LevelsLayout(d, s, bucket) for d, s, bucket in _SHAPES]
    for layout in layouts:
        what = f"d = {layout.d}, s = {layout.levels}, buckets of {layout.bucket}"
        warm = LevelsLayout(50, layout.levels, 50)
        small = coding.encode(rows_of(warm, 1))
        for name, body in _bodies(layout, MIB - 40):
            yield Hostile(
                f"{what}: {name}",
                layout.d,
                partial(_decode, layout),
                _frame(body),
                partial(_decode, warm, _frame(small[-1])),
            )
    for layout_ in (ValuesLayout(262_134), ValuesLayout(131_067, torch.float64)):
        body = b"\xff" * coding.longest(layout_)
        warm_ = ValuesLayout(3, layout_.dtype)
        yield Hostile(
            f"values of {layout_.dtype}",
            layout_.d,
            partial(_decode, layout_),
            _frame(body),
            partial(_decode, warm_, _frame(b"\0" * coding.longest(warm_))),
        )
    tiny = LevelsLayout(1000, 1, 1000)
    for length in (0, 2**31, 2**32 - 1):
        data = _frame(b"x" * (MIB - 40))
        data = data[:32] + struct.pack("<I", length) + data[36:]
        yield Hostile(f"a header that announces {length} bytes", 1000, partial(_decode, tiny), data, int)


_SHAPES = [(1000, 1, 1000), (200_000, 1, 1), (200_000, 4, 64), (1_000_000, 16, 1_000_000), (5_000_000, 1, 5_000_000)]
_SHAPES += [(10_000_000, 1, 10_000_000), (10_000_000, 32_768, 10_000_000)]


class Ends:
    """A client and a server of a model that just fits into a frame."""

    def __init__(self, hidden: int) -> None:
        experiment = Experiment.of(
            task={"kind": "mlp", "hidden": [hidden]},
            partition={"clients": 3},
            participation={"scheme": "full"},
            server={"step": 0.01},
        )
        self.setup = prepared(experiment.toml())
        self.server, self.client = ServerEnd(self.setup), ClientEnd(self.setup, 0)
        (self.model,) = self.server.call(0)
        self.client.hear(self.model)
        self.reply = self.client.answer()

    def frame(self, kind: Kind, body: bytes, round_: int = 0) -> bytes:
        return encode_frame(Frame(kind, self.setup.run, round_, 0, 0, bytes(8), body))

    def judge(self, data: bytes) -> None:
        desk = Desk(self.setup, 0, frozenset({0}), self.server.state.store.end, self.server._held)
        accepted, rejections = desk.judge([(0, [data])])
        if accepted is None:
            raise FedsimError(rejections[0].reason)

    def hostile(self) -> Iterator[Hostile]:
        d, hear, limit = self.setup.task.dim, self.client.hear, coding.longest(whole(self.setup))
        warm = partial(self.client.hear, self.model)
        for each, count in ((0, 10**9), (1, 10**9), (2, 10**9), (4, 10**9), (5, 10**9)):
            part = pack_messages([bytes(each)])
            body = part * min(count, min(limit, MIB - 40) // len(part))
            for far in (2**32 - 1, 1):
                data = self.frame(Kind.UPDATES, body, far)
                yield Hostile(f"updates of {each} bytes, round {far}", d, hear, data, warm)
        for prefix in (b"\xff\xff\xff\xff\x0f", b"\x80" * 5, b"\x80\x80\x80\x80\x01"):
            body = prefix + bytes(min(limit, MIB - 40) - 5)
            yield Hostile(f"an update that announces {prefix.hex()}", d, hear, self.frame(Kind.UPDATES, body, 9), warm)
        for kind in (Kind.MODEL, Kind.MEMORY, Kind.UPLOAD, Kind.REFRESH):
            yield Hostile(f"{kind.name} of NaN", d, hear, self.frame(kind, b"\xff" * limit), warm)
        layout = self.setup.method.up.layout(d)
        assert isinstance(layout, LevelsLayout)
        fine = partial(self.judge, self.reply[0])
        for name, body in _bodies(layout, MIB - 40):
            yield Hostile(f"a reply: {name}", d, self.judge, self.frame(Kind.UPLOAD, body), fine)


def _others() -> Iterator[Hostile]:
    head, d = b"\x93\x01", 12
    seeds = ends.DRAWER.case.seeds
    drawers = {
        "an array of 2^32": b"\xdd\xff\xff\xff\xff" + bytes(100),
        "a map of 2^32": head + b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * 100,
        "a map of 2^32 nothings": head + b"\xdf\xff\xff\xff\xff" + b"\xa0\xc0" * (MIB // 2 - 10),
        "bytes of 2^32": head + b"\x80\x81\xa1a\x93\xa1b\x90\xc6\xff\xff\xff\xff",
        "a string of 2^32": head + b"\xdb\xff\xff\xff\xff",
        "arrays in arrays": head + b"\x81\xa4held" + b"\x91" * (MIB - 10),
        "arrays of 2^32 in arrays": head + b"\x81\xa4held" + b"\xdd\xff\xff\xff\xff" * (MIB // 5 - 10),
        "small notes": head
        + b"\xdf"
        + struct.pack(">I", 200_000)
        + b"".join(b"\xa3" + b"%03x" % (i % 4096) + b"\x01" for i in range(200_000))
        + b"\x80",
        "a list as notes": head + b"\x81\xa4held\xdd" + struct.pack(">I", MIB - 20) + b"\x01" * (MIB - 20) + b"\x80",
        "shapes": msgspec.msgpack.encode((1, {}, {"model": ("<f4", (0,) * (MIB - 100), b"")})),
        "a large shape": msgspec.msgpack.encode((1, {}, {"model": ("<f4", (2**40, 0), b"")})),
        "a long type": msgspec.msgpack.encode((1, {}, {"model": ("f4," * (MIB // 3 - 100), (1,), b"")})),
        "a wide type": msgspec.msgpack.encode((1, {}, {"model": ("V2147483647", (1,), b"x")})),
    }
    for name, data in drawers.items():
        yield Hostile(f"a drawer, {name}", d, ends.DRAWER.case.check, data, partial(ends.DRAWER.case.check, seeds[0]))
    errand = ends.ERRAND.case
    for name, data in {
        "empty frames": b"\x12\x00" * (MIB // 2),
        "one frame of 2^31": b"\x12\xff\xff\xff\xff\x07" + bytes(100),
        "groups": b"\x0b" * MIB,
        "brackets": _errand(b"a=" + b"[" * (MIB - 10)),
        "a dotted key": _errand(b"a." * (MIB // 2 - 10) + b"a=1"),
        "a dotted key of 60 kB": _errand(b"a." * 30_000 + b"a=1"),
        "dotted keys of 8 parts": _errand(b"".join(b"a.b.c.d.e.f.g.h%d=1\n" % i for i in range(3000))),
        "dotted keys of 64 parts": _errand(b"".join(b"a." * 63 + b"h%d=1\n" % i for i in range(480))),
        "tables": _errand(b"".join(b"[a%d]\n" % i for i in range(8000))),
        "a table again and again": _errand(b"[[a.a]]\n" * 8000),
        "a long number": _errand(b"a=" + b"9" * 65_000),
        "a list": _errand(b"task.hidden=[" + b"1," * 32_000 + b"]"),
        "quotes": _errand(b"'.\"" * 20_000),
        "brackets and quotes": _errand(b'["' * 30_000),
        "escapes": _errand(b'a="' + b"\\U0010ffff" * 6000 + b'"'),
    }.items():
        yield Hostile(f"an errand, {name}", d, errand.check, data, partial(errand.check, errand.seeds[0]))
    slots, check = files.CHECKPOINT.case.seeds, files.CHECKPOINT.case.check
    entry = b'"%05d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    for name, data in {
        "a header of 2^63": struct.pack("<Q", 2**63 - 1) + slots[0][8:],
        "a header of 2^32": struct.pack("<Q", 2**32) + slots[0][8:],
        "a header of 99 MB": struct.pack("<Q", 99_000_000) + slots[0][8:],
        "blanks": struct.pack("<Q", MIB - 8) + b" " * (MIB - 8),
        "brackets": struct.pack("<Q", MIB - 8) + b"[" * (MIB - 8),
        "braces": struct.pack("<Q", MIB - 10) + b'{"a":' * ((MIB - 10) // 5),
        "empty tensors": _slot(b"".join(entry % i for i in range(17_000))),
        "a tensor of 2^62": _slot(b'"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]},'),
        "a tensor of 0 x 2^62": _slot(b'"a":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]},'),
        "many sizes": _slot(b'"a":{"dtype":"F32","shape":[' + b"1," * 200_000 + b'0],"data_offsets":[0,0]},'),
        "notes": _slot(b"", b'{\\"a\\":' * 100_000),
    }.items():
        yield Hostile(f"a checkpoint, {name}", d, check, data, partial(check, slots[0]), _OWN)
    idx = files.IDX.case
    for name, data in {
        "2^31 announced": bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**16, 2**15, 1) + bytes(MIB - 16),
        "a gzip bomb": gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 10, 10, 10) + bytes(2**28), mtime=0),
    }.items():
        yield Hostile(f"an idx file, {name}", d, idx.check, data, partial(idx.check, idx.seeds[0]))


def _slot(entries: bytes, notes: bytes = b"{}") -> bytes:
    told = b'"__metadata__":{"fedsim":"1","turn":"0","round":"1","digest":"0","notes":"' + notes + b'"}'
    header = b"{" + entries + told + b"}"
    return struct.pack("<Q", len(header)) + header


def _errand(text: bytes) -> bytes:
    found: bytes = worker_pb2.Errand(experiment=text.decode()).SerializeToString()
    return found


def corpus() -> Iterator[Hostile]:
    """All of it."""
    yield from _codes()
    yield from Ends(3494).hostile()
    yield from _others()


def _kib(field: str) -> int:
    with open("/proc/self/status") as file:
        return int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1])  # type: ignore[index]


def cost(one: Hostile) -> dict[str, object]:
    """What an input costs, in this process; which is spoilt for others."""
    bound = 8 * one.d + one.room
    limit = 1024 * _kib("VmSize") + bound + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before, start = _kib("VmRSS"), time.process_time()
    try:
        one.read(one.data)
        outcome = "accepted"
    except Exception as error:
        outcome = type(error).__name__
    took = time.process_time() - start
    return {
        "name": one.name,
        "d": one.d,
        "octets": len(one.data),
        "mib": (_kib("VmHWM") - before) / 1024,
        "bound": bound / MIB,
        "ms": 1e3 * took,
        "allowed": 20 + 5e-6 * one.d,
        "outcome": outcome,
    }


def apart(one: Hostile) -> dict[str, object]:
    """As ``cost``, in a process that ends with it."""
    there, here = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(here, json.dumps(cost(one)).encode())
        finally:
            os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    found: dict[str, object] = json.loads(told) if told else {"name": one.name, "outcome": f"killed, status {status}"}
    return found


def main() -> None:
    """Print what each costs."""
    logging.disable(logging.CRITICAL)
    for one in corpus():
        assert len(one.data) <= MIB, one.name
        one.warm()
        print(json.dumps(apart(one)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
