"""The proxy counts what passes, in both directions, and can hold it up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.flower.proxy import Proxy, Traffic


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers every byte with two."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stopped = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data + data)

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                continue
            connection.settimeout(10)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    stopped.set()
    thread.join()
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    made = Proxy(echo)
    yield made
    made.close()


def ask(port: int, data: bytes) -> bytes:
    """What comes back for data, to the end of the stream."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        threading.Thread(target=tell, args=(connection, data)).start()
        found = b""
        while piece := connection.recv(65_536):
            found += piece
    return found


def tell(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def test_every_byte_passes_and_is_counted_each_way(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4000
    answer = ask(proxy.port, data)
    assert len(answer) == 2 * len(data)
    assert proxy.traffic() == Traffic(len(data), 2 * len(data), 1)


def test_traffic_is_told_apart_by_time(proxy: Proxy) -> None:
    ask(proxy.port, b"poll")
    between = time.time()
    ask(proxy.port, b"a round")
    ask(proxy.port, b"of two")
    assert proxy.traffic(until=between) == Traffic(4, 8, 1)
    assert proxy.traffic(between) == Traffic(13, 26, 2)


def test_cut_resets_what_is_open_and_what_comes_until_mended(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(b"x")
        assert connection.recv(2) == b"xx"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert not gets_through(proxy)
    proxy.mend()
    assert gets_through(proxy)


def gets_through(proxy: Proxy) -> bool:
    try:
        return ask(proxy.port, b"y") == b"yy"
    except OSError:
        return False


def test_delay_and_rate_hold_bytes_up(proxy: Proxy) -> None:
    proxy.delay = 0.1
    began = time.monotonic()
    assert ask(proxy.port, b"z") == b"zz"
    assert time.monotonic() - began >= 0.2
    proxy.delay, proxy.rate = 0.0, 100_000.0
    began = time.monotonic()
    assert len(ask(proxy.port, bytes(20_000))) == 40_000
    assert time.monotonic() - began >= 0.4


def test_a_target_that_does_not_listen_resets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as vanished:
        target = vanished.getsockname()[1]
    proxy = Proxy(target)
    try:
        assert not gets_through(proxy)
    finally:
        proxy.close()
