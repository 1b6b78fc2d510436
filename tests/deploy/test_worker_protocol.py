"""The generated module is that of the file beside it, and the relay's side needs little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.worker import worker_pb2

PACKAGE = Path(worker_pb2.__file__).parent


def test_the_generated_module_is_fresh(tmp_path: Path) -> None:
    """It holds the bytes that protoc makes of ``worker.proto``; what stands around them is its version's affair."""
    root, source = PACKAGE.parents[1], PACKAGE / "worker.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--python_out={tmp_path}", str(source)]
    subprocess.run(command, check=True)
    fresh, held = (descriptor(base / "fedsim/worker/worker_pb2.py") for base in (tmp_path, root))
    assert b"experiment" in held
    assert held == fresh


def descriptor(module: Path) -> bytes:
    found = re.search(r"AddSerializedFile\((b'.*')\)\n", module.read_text())
    assert found is not None
    octets = ast.literal_eval(found[1])
    assert isinstance(octets, bytes)
    return octets


def test_the_generated_module_runs_with_every_protobuf_that_is_allowed() -> None:
    """A module runs with its own version and later ones of the same major version: with protobuf>=6.30,<7."""
    text = Path(worker_pb2.__file__).read_text()
    found = re.search(r"Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", text)
    assert found is not None
    assert tuple(map(int, found.groups())) == (6, 30, 0)


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf"])
def test_without_grpcio(missing: str) -> None:
    """One line that names what to install, from the command and from the relay."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from fedsim.errors import WorkerError\n"
        "try: import fedsim.worker.relay\n"
        "except WorkerError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"a worker and its callers need grpcio and protobuf, but there is no module {missing}\S*; "
        r"pip install 'fedsim\[deploy\]'\n",
        done.stdout,
    )
