"""What can be told of docker/ without an engine: linters, and every container's rights read from the compose files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*Dockerfile"))


def program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'fedsim[dev]'")
    return found


def composed(*files: str, **environment: str) -> dict[str, Any]:
    """Compose files as Compose understands them, every profile in."""
    given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    options = [option for file in files for option in ("-f", str(DOCKER / file))]
    command = [program("docker-compose"), *options, "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def federation() -> dict[str, Any]:
    return composed("compose.yaml")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: str(file.name))
def test_hadolint(file: Path) -> None:
    done = subprocess.run([program("hadolint"), str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: str(file.name))
def test_every_builder_takes_the_dockerfiles(file: Path) -> None:
    """No frontend to be fetched, no mounts, no heredocs; the image's own user is a number that is not root's."""
    text = file.read_text()
    assert not re.search(r"^#\s*syntax\s*=|--mount|<<", text, flags=re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, flags=re.MULTILINE) == ["10001:10001"]
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) == {"python:3.11-slim", "packages"}


def test_both_images_share_their_packages() -> None:
    stages = {file.read_text().partition("FROM ")[2].partition("\n\nFROM python")[0] for file in DOCKERFILES}
    assert len(DOCKERFILES) == 2
    assert len(stages) == 1


def test_every_package_is_pinned() -> None:
    lines = [line for line in (DOCKER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line)] == []


@pytest.mark.parametrize("files", [("compose.yaml",), ("node.yaml",), ("compose.yaml", "gpu.yaml")], ids=str)
def test_every_container_is_closed(files: tuple[str, ...]) -> None:
    services = composed(*files)["services"]
    for name, service in services.items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert not service.get("privileged"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert 0 < int(service["mem_limit"]) <= 4 << 30, name
        assert 0 < service["pids_limit"] <= 512, name
        assert service.get("network_mode") != "host", name
        assert not {"pid", "ipc", "userns_mode", "devices"} & service.keys(), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_what_lasts_comes_back_and_says_how_it_is(federation: dict[str, Any]) -> None:
    for name, service in federation["services"].items():
        if name in ("certs", "register", "run"):
            assert service["restart"] in ("no", "on-failure:10", "on-failure:20")
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_one_port_is_published_to_this_machine_alone(federation: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in federation["services"].items() if service.get("ports")}
    assert list(ports) == ["superlink"]
    (port,) = ports["superlink"]
    assert (port["host_ip"], port["target"]) == ("127.0.0.1", 8000)


def test_workers_have_no_network_and_nodes_no_way_out(federation: dict[str, Any]) -> None:
    assert federation["networks"]["inside"]["internal"] is True
    for name, service in federation["services"].items():
        if name.startswith("worker") or name == "certs":
            assert service["network_mode"] == "none", name
        elif name.startswith("client"):
            assert list(service["networks"]) == ["inside"], name


def test_each_key_is_mounted_where_it_is_needed(federation: dict[str, Any]) -> None:
    """The authority's by the maker of certificates, a node's by its SuperNode, and nobody else, read-only."""
    users: dict[str, set[str]] = {}
    for name, service in federation["services"].items():
        for volume in service.get("volumes", []):
            if volume["source"].startswith(("authority", "identity", "server-key", "rows")):
                users.setdefault(volume["source"], set()).add(name)
                assert volume.get("read_only") or name == "certs" or volume["source"].startswith("rows"), name
    assert users.pop("authority") == {"certs"}
    assert users.pop("server-key") == {"certs", "superlink"}
    for number in range(4):
        assert users.pop(f"identity-{number}") == {"certs", f"client-{number}"}
        assert users.pop(f"rows-{number}") == {f"worker-{number}"}
    assert users == {}


def test_nothing_secret_is_built_in(federation: dict[str, Any]) -> None:
    allowed = {"ACCELERATOR", "TORCH_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}
    for service in federation["services"].values():
        assert service["build"].get("args", {}).keys() <= allowed
        assert not {"secrets", "ssh"} & service["build"].keys()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert kept == {
        *("LICENSE", "README.md", "pyproject.toml", "fedsim", "server", "client"),
        *("docker/container.sh", "docker/requirements.txt"),
    }


def test_plaintext_is_asked_for_in_so_many_words(federation: dict[str, Any]) -> None:
    assert {service.get("environment", {}).get("INSECURE", "") for service in federation["services"].values()} == {""}
    for word, status in (("1", 2), ("true", 2), ("no-tls-no-identities", 2), ("", 2)):
        command = ["sh", str(DOCKER / "container.sh"), "no-such-part"]
        done = subprocess.run(command, env={"INSECURE": word}, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert ("WARNING" in done.stderr) == (word == "no-tls-no-identities")
        assert ("leave it out" in done.stderr) == (word in ("1", "true"))


def test_nodes_by_number(federation: dict[str, Any]) -> None:
    """A fourth client is there, and started only when it is named; it serves a part that another serves already."""
    clients = {name: service for name, service in federation["services"].items() if name.startswith("client")}
    assert {name: service["environment"]["NODE"] for name, service in clients.items()} == {
        f"client-{number}": str(number) for number in range(4)
    }
    assert [name for name, service in clients.items() if service.get("profiles")] == ["client-3"]


def test_a_gpu_is_reserved_for_workers_alone() -> None:
    services = composed("compose.yaml", "gpu.yaml")["services"]
    for name, service in services.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [device["capabilities"] for device in devices] == ([["gpu"]] if name.startswith("worker") else []), name
        if name.startswith("worker"):
            assert service["environment"]["DEVICE"] == "cuda"
            assert service["build"]["args"]["ACCELERATOR"].startswith("cu")


def test_clients_bring_their_own_data(tmp_path: Path) -> None:
    """Each worker sees its own folder, its node is told which file, and nobody sees another's."""
    folders = {f"DATA_{number}": f"/of-{number}" for number in range(3)}
    given = {**folders, "OWN_0": "a.csv", "OWN_1": "b.svm", "OWN_2": ".", "NODES": "4", "DATA": "/of-all"}
    services = composed("compose.yaml", **given)["services"]
    mounts = {
        name: [(one["source"], one["read_only"]) for one in service.get("volumes", []) if one["target"] == "/data"]
        for name, service in services.items()
    }
    for number, folder in enumerate(("/of-0", "/of-1", "/of-2", "/of-all")):
        assert mounts[f"worker-{number}"] == [(folder, True)]
        assert mounts[f"client-{number}"] == []
    said = [node_config(services[f"client-{number}"]["environment"], tmp_path) for number in range(4)]
    ours = "num-partitions=4 worker='unix:/run/fedsim/worker.sock'"
    assert said == [
        f"partition-id=0 {ours} data='/data/a.csv'",
        f"partition-id=1 {ours} data='/data/b.svm'",
        f"partition-id=2 {ours} data='/data/.'",
        f"partition-id=3 {ours}",
    ]
    alone = composed("node.yaml", NODE="7", NODES="8", DATA="/mine", OWN="my file.csv")["services"]
    assert [one["source"] for one in alone["worker"]["volumes"] if one["target"] == "/data"] == ["/mine"]
    assert node_config(alone["supernode"]["environment"], tmp_path).endswith(" data='/data/my file.csv'")


def node_config(environment: dict[str, str], programs: Path) -> str:
    """What ``container.sh supernode`` tells the SuperNode of a container with this environment."""
    stand_in = programs / "flower-supernode"
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\nprintf %s "$last"\n')
    stand_in.chmod(0o755)
    own = {**environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", str(DOCKER / "container.sh"), "supernode"]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout
