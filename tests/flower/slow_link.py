"""A slow link between this machine's network and a network namespace of its own: two TUN devices and a thread.

    with slow_link() as link:                        # needs root; link.here, link.there: its addresses
        subprocess.Popen([*link.inside, "command"])  # starts it in the namespace
        link.fault = Fault(rate=1e6, delay=0.2, loss=0.05)
        link.fault = Fault(cut=True)                 # until another is set

Each way is a queue of QUEUE bytes that is emptied at the rate, then the delay, or loss. Bytes are those of IP packets.
TCP is CUBIC, Linux's default, whatever this machine's own is.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
QUEUE = 100_000
TCP = 6
SAID = 64
WRAP = 1 << 32


@dataclass(frozen=True)
class Fault:
    """rate: bit/s, 0: no limit. delay: seconds each way. loss: a probability. cut: nothing passes.

    up: another rate from the namespace; 0: the same.
    """

    rate: float = 0.0
    delay: float = 0.0
    loss: float = 0.0
    cut: bool = False
    up: float = 0.0


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that left the queue. start, end: time.time() of its first and last bit; came, due: when it was handed
    over, and when it is at the other end. data, fresh: bytes of TCP's. port: in the namespace; said: TCP's first bytes.
    """

    start: float
    end: float
    octets: int
    data: int
    fresh: int
    arrived: bool
    came: float
    due: float
    port: int
    said: bytes


@dataclass
class Way:
    """From one device to the other. dropped: packets for which the queue had no room, or that met a cut."""

    packets: list[Packet] = field(default_factory=list)
    dropped: int = 0
    free: float = 0.0
    newest: dict[bytes, int] = field(default_factory=dict)

    def fresh(self, packet: bytes) -> tuple[int, int]:
        """TCP's bytes in an IPv4 packet, and those of them that no packet of its connection has carried yet."""
        head = 4 * (packet[0] & 15)
        if packet[0] >> 4 != 4 or packet[9] != TCP:
            return 0, 0
        sequence = struct.unpack_from("!I", packet, head + 4)[0]
        data = len(packet) - head - 4 * (packet[head + 12] >> 4)
        flow, end = packet[12:20] + packet[head : head + 4], sequence + data
        if packet[head + 13] & 2:  # SYN: a new connection
            self.newest.pop(flow, None)
        ahead = (end - self.newest.get(flow, sequence) + WRAP // 2) % WRAP - WRAP // 2
        if ahead >= 0:
            self.newest[flow] = end % WRAP
        return data, max(0, min(data, ahead))


def heard(packet: bytes, there: bool) -> tuple[int, bytes]:
    """Of a packet of TCP over IPv4: the port in the namespace, whence it comes if ``there``, and SAID bytes of data."""
    if packet[0] >> 4 != 4 or packet[9] != TCP:
        return 0, b""
    head = 4 * (packet[0] & 15)
    ports = struct.unpack_from("!HH", packet, head)
    data = head + 4 * (packet[head + 12] >> 4)
    return ports[0 if there else 1], packet[data : data + SAID]


@dataclass
class Link:
    """up: from the namespace to this machine. behind: seconds by which a packet was delivered too late, at most."""

    here: str
    there: str
    inside: tuple[str, ...]
    fault: Fault = Fault()
    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)
    behind: float = 0.0

    def serve(self, here: int, there: int, over: threading.Event) -> None:
        """Move packets until it is over, before all else that this machine does: a link does not slow down with it."""
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # of this thread alone
        draw, order, flying = random.Random(1), 0, list[tuple[float, int, int, bytes]]()
        ways = {there: (self.up, here), here: (self.down, there)}
        while not over.is_set():
            wait = min(0.2, max(0.0, flying[0][0] - time.time())) if flying else 0.2
            for source in select.select(list(ways), [], [], wait)[0]:
                packet, (way, sink), fault, now = os.read(source, 65536), ways[source], self.fault, time.time()
                start, rate = max(now, way.free), (fault.up if way is self.up else 0.0) or fault.rate
                if fault.cut or (start - now) * rate / 8 + len(packet) > QUEUE:
                    way.dropped += 1
                    continue
                way.free = start + 8 * len(packet) / rate if rate else now
                arrives, order = draw.random() >= fault.loss, order + 1
                due = way.free + fault.delay
                port, said = heard(packet, there=way is self.up)
                way.packets.append(
                    Packet(start, way.free, len(packet), *way.fresh(packet), arrives, now, due, port, said)
                )
                if arrives:
                    heapq.heappush(flying, (due, order, sink, packet))
            while flying and flying[0][0] <= time.time():
                due, _, sink, packet = heapq.heappop(flying)
                os.write(sink, packet)
                self.behind = max(self.behind, time.time() - due)


@contextmanager
def slow_link(number: int = 0) -> Iterator[Link]:
    """A namespace and both devices; gone in the end. number: tells the links of a process apart.

    Raises OSError, CalledProcessError without the rights.
    """
    name, net = f"fs{os.getpid()}-{number}", f"198.51.100.{4 * ((os.getpid() + number) % 64)}".rpartition(".")
    here, there = (f"{net[0]}.{int(net[2]) + i}" for i in (1, 2))
    subprocess.run(["ip", "netns", "add", name], check=True)
    over, ends, threads = threading.Event(), list[int](), list[threading.Thread]()
    try:
        ends = [_device(name, ""), _device(name, name)]
        for words, mine, other in (((), here, there), (("-n", name), there, here)):
            subprocess.run(["ip", *words, "addr", "add", mine, "peer", other, "dev", name], check=True)
            subprocess.run(["ip", *words, "link", "set", name, "up"], check=True)
            path = ["route", "change", other, "dev", name, "src", mine, "congctl", "cubic"]
            subprocess.run(["ip", *words, *path], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        link = Link(here, there, ("ip", "netns", "exec", name))
        threads = [threading.Thread(target=link.serve, args=(*ends, over))]
        threads[0].start()
        yield link
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for end in ends:
            os.close(end)
        subprocess.run(["ip", "netns", "del", name], check=True)


def _device(name: str, space: str) -> int:
    """Open a TUN device in a namespace, by a thread that enters it and ends; "": in this one."""
    made: list[int] = []

    def make() -> None:
        if space:
            where = os.open(f"/run/netns/{space}", os.O_RDONLY)
            entered = ctypes.CDLL(None).setns(where, CLONE_NEWNET)
            os.close(where)
            if entered:
                return
        made.append(os.open("/dev/net/tun", os.O_RDWR))
        fcntl.ioctl(made[0], TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise PermissionError(f"cannot enter the network namespace {space}")
    return made[0]
