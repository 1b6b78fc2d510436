"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fedsim.cli import main
from fedsim.data import FashionMNIST
from fedsim.errors import FedsimError

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)  # the first example that needs a kernel compiles it
settings.load_profile("no deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

LIBSVM = Path(__file__).resolve().parents[2] / "shared" / "data" / "libsvm"
Command = Callable[..., tuple[int, str, str]]
"""Arguments -> exit status, standard output, standard error."""

Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def libsvm_folder() -> Path:
    """The folder of a9a, its test set and its 20 published clusters."""
    needed = ["a9a.gz", "a9a_test.gz", "a9a.clusters20.txt"]
    if missing := [name for name in needed if not (LIBSVM / name).is_file()]:
        pytest.skip(f"needs {', '.join(missing)} in ../shared/data/libsvm beside the repository")
    return LIBSVM


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """The folder of the four Fashion-MNIST files."""
    if not FashionMNIST().present():
        pytest.skip(f"needs Fashion-MNIST in {FashionMNIST().path}; apt install dataset-fashion-mnist")
    return Path(FashionMNIST().path)


@pytest.fixture(scope="session")
def refused() -> Refused:
    """``with refused(DataError, "a.txt:3:", "expected")``: that error, on one line, with these parts in this order."""

    @contextmanager
    def refused(kind: type[FedsimError], *parts: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        at = 0
        for part in parts:
            at = message.find(part, at)
            assert at >= 0, f"{part!r} is not where expected in {message!r}"
            at += len(part)

    return refused


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("compare", "a", "b")``: the command line, in this process."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        status = 0
        try:
            main.main()
        except SystemExit as left:
            status = int(left.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory where there is one: forcing to disk then costs nothing. SIGKILL knows no difference."""
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(place)
    shutil.rmtree(place)
