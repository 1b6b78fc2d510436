"""Each peer in a virtual environment of its own, and its script run there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parent / "inside"
TORCH = "torch>=2.9,<2.14"
OF_EARLY_2024 = ("numpy<2", "scipy<1.13", "dm-haiku<0.0.13", "optax<0.2.3", "chex<0.1.87")
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "JAX_PLATFORMS": "cpu",
    "JAX_TRACEBACK_FILTERING": "off",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""One thread a worker; nothing is asked of or told to the network."""


class MissingError(Exception):
    """A peer that cannot be installed or run; the text says why in one line."""


@dataclass(frozen=True)
class Peer:
    """script: in ``inside``; installs: arguments of ``pip install``, in turn; variants: options of the script."""

    script: str
    installs: tuple[tuple[str, ...], ...]
    variants: tuple[tuple[str, ...], ...] = ((),)


PEERS = {
    "pfl": Peer("run_pfl.py", (("pfl", TORCH),), ((), ("--processes", "2"), ("--processes", "2", "--balanced"))),
    "blazefl": Peer(
        "run_blazefl.py",
        # Its 3.0 declares Python 3.14: see run_blazefl.py. Its dependencies must still fit the Python that is there.
        (("numpy", TORCH), ("--ignore-requires-python", "--no-deps", "blazefl>=3")),
        ((), ("--threads", "2")),
    ),
    "flower": Peer("run_flower.py", (("flwr[simulation]>=1.41,<1.43", TORCH),)),
    # Its newest version calls what jax removed after 0.4.25, and that jax needs what was current in its time.
    "fedjax": Peer("run_fedjax.py", (("fedjax>=0.0.17", "jax==0.4.25", "jaxlib==0.4.25", *OF_EARLY_2024),)),
}


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment, which is made on first use. Raises MissingError."""
    home = folder / name
    python, done = home / "bin" / "python", home / "installed"
    installs = PEERS[name].installs
    wanted = "\n".join(" ".join(packages) for packages in installs)
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"{name}: installing into {home}", file=sys.stderr, flush=True)
    commands = [[sys.executable, "-m", "venv", str(home)]]
    commands += [[str(python), "-m", "pip", "install", "--quiet", *packages] for packages in installs]
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise MissingError(f"{name}: cannot be installed: {last_line(made.stderr)}")
    done.write_text(wanted)
    return python


def run(python: Path, name: str, variant: tuple[str, ...], problem: Path, result: Path, limit: float) -> dict[str, Any]:
    """What a peer's script printed: peer, setting, seconds; parameters are left in ``result``. Raises MissingError."""
    log = result.with_suffix(".log")
    command = [str(python), str(INSIDE / PEERS[name].script), str(problem), str(result), *variant]
    environment = os.environ | QUIET | {"FLWR_HOME": str(result.parent / "flwr")}
    environment.pop("PYTHONPATH", None)
    with log.open("w+") as out, log.with_suffix(".err").open("w+") as errors:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, start_new_session=True
        )
        try:
            started.wait(limit)
        except subprocess.TimeoutExpired:
            raise MissingError(f"{name}: not done after {limit:.0f} s") from None
        finally:
            end(started)
        out.seek(0)
        errors.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith('{"peer"')]
        if started.returncode or not lines:
            raise MissingError(f"{name}: {last_line(errors.read()) or 'stopped without a word'}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def end(started: subprocess.Popen[bytes]) -> None:
    """Whatever is left of the session that a script began, its helpers included."""
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def last_line(text: str) -> str:
    """The last line that says something."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1][:200] if said else ""
