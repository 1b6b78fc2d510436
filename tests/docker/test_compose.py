"""``docker compose up``: a federation over TLS trains, keeps strangers out, survives faults: to the simulator's bits.

Slow. A server and three clients of the project's own images and compose file, on an engine of our own where none runs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fedsim.experiment import Experiment
from tests.docker.engine import Engine, EngineError, Project, obstacle
from tests.docker.federation import TAG, Course, digest, federation, incidents, rounds, rows, simulated, small, until
from tests.flower.test_gate import own_address
from tests.own_files import OWN, write_three

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40,}")
TESTED_WITH = re.compile(r"/Crypto/SelfTest/|/libgnutls\.so")
"""Packages whose self-tests have keys in them, in every installation."""

STRANGER = """
import http.client, ssl, sys
host, port, authority, path = sys.argv[1], 8000, sys.argv[2], sys.argv[3]
if authority == "plain":
    link = http.client.HTTPConnection(host, port, timeout=10)
else:
    context = ssl.create_default_context(cafile=None if authority == "others" else authority)
    link = http.client.HTTPSConnection(host, port, timeout=10, context=context)
link.request("POST", path, b"", {"Content-Type": "application/protobuf"})
print(link.getresponse().status)
"""


@pytest.fixture(scope="module")
def trained(images: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Experiment]]:
    """A federation that was brought up and has trained."""
    experiment = small(rounds=5, seed=1)
    project = federation(images, tmp_path_factory.mktemp("trained"), "fedsim-trained", experiment)
    try:
        began = time.monotonic()
        project.compose("up", "-d", "--no-build", seconds=600.0)
        print(f"up: {time.monotonic() - began:.0f} s")
        until(lambda: rounds(project) >= 1, 600.0, project)
        print(f"first round: {time.monotonic() - began:.0f} s after `up`")
        project.wait("run", 900.0)
        print(f"all {experiment.rounds} rounds: {time.monotonic() - began:.0f} s after `up`")
        yield project, experiment
    finally:
        project.close()


def test_the_model_is_the_simulators(trained: tuple[Project, Experiment]) -> None:
    project, experiment = trained
    assert incidents(project) == []
    assert digest(project) == simulated(experiment, set())


def test_containers_are_closed_in_fact(trained: tuple[Project, Experiment]) -> None:
    project, _ = trained
    look = "id -u; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; touch /opt/x 2>&1 || true; ls /identity/*"
    for service in ("superlink", "client-0", "worker-0"):
        said = project.compose("exec", "-T", service, "sh", "-c", look)
        assert said.startswith("10001\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n"), said
        assert "Read-only file system" in said
        assert "ca.key" not in said
        assert ("node.key" in said, "server.key" in said) == (service == "client-0", service == "superlink")
    keys = project.compose("exec", "-T", "client-0", "stat", "-c", "%a %u", "/identity/node/node.key")
    assert keys.split() == ["600", "10001"]


def test_no_secret_is_in_images_or_logs(trained: tuple[Project, Experiment]) -> None:
    """In no layer, history or setting of an image, and in no log or setting of a container."""
    project, _ = trained
    places = {"client-0": "/identity/node/node.key", "superlink": "/identity/server/server.key"}
    keys = [project.compose("exec", "-T", service, "cat", place) for service, place in places.items()]
    secrets = [line for key in keys for line in key.splitlines()[2:4] if len(line) == 64 or len(line) == 70]
    assert len(secrets) == 4, "two lines of each key"
    engine, images = project.engine, [f"fedsim-{part}:{TAG}" for part in ("server", "client")]
    containers = engine.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={project.name}").split()
    assert len(containers) == 10
    logs = project.compose("--profile", "*", "logs", "--no-color")
    assert len(logs) > 5000
    texts = [logs, engine.docker("inspect", *containers), engine.docker("image", "inspect", *images)]
    texts += [engine.docker("history", "--no-trunc", image) for image in images]
    for text in texts:
        assert "PRIVATE KEY" not in text
        assert not any(secret in text for secret in secrets)
    with engine.output("save", *images) as stream:
        files = 0
        for name, content in layers(stream):
            files += 1
            assert not re.search(r"^(identity|rows|runs|state)/.", name), name
            assert TESTED_WITH.search(name) or not PRIVATE.search(content), name
            assert not any(secret.encode() in content for secret in secrets), name
    print(f"{files} files in the images' layers, {sum(map(len, texts))} characters of logs and settings: no secret")
    assert files > 10_000


def layers(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Every file of every layer of saved images."""
    with tarfile.open(fileobj=stream, mode="r|") as images:
        for one in images:
            if one.isfile() and (one.name.endswith("/layer.tar") or one.size > 1_000_000):
                with tarfile.open(fileobj=images.extractfile(one), mode="r|*") as layer:
                    for file in layer:
                        if file.isfile() and (content := layer.extractfile(file)) is not None:
                            yield file.name, content.read()


@pytest.mark.parametrize(
    ("host", "authority", "path", "expected"),
    [
        ("superlink", "/identity/public/ca.crt", "/v1/control/start-run", "403"),
        ("superlink", "/identity/public/ca.crt", "/v1/control/register-node", "403"),
        ("superlink", "/identity/public/ca.crt", "/v1/runtime/pull-task-input", "403"),
        ("superlink", "/identity/public/ca.crt", "/docs", "403"),
        ("superlink", "/identity/public/ca.crt", "/v1/fleet/../control/start-run", "404"),
        ("superlink", "/identity/public/ca.crt", "/v1/fleet/pull-messages", "4"),
        ("superlink", "plain", "/v1/fleet/pull-messages", "RemoteDisconnected"),
        ("superlink", "others", "/v1/fleet/pull-messages", "CERTIFICATE_VERIFY_FAILED"),
        ("address", "/identity/public/ca.crt", "/v1/fleet/pull-messages", "IP address mismatch"),
    ],
    ids=["orders", "registration", "runtime", "docs", "dots", "no signature", "plaintext", "another CA", "wrong name"],
)
def test_strangers_are_refused(
    trained: tuple[Project, Experiment], host: str, authority: str, path: str, expected: str
) -> None:
    """From a client's place in the network, with the authority's certificate in hand."""
    project, _ = trained
    where = host
    if host == "address":
        form = '{{(index .NetworkSettings.Networks "' + project.name + '_inside").IPAddress}}'
        where = project.engine.docker("inspect", "-f", form, project.container("superlink")).strip()
    command = ["exec", "-T", "client-0", "python", "-c", STRANGER, where, authority, path]
    try:
        said = project.compose(*command)
    except EngineError as error:
        said = str(error)
    if expected == "4":
        assert said.strip() in ("400", "401", "403")
    else:
        assert expected in said


@pytest.mark.parametrize("key", ["--auth-supernode-private-key /tmp/own/node-0/node.key", ""], ids=["own", "none"])
def test_a_node_that_is_not_registered_is_refused(trained: tuple[Project, Experiment], key: str) -> None:
    """With a key of its own making, and with the one that Flower makes for a node that has none."""
    project, _ = trained
    script = (
        "fedsim certs --folder /tmp/own --nodes 1 >/dev/null && timeout 60 flower-supernode --superlink superlink:8000 "
        f"--root-certificates /identity/public/ca.crt {key} --port 9095 2>&1"
    )
    with pytest.raises(EngineError, match=r"(?i)register|authenticat|activate"):
        project.compose("exec", "-T", "client-0", "sh", "-c", script, seconds=120.0)


def test_a_node_that_is_struck_off_is_refused(trained: tuple[Project, Experiment]) -> None:
    """Its key is no longer admitted, neither now nor when it starts again."""
    project, _ = trained
    flwr = ["run", "--rm", "-T", "--no-deps", "run", "flwr", "supernode"]
    (number,) = set(re.findall(r"SuperNode ID: (\d+)", project.compose("logs", "--no-color", "client-2")))
    project.compose(*flwr, "unregister", number, "here", seconds=120.0)
    project.compose("restart", "client-2")
    until(lambda: "2004" in project.compose("logs", "--no-color", "--since", "60s", "client-2"), 90.0, project)


def test_clients_bring_their_own_data(images: Engine, tmp_path: Path) -> None:
    """A folder each, which nobody else mounts; the fourth comes while the run goes, and counts from then on."""
    files, data = [Path(path) for path in write_three(tmp_path)], dict(OWN["data"])
    files.append(Path(shutil.copy(files[0], tmp_path / "d.csv")))
    given, paths = {"NODES": "4"}, []
    for number, file in enumerate(files):
        folder = tmp_path / f"of-{number}"
        folder.mkdir()
        paths.append(str(file.rename(folder / file.name)))
        given |= {f"DATA_{number}": str(folder), f"OWN_{number}": file.name}
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    samples = [*data["samples"], data["samples"][0]]
    tables = {**OWN, "rounds": 10, "deploy": {"start_nodes": 3}}
    experiment = Experiment.of(**{**tables, "data": {**data, "samples": samples}})
    project = federation(images, tmp_path, "fedsim-own", experiment)
    project.environment.update(given)
    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        until(lambda: rounds(project) >= 2, 600.0, project)
        project.compose("up", "-d", "--no-build", "client-3")
        project.wait("run", 900.0)
        absent = {(int(one["round"]), int(one["client"])) for one in incidents(project) if one["what"] == "absent"}
        came = min(set(range(experiment.rounds)) - {round for round, client in absent if client == 3})
        print(f"the fourth client took part from round {came} on")
        assert {(0, 3), (1, 3)} <= absent
        known = Experiment.of(**{**tables, "data": {**data, "samples": samples, "paths": paths}})
        assert digest(project) == simulated(known, absent)
    finally:
        project.close()


def test_plaintext_is_possible_and_loud(images: Engine, tmp_path: Path) -> None:
    """For trying things out: no keys at all, the same model, and a warning in every log."""
    experiment = small(rounds=2, seed=1, clients=6)
    project = federation(images, tmp_path, "fedsim-plain", experiment)
    project.environment["INSECURE"] = "no-tls-no-identities"
    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        project.wait("run", 600.0)
        assert digest(project) == simulated(experiment, set())
        for service in ("superlink", "run", "client-0"):
            assert "WARNING: INSECURE" in project.compose("logs", "--no-color", service)
    finally:
        project.close()


def test_a_client_elsewhere(images: Engine, tmp_path: Path) -> None:
    """node.yaml by itself: a network of its own, a key that was brought there, and the server's published port."""
    here = own_address()
    experiment = small(rounds=4, seed=7)
    project = federation(images, tmp_path, "fedsim-here", experiment)
    project.environment |= {"PUBLISH": f"{here}:0", "NAMES": here}
    away = Project(images, "fedsim-away", {"TAG": TAG, "NODE": "2"}, file="node.yaml")
    course = Course(project, experiment)
    try:
        project.compose("up", "-d", "--no-build", "run", "client-0", "client-1", seconds=600.0)
        for name in ("node-2", "public"):
            images.docker("cp", f"{project.container('certs')}:/identity/{name}", str(tmp_path / name))
        for path in (tmp_path / "node-2", tmp_path / "public"):
            for each in (path, *path.iterdir()):
                shutil.chown(each, 10001, 10001)
        address = project.compose("port", "superlink", "8000").strip()
        away.environment |= {
            "SUPERLINK": address,
            "IDENTITY": str(tmp_path / "node-2"),
            "PUBLIC": str(tmp_path / "public"),
        }
        assert rounds(project) == 0
        away.compose("up", "-d", "--no-build", seconds=300.0)
        course.onwards(1, f"with a client that reaches {address} from a network of its own")
        course.ended()
        assert incidents(project) == []
        assert len({line["node"] for line in rows(project.read("*/messages.csv")) if line["clients"] != "0"}) == 3
        networks = [
            json.loads(images.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", one.container(service)))
            for one, service in ((project, "superlink"), (away, "supernode"))
        ]
        assert not networks[0].keys() & networks[1].keys()
    finally:
        away.close()
        project.close()
