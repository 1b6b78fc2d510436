"""``fedsim worker`` as it is used: a process, a socket, a folder; killed and started again between two rounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.algorithms.artemis import Cohort
from fedsim.checkpoint import alone
from fedsim.cli import main
from fedsim.ends.answer import Answer
from fedsim.ends.client import ClientEnd
from fedsim.ends.host import prepared
from fedsim.ends.server import ServerEnd
from fedsim.errors import ConfigError, WireError, WorkerError
from fedsim.worker import relay

Refused = Callable[..., Any]

LINEAR = """
algorithm = "artemis"
rounds = 5
data = { source = "synthetic-linear", clients = 5, per_client = 20, features = 4 }
"""
FIRST = LINEAR + "seed = 3\nuplink = { initial = 'gradient' }\nlocal = { epochs = 1, batch = 4, order = 'reshuffle' }"
SECOND = LINEAR + "seed = 4\ndirection = { kind = 'momentum' }\nrun = { precision = 'float64' }"
OWN = (
    LINEAR
    + """seed = 5
local = { steps = 2, step = 0.1 }
rate = { rule = "own", factory = "tests.plugins_example:Warmup", options = { steps = 3 } }
"""
)


class Worker:
    """The command, in a place of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.address = place, f"unix:{place / 'w.sock'}"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str, path: str = "") -> None:
        """path: of Python modules."""
        environment = {**os.environ, "PYTHONPATH": path} if path else None
        with (self.place / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedsim.cli.main", "worker", "--socket", "w.sock", "--folder", "root", *options],
                cwd=self.place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def said(self) -> str:
        """Its first line."""
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Its exit status, and the seconds that it took."""
        assert self.process is not None
        before = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode, time.monotonic() - before

    @property
    def log(self) -> str:
        return (self.place / "log").read_text()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One that is ready, for all tests of this file up to the one that ends it."""
    with tempfile.TemporaryDirectory() as place:  # the path of a socket is short
        worker = Worker(Path(place))
        worker.start()
        line, process = worker.said(), worker.process
        assert process is not None
        assert line == f"fedsim worker: process {process.pid}, at unix:w.sock, clients in root\n"
        yield worker
        if worker.process is not None and worker.process.poll() is None:
            worker.end(signal.SIGKILL)


def rounds(text: str, play: Callable[[int, Sequence[bytes]], Answer]) -> list[dict[int, tuple[bytes, ...]]]:
    """What clients 1 and 3 reply in each round to a server's end; ``play`` has the round, and their frames."""
    setup = prepared(text)
    server, replies = ServerEnd(setup), []
    for t in range(setup.experiment.rounds):
        answer = play(t, [frame for client in (1, 3) for frame in server.call(client)])
        assert answer.troubles == ()
        all, ids = setup.cohort(t), torch.tensor([1, 3])
        verdict = server.absorb(answer.replies, Cohort(ids, setup.weights[ids], all.probability))
        assert verdict.rejections == ()
        replies.append(dict(answer.replies))
    return replies


def in_process(text: str) -> list[dict[int, tuple[bytes, ...]]]:
    """By ends that live as long as the run, and keep nothing."""
    setup = prepared(text)
    ends = {client: ClientEnd(setup, client) for client in (1, 3)}

    def play(round: int, frames: Sequence[bytes]) -> Answer:
        for (client, end), frame in zip(ends.items(), frames, strict=True):
            assert end.number == client
            end.hear(frame)
        return Answer(tuple((client, tuple(end.answer())) for client, end in ends.items()))

    return rounds(text, play)


def test_the_frames_of_the_ends_in_process_through_a_death(worker: Worker, refused: Refused) -> None:
    """Two runs, one after the other, by one worker, which is killed after two rounds of the first."""

    def first(t: int, frames: Sequence[bytes]) -> Answer:
        if t == 2:
            assert worker.end(signal.SIGKILL)[0] == -signal.SIGKILL
            with refused(WorkerError, f"no worker at {worker.address}: nobody listens", "start one with"):
                relay.play(worker.address, FIRST, frames, timeout=60)
            worker.start()
            assert worker.said()
        return relay.play(worker.address, FIRST, frames, timeout=60)

    assert rounds(FIRST, first) == in_process(FIRST)
    assert rounds(SECOND, lambda t, frames: relay.play(worker.address, SECOND, frames, 60)) == in_process(SECOND)
    runs = {prepared(text).run.hex() for text in (FIRST, SECOND)}
    assert {path.relative_to(worker.place / "root") for path in worker.place.glob("root/*/*")} == {
        Path(run) / f"client-{client}" for run in runs for client in (1, 3)
    }
    assert worker.log == ""


def test_a_call_needs_no_torch(worker: Worker) -> None:
    """In a process of its own, as Flower's are: what it imports, and the frames that it gets."""
    text = FIRST.replace("seed = 3", "seed = 5")
    (call,) = ServerEnd(prepared(text)).call(2)
    code = (
        "import sys; from fedsim.worker import relay\n"
        "address, text, call = sys.argv[1:]\n"
        "answer = relay.play(address, text, [bytes.fromhex(call)], 60)\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'sklearn', 'numba') if name in sys.modules])\n"
        "print([(client, [frame.hex() for frame in frames]) for client, frames in answer.replies])"
    )
    argv = [sys.executable, "-c", code, worker.address, text, call.hex()]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    end = ClientEnd(prepared(text), 2)
    end.hear(call)
    assert done.stdout == f"[]\n{[(2, [frame.hex() for frame in end.answer()])]}\n"


def test_what_cannot_be_served(worker: Worker, refused: Refused) -> None:
    with refused(ConfigError, "the experiment is not valid TOML"):
        relay.play(worker.address, "rounds = ", [], timeout=60)
    with refused(ConfigError, "levles", "levels"):
        relay.play(worker.address, LINEAR + "uplink.levles = 2", [], timeout=60)
    with refused(WireError, "frame of 7 bytes is cut short"):
        relay.play(worker.address, FIRST, [b"nothing"], timeout=60)
    with refused(ConfigError, "rate.factory = 'tests.plugins_example:Warmup'", "--allow-code"):
        relay.play(worker.address, OWN, [], timeout=60)
    assert worker.log == ""


def test_a_worker_that_may_call_what_an_experiment_names() -> None:
    with tempfile.TemporaryDirectory() as place:
        worker = Worker(Path(place))
        worker.start("--allow-code", path=str(Path(__file__).parents[2]))
        worker.said()
        try:
            assert relay.play(worker.address, OWN, [], timeout=60) == Answer(())
        finally:
            worker.end(signal.SIGTERM)


def test_what_clients_keep_is_their_owners_alone(worker: Worker) -> None:
    """Whatever the umask that the worker was started with."""
    (call,) = ServerEnd(prepared(FIRST)).call(1)
    relay.play(worker.address, FIRST, [call], timeout=60)
    kept = list((worker.place / "root").rglob("*"))
    assert any(path.suffix == ".safetensors" for path in kept)
    assert {path.lstat().st_mode & 0o077 for path in (worker.place / "w.sock", worker.place / "root", *kept)} == {0}


def test_the_end_in_the_middle_of_an_errand(worker: Worker, refused: Refused) -> None:
    """Clients that compute for minutes: the process is gone long before, and its caller knows."""
    text = FIRST.replace("epochs = 1", "epochs = 20000000")
    (call,) = ServerEnd(prepared(text)).call(1)
    with ThreadPoolExecutor(1) as callers:
        errand = callers.submit(relay.play, worker.address, text, [call], 60)
        time.sleep(0.5)
        assert not errand.done()
        status, seconds = worker.end(signal.SIGTERM)
        with refused(WorkerError, f"worker at {worker.address} ended during a call", "start it again"):
            errand.result()
    assert (status, worker.log) == (0, "")
    assert seconds < 30  # of the minutes that it would take; a second where nothing else runs
    assert not (worker.place / "w.sock").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedsim", "worker", *options])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert left.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return str(err)

    monkeypatch.chdir(tmp_path)
    Path("log").touch()
    here = ("--socket", "w.sock", "--folder", "root")
    assert told(*here, "--device", "gpu").startswith("error: --device = 'gpu': expected 'cpu', 'cuda', 'cuda:1'")
    assert told(*here, "--device", "cuda:99").startswith("error: --device = 'cuda:99', but torch sees ")
    assert told("--socket", "w.sock", "--folder", "log") == (
        "error: --folder log: File exists; give a folder that can be written\n"
    )
    assert told("--socket", "w.sock").startswith("error: Missing option '--folder'")
    Path("root").mkdir()
    with alone(Path("root"), "taken"):
        said = told(*here)
    assert said == "error: --folder root: another worker keeps its clients there; stop it, or give another folder\n"
    assert not Path("w.sock").exists()
