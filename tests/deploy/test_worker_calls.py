"""Relay and worker over a real socket, around hosts that answer, fail or take their time: what the caller is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedsim import errors
from fedsim.ends.answer import Answer
from fedsim.errors import CheckpointError, ConfigError, DataError, FedsimError, WorkerError
from fedsim.worker import protocol, relay, worker_pb2
from fedsim.worker.protocol import LIMIT
from fedsim.worker.server import Host, run, serve

Refused = Callable[..., Any]


class Playing:
    """A host that does what a function says."""

    def __init__(self, does: Callable[[str, Sequence[bytes]], Answer]) -> None:
        self.does = does

    def play(self, experiment: str, frames: Sequence[bytes]) -> Answer:
        return self.does(experiment, frames)


def echo(experiment: str, frames: Sequence[bytes]) -> Answer:
    return Answer(((3, (experiment.encode(), *frames)),), ((2**32 - 2, "no data, sorry"),))


class Worker:
    """The server in a thread of this process."""

    def __init__(self, path: Path) -> None:
        self.path, self.address = path, f"unix:{path}"

    def start(self, host: Host, limit: int = LIMIT, grace: float = 1.0) -> None:
        started = threading.Event()
        self.ended: bool | BaseException | None = None

        async def main() -> bool:
            self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
            return await serve(host, self.path, started.set, self.stopped, limit, grace)

        def work() -> None:
            try:
                self.ended = asyncio.run(main())
            except FedsimError as error:
                self.ended = error
            finally:
                started.set()

        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.stopped.set)
            self.thread.join(10)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path / "w.sock")
    yield worker
    worker.stop()


def test_an_answer_arrives_as_it_left(worker: Worker) -> None:
    """Empty frames, all bytes, text beyond ASCII; and no frames at all."""
    worker.start(Playing(echo))
    frames = [b"", bytes(range(256)), b"\0" * 1000]
    answer = relay.play(worker.address, "seed = 1 # ∂", frames, timeout=60)
    assert answer == echo("seed = 1 # ∂", frames)
    assert relay.play(worker.address, "", [], timeout=60) == echo("", [])
    assert worker.path.stat().st_mode & 0o777 == 0o600
    worker.stop()
    assert worker.ended is True
    assert not worker.path.exists()


def test_a_path_with_spaces_and_signs(tmp_path: Path) -> None:
    folder = tmp_path / "my % größe ?#"
    folder.mkdir()
    worker = Worker(folder / "w.sock")
    worker.start(Playing(echo))
    assert worker.path.is_socket()
    assert relay.play(worker.address, "", [b"1"], timeout=60) == echo("", [b"1"])
    worker.stop()


def test_one_errand_at_a_time_in_one_thread(worker: Worker) -> None:
    busy, threads, most = threading.Semaphore(1), set(), []

    def alone(experiment: str, frames: Sequence[bytes]) -> Answer:
        most.append(busy.acquire(blocking=False))
        threads.add(threading.get_ident())
        time.sleep(0.05)
        busy.release()
        return echo(experiment, frames)

    worker.start(Playing(alone))
    with ThreadPoolExecutor(6) as callers:
        calls = [callers.submit(relay.play, worker.address, str(i), [bytes([i])], 20) for i in range(6)]
        assert [call.result() for call in calls] == [echo(str(i), [bytes([i])]) for i in range(6)]
    assert most == [True] * 6
    assert len(threads) == 1


def test_an_errand_whose_caller_has_gone_is_not_begun(
    worker: Worker, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    go, begun = threading.Event(), []

    def slow(experiment: str, frames: Sequence[bytes]) -> Answer:
        begun.append(experiment)
        assert go.wait(10)
        return echo(experiment, frames)

    worker.start(Playing(slow))
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(relay.play, worker.address, "first", [], 20)
        while not begun:
            time.sleep(0.001)
        with refused(WorkerError, f"unix:{worker.path} did not answer within 0.3 s", "allow more time"):
            relay.play(worker.address, "second", [], timeout=0.3)
        time.sleep(0.2)  # the worker counts from when the call arrived
        go.set()
        first.result()
    relay.play(worker.address, "third", [], timeout=60)
    assert begun == ["first", "third"]
    worker.stop()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, WorkerError, FedsimError])
def test_an_error_of_the_user_arrives_as_itself(worker: Worker, refused: Refused, kind: type[FedsimError]) -> None:
    def fails(experiment: str, frames: Sequence[bytes]) -> Answer:
        raise kind("rounds = 0: expected > 0 %\n at ∂; use 1")

    worker.start(Playing(fails))
    with refused(kind, "rounds = 0: expected > 0 % at ∂; use 1"):
        relay.play(worker.address, "", [], timeout=60)


def test_every_error_has_a_name_that_the_relay_finds() -> None:
    def below(kind: type[FedsimError]) -> set[type[FedsimError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    for kind in below(FedsimError):
        assert getattr(errors, kind.__name__) is kind


def test_a_bug_is_one_line_and_a_traceback_in_the_log(
    worker: Worker, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(experiment: str, frames: Sequence[bytes]) -> Answer:
        raise KeyError("memory\n" + "x" * 10_000)

    worker.start(Playing(fails))
    with refused(WorkerError, "the worker failed with KeyError: 'memory", "xxx"):
        relay.play(worker.address, "", [], timeout=60)
    log = capfd.readouterr().err
    assert log.startswith("Traceback (most recent call last):")
    assert "in fails" in log
    with refused(WorkerError, "KeyError"):  # it goes on
        relay.play(worker.address, "", [], timeout=60)


def test_nobody_is_there(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "w.sock"
    start = f"start one with `fedsim worker --socket {path} --folder ROOT`"
    with refused(WorkerError, f"no worker at unix:{path}: there is no such file", start):
        relay.play(f"unix:{path}", "", [], timeout=60)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with refused(WorkerError, f"no worker at unix:{path}: nobody listens", start):
        relay.play(f"unix:{path}", "", [], timeout=60)
    path.unlink()
    path.touch()
    with refused(WorkerError, f"no worker at unix:{path}: nobody listens", start):
        relay.play(f"unix:{path}", "", [], timeout=60)
    with refused(WorkerError, "no worker at unix:", "Not a directory", "start one"):
        relay.play(f"unix:{path}/x", "", [], timeout=60)


@pytest.mark.parametrize("address", ["", "w.sock", "/run/w.sock", "unix:", "tcp:localhost:1", "localhost:9000"])
def test_an_address_that_is_none(address: str, refused: Refused) -> None:
    with refused(WorkerError, f"worker = {address!r}: expected unix: and the path"):
        relay.play(address, "", [], timeout=1)


def test_a_path_that_is_too_long(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / ("x" * 107)
    with refused(WorkerError, str(path), "can have 107 bytes", "shorter"):
        relay.play(f"unix:{path}", "", [], timeout=1)
    worker = Worker(path)
    worker.start(Playing(echo))
    assert "can have 107 bytes" in str(worker.ended)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_is_refused(worker: Worker) -> None:
    """In a process of its own, which gives its rights away; the folders on the way let everybody pass."""
    worker.start(Playing(echo))
    for folder in list(worker.path.parents)[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    code = (
        "import os, sys; from pathlib import Path; from fedsim.worker import relay, place; os.setuid(65534)\n"
        "for act in (lambda: relay.play('unix:' + sys.argv[1], '', [], 5), lambda: place.claim(Path(sys.argv[1]))):\n"
        "    try: act()\n"
        "    except relay.WorkerError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(worker.path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"no access to the worker at unix:{worker.path}: permission denied; run as the user who started it",
        f"--socket {worker.path}: the worker there is another user's; give another path",
    ]


def test_another_fedsim(worker: Worker, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.start(Playing(echo))
    monkeypatch.setattr(relay, "fedsim_version", lambda: "0.0.9")
    ours = protocol.fedsim_version()
    with refused(WorkerError, f"unix:{worker.path} runs fedsim {ours}, its caller fedsim 0.0.9", "install the same"):
        relay.play(worker.address, "", [], timeout=60)


def test_another_service(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "w.sock"
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    with refused(WorkerError, f"unix:{path} is not one of this fedsim's", "UNIMPLEMENTED", "start `fedsim worker`"):
        relay.play(f"unix:{path}", "", [], timeout=60)
    server.stop(0).wait()


def test_what_is_too_large_is_refused_on_both_sides(worker: Worker, refused: Refused) -> None:
    """By this code's own line where it knows first, by gRPC's where the two ends were told different limits."""
    limit = 100_000
    worker.start(Playing(lambda experiment, frames: Answer(((0, (bytes(int(experiment)),)),))), limit)
    more = "let more nodes share the clients (num-partitions)"
    with refused(WorkerError, "a call of 2 frames has 10", f"bytes, expected at most {limit}", more):
        relay.play(worker.address, "", [bytes(50_000), bytes(50_000)], timeout=60, limit=limit)
    with refused(WorkerError, "the answer of 1 clients has 10", f"bytes, expected at most {limit}", more):
        relay.play(worker.address, "100000", [], timeout=60, limit=limit)
    with refused(WorkerError, f"unix:{worker.path}", "larger than max", more):
        relay.play(worker.address, "1", [bytes(200_000)], timeout=60)
    with refused(WorkerError, f"unix:{worker.path}", "larger than max", more):
        relay.play(worker.address, "50000", [], timeout=60, limit=20_000)
    assert relay.play(worker.address, "90000", [bytes(90_000)], timeout=60, limit=limit).replies[0][1] == (
        bytes(90_000),
    )


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_no_message_is_larger_than_it_is_thought_to_be(count: int) -> None:
    """What is let through by ``weight`` fits gRPC's limit: its bound is above the message's own size."""
    frames = [bytes(i % 300) for i in range(count)]
    errand = worker_pb2.Errand(experiment="∂" * count, frames=frames)
    assert errand.ByteSize() <= protocol.weight(frames, "∂" * count)
    answer = Answer(tuple((2**32 - 1 - i, (frame,)) for i, frame in enumerate(frames)), ((7, "ö" * count),))
    assert protocol.pack(answer, LIMIT).ByteSize() <= protocol.weight(frames, "ö" * count)


def test_the_limit_holds_a_large_model() -> None:
    assert protocol.weight([]) + 4 * 5 * 10**8 <= LIMIT
    assert LIMIT < 2**31


def test_a_socket_is_taken_over_from_the_dead_only(worker: Worker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(worker.path))
    worker.start(Playing(echo))
    assert worker.ended is None
    second = Worker(worker.path)
    second.start(Playing(echo))
    assert str(second.ended) == (
        f"--socket {worker.path}: a worker listens there already; stop it, or give another path"
    )
    assert relay.play(worker.address, "", [], timeout=60) == echo("", [])
    other = tmp_path / "notes.txt"
    other.write_text("keep")
    for path, line in (
        (other, "there is something that is not a socket"),
        (tmp_path, "there is something that is not a socket"),
        (tmp_path / "no" / "w.sock", f"there is no folder {tmp_path / 'no'}; make it first"),
    ):
        third = Worker(path)
        third.start(Playing(echo))
        assert str(third.ended).startswith(f"--socket {path}: {line}")
    assert other.read_text() == "keep"


def test_a_stop_gives_up_what_takes_too_long(
    worker: Worker, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    """The caller is told at once; the worker knows that something is still being done."""
    begun, go = threading.Event(), threading.Event()

    def slow(experiment: str, frames: Sequence[bytes]) -> Answer:
        begun.set()
        assert go.wait(10)
        return echo(experiment, frames)

    worker.start(Playing(slow), grace=0.1)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(relay.play, worker.address, "", [], 20)
        assert begun.wait(10)
        worker.stop()
        with refused(WorkerError, f"unix:{worker.path} ended during a call", "start it again on the same folder"):
            call.result()
    assert capfd.readouterr().err == ""
    assert worker.ended is False
    assert not worker.path.exists()
    go.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    path, before = tmp_path / "w.sock", signal.getsignal(number)
    with ThreadPoolExecutor(1) as callers:
        told: list[Any] = []

        def ready() -> None:
            told.append(callers.submit(tell))

        def tell() -> Answer:
            answer = relay.play(f"unix:{path}", "", [b"1"], timeout=60)
            os.kill(os.getpid(), number)
            return answer

        run(Playing(echo), path, ready)
        answer = told[0].result()
    assert answer == echo("", [b"1"])
    assert not path.exists()
    assert signal.getsignal(number) == before
