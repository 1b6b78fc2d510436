"""The README's sections on Flower are run as they stand, block after block, but for the ports: free ones here."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedsim[flower-simulation]'")

from tests.own_files import write_three

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SECTION, OWN = (
    README.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Run it on Flower", "Bring your own data")
)


def test_the_section_on_flower(tmp_path: Path) -> None:
    """Simulated, in process, on Ray and deployed: the same model to the bit, the same ledger to the byte."""
    blocks = re.findall(r"```sh\n(.*?)```", SECTION, flags=re.DOTALL)
    assert len(blocks) == 2
    ports = free_ports(3)
    script = "\n".join(blocks)
    for given, free in (("--port 8000", ports[0]), ("127.0.0.1:8000", ports[0])):
        assert given in script
        script = script.replace(given, given.replace("8000", str(free)))
    assert "--port 900$i" in script
    script = script.replace("--port 900$i", f"--port $((i ? {ports[1]} : {ports[2]}))")
    for start in ("fedsim compare", "fedsim run"):
        assert script.count(start) >= 2
    said = run(script, tmp_path)
    assert said.count("models: equal to the bit") == said.count("ledgers: equal to the byte") == 2
    names = {(tmp_path / name / "manifest.json").exists() for name in ("simulated", "in-process", "on-ray", "deployed")}
    assert names == {True}


def test_the_section_on_own_data(tmp_path: Path) -> None:
    """A CSV, a LibSVM file and a folder of images, a client each: the simulator's model, by a server without any."""
    (experiment,), (script,) = (re.findall(rf"```{kind}\n(.*?)```", OWN, flags=re.DOTALL) for kind in ("toml", "sh"))
    assert script.count("fedsim run") == 2
    # Nodes of a busy machine take their time to come.
    (tmp_path / "own.toml").write_text("deploy.start_s = 600.0\n" + experiment)
    write_three(tmp_path)
    ports = free_ports(4)
    own_ports = "$(( i > 1 ? {} : i ? {} : {} ))".format(*ports[1:])
    for given, free in (("127.0.0.1:8000", f"127.0.0.1:{ports[0]}"), ("910$i", own_ports)):
        assert given in script
        script = script.replace(given, free)
    # The SuperLink is the section's before.
    before = [
        line for line in SECTION.splitlines() if line.startswith(("export", "flower-superlink", "mkdir", "printf '["))
    ]
    assert len(before) == 4
    said = run("\n".join(before).replace("8000", str(ports[0])) + "\n" + script, tmp_path)
    assert "no loss (the data is elsewhere)" in said
    assert "error" not in said
    for name in ("model.safetensors", "ledger.csv"):
        assert (tmp_path / "brought" / name).read_bytes() == (tmp_path / "gathered" / name).read_bytes()


def run(script: str, folder: Path) -> str:
    """What a bash script prints; nothing that it started is left."""
    quiet = {"FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "127.0.0.1,localhost"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | quiet | {"FLWR_HOME": str(folder / "flwr"), "PATH": path}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            ["bash", "-euc", script], cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(900)
        finally:
            end(process)
        output.seek(0)
        said = output.read()
    assert status == 0, said[-3000:]
    return said


def end(process: subprocess.Popen[bytes]) -> None:
    """A process and its group, by force after ten seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 10.0
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
