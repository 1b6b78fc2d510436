"""What may befall a federation's containers: the run completes, with the simulator's model for the same absences.

Slow. Every fault is the engine's or the kernel's own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.docker.engine import Engine, Project, obstacle
from tests.docker.federation import Course, federation, incidents, missed, rounds, rows, small, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

NODES = 3
SMALL_DISK = """
volumes:
  rows-1: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=32m,uid=10001,gid=10001,mode=0700"}}
"""
FILL = "cat /dev/zero >>/rows/full 2>/tmp/said; cat /tmp/said"
GREEDY = """
import time
held = []
for _ in range(80):
    held.append(b"x" * (4 << 20))
    time.sleep(0.05)
"""
"""320 MB, which is less than a worker's own."""
WHOLE = """
from pathlib import Path
from fedsim import checkpoint
folders = sorted({path.parent for path in Path("/rows").rglob("*.safetensors")})
assert not list(Path("/rows").rglob("*.new"))
for folder in folders:
    for slot in folder.iterdir():
        checkpoint._read_slot(slot)
print(len(folders))
"""


def test_pauses_deaths_and_cuts(images: Engine, tmp_path: Path) -> None:
    """A pause, deaths of a worker, a node and the server, a cut cable, and a fourth client: nobody else notices."""
    experiment = small(rounds=40, seed=3)
    project = federation(images, tmp_path, "fedsim-faults", experiment)
    course = Course(project, experiment)
    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        course.onwards(2, "all is well")
        project.compose("pause", "client-1", "worker-1")
        time.sleep(20)
        project.compose("unpause", "client-1", "worker-1")
        course.onwards(2, "after a client's pause of 20 s")
        project.kill("worker-0")
        course.onwards(2, "after a worker's death")
        project.kill("client-2")
        course.onwards(2, "after a node's death")
        until(lambda: health(project, "client-2") == "healthy", 240.0, project)
        course.onwards(2, "and its return")
        images.docker("network", "disconnect", f"{project.name}_inside", project.container("client-1"))
        time.sleep(20)
        images.docker("network", "connect", f"{project.name}_inside", project.container("client-1"))
        course.onwards(2, "after a cable's cut of 20 s")
        project.kill("superlink")
        course.onwards(2, "after the server's death")
        project.compose("up", "-d", "--no-build", "client-3")
        course.onwards(2, "with a fourth client")
        course.ended()
        nodes = {line["node"] for line in rows(project.read("*/messages.csv")) if line["clients"] != "0"}
        assert len(nodes) > NODES
    finally:
        project.close()


def test_neither_memory_nor_disk(images: Engine, tmp_path: Path) -> None:
    """The kernel kills a worker that has no memory; another's disk is full: each is back when there is room again."""
    experiment = small(rounds=14, seed=5)
    (tmp_path / "small-disk.yaml").write_text(SMALL_DISK)
    project = federation(images, tmp_path, "fedsim-room", experiment, tmp_path / "small-disk.yaml")
    course = Course(project, experiment)
    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        course.onwards(2, "all is well")
        course.say(f"worker-0: {starve(project, 'worker-0')}")
        course.onwards(3, "after a worker was killed for its memory")
        assert "fedsim worker: process" in project.compose("logs", "--no-color", "--since", "60m", "worker-0")
        course.say(f"worker-1: {fill(project, 'worker-1')}")
        course.onwards(3, "with a full disk on a client")
        gone = {(round, client) for round, client in missed(project) if client % NODES == 1}
        said = {one["reason"] for one in incidents(project) if "mend its disk" in one["reason"]}
        course.say(f"{len(gone)} absent; the server was told: {min(said)}")
        folders = project.compose("exec", "-T", "worker-1", "python", "-c", WHOLE)
        course.say(f"every file of {folders.strip()} clients there is whole")
        project.compose("exec", "-T", "worker-1", "rm", "/rows/full")
        mended = rounds(project)
        course.onwards(4, "after there was room again")
        course.ended()
        back = [line for line in rows(project.read("*/ledger.csv")) if line["direction"] == "up"]
        back = [line for line in back if int(line["round"]) > mended and int(line["client"]) % NODES == 1]
        assert back, f"no upload from there after round {mended}"
        course.say(f"{len(back)} uploads of the client that had no room, after round {mended}")
    finally:
        project.close()


def starve(project: Project, service: str) -> str:
    """Lower a container's limit to little above what it holds, and let a small process in it want more.

    The kernel kills the largest: the worker, and with it the container. What the engine says of that, in one line.
    """
    name, began = project.container(service), str(int(time.time()))
    usage = "cat /sys/fs/cgroup/memory/memory.usage_in_bytes /sys/fs/cgroup/memory.current 2>/dev/null | head -1"
    held = int(project.compose("exec", "-T", service, "sh", "-c", usage))
    limit = str(held + (32 << 20))
    project.engine.docker("update", "--memory", limit, "--memory-swap", limit, name)
    project.compose("exec", "-T", service, "python", "-c", GREEDY, check=False)
    project.engine.docker("update", "--memory", "2g", "--memory-swap", "2g", name)

    def events() -> list[str]:
        wanted = ["--filter", f"container={name}", "--filter", "event=oom", "--filter", "event=die"]
        form = ["--format", "{{.Action}} {{.Actor.Attributes.exitCode}}"]
        said = project.engine.docker("events", "--since", began, "--until", str(int(time.time()) + 1), *wanted, *form)
        return said.replace("<no value>", "").split()

    until(lambda: {"oom", "die", "137"} <= set(events()), 120.0, project)
    until(lambda: project.state(service)["Status"] == "running", 120.0, project)
    return f"{held / 1e6:.0f} MB held, limit {int(limit) / 1e6:.0f} MB; events {' '.join(events())}"


def fill(project: Project, service: str) -> str:
    """Fill a worker's disk until it says that it cannot keep a client's state; that line."""
    lines: list[str] = []

    def told() -> bool:
        assert "No space left" in project.compose("exec", "-T", service, "sh", "-c", FILL)
        logs = project.compose("logs", "--no-color", "--no-log-prefix", service).splitlines()
        lines[:] = [line for line in logs if "No space left" in line]
        return bool(lines)

    until(told, 300.0, project)
    return lines[0]


def health(project: Project, service: str) -> str:
    """As its own check says."""
    state = json.loads(project.engine.docker("inspect", "-f", "{{json .State}}", project.container(service)))
    return str(state["Health"]["Status"])
