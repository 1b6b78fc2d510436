"""``docker compose up``: a federation over TLS trains, keeps strangers out, survives faults: to the simulator's bits.

Slow. A server and three clients of the project's own images and compose file, on an engine of our own where none runs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsim.experiment import Experiment
from fedsim.simulation.folder import model_digest
from tests.absences import simulated
from tests.docker.engine import Engine, EngineError, Project, engine, obstacle, wheels
from tests.own_files import OWN, write_three

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

TAG = os.environ.get("FEDSIM_IMAGES", "fedsim-test")
HALF = {"scheme": "bernoulli", "p": 0.5}
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
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has both images."""
    with engine(tmp_path_factory.mktemp("engine")) as here, wheels() as address:
        for part in ("server", "client"):
            if "FEDSIM_IMAGES" not in os.environ:
                print(f"{part}: built in {here.build(part, f'fedsim-{part}:{TAG}', address):.0f} s")
            size = int(here.docker("image", "inspect", "-f", "{{.Size}}", f"fedsim-{part}:{TAG}"))
            print(f"{part}: {size / 1e6:.0f} MB")
        yield here


def federation(here: Engine, folder: Path, name: str, experiment: Experiment) -> Project:
    (folder / "experiment.toml").write_text(experiment.toml())
    given = {"TAG": TAG, "EXPERIMENT": str(folder / "experiment.toml"), "PUBLISH": "127.0.0.1:0"}
    return Project(here, name, given)


@pytest.fixture(scope="module")
def trained(images: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Experiment]]:
    """A federation that was brought up and has trained."""
    experiment = Experiment.of(
        rounds=5, seed=1, partition={"clients": 12}, participation=HALF, run={"executor": "sequential"}
    )
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
    assert digest(project) == of_simulator(experiment, set())


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
    project, _ = trained
    secret = project.compose("exec", "-T", "client-0", "cat", "/identity/node/node.key").splitlines()[2]
    assert len(secret) > 50
    logs = project.compose("--profile", "*", "logs", "--no-color")
    histories = [
        project.engine.docker("history", "--no-trunc", f"fedsim-{part}:{TAG}") for part in ("server", "client")
    ]
    assert len(logs) > 5000
    for text in (logs, *histories):
        assert "PRIVATE KEY" not in text
        assert secret not in text
    for part in ("server", "client"):
        find = ["--rm", "--network", "none", "--entrypoint", "find", f"fedsim-{part}:{TAG}"]
        assert (
            project.engine.docker("run", *find, "/identity", "/opt", "/runs", "/rows", "-name", "*.key", check=False)
            == ""
        )


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


def test_faults(images: Engine, tmp_path: Path) -> None:
    """A pause, deaths of a worker, a node and the server, a cut cable, and a fourth client: nobody else notices."""
    experiment = Experiment.of(
        rounds=26, seed=3, partition={"clients": 12}, participation=HALF, run={"executor": "sequential"}
    )
    project = federation(images, tmp_path, "fedsim-faults", experiment)
    began = time.monotonic()

    done = 0

    def onwards(more: int, said: str) -> None:
        nonlocal done
        done = max(done, rounds(project))  # a server that is dead says nothing
        goal = min(done + more, experiment.rounds)
        until(lambda: rounds(project) >= goal, 600.0, project)
        print(f"{time.monotonic() - began:.0f} s: {rounds(project)} rounds, {said}")

    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        onwards(2, "all is well")
        project.compose("pause", "client-1", "worker-1")
        time.sleep(20)
        project.compose("unpause", "client-1", "worker-1")
        onwards(2, "after a client's pause of 20 s")
        project.kill("worker-0")
        onwards(2, "after a worker's death")
        project.kill("client-2")
        onwards(2, "after a node's death")
        until(lambda: health(project, "client-2") == "healthy", 240.0, project)
        onwards(2, "and its return")
        images.docker("network", "disconnect", f"{project.name}_inside", project.container("client-1"))
        time.sleep(20)
        images.docker("network", "connect", f"{project.name}_inside", project.container("client-1"))
        onwards(2, "after a cable's cut of 20 s")
        project.kill("superlink")
        onwards(2, "after the server's death")
        project.compose("up", "-d", "--no-build", "client-3")
        onwards(2, "with a fourth client")
        project.wait("run", 900.0)
        nodes = {line["node"] for line in rows(project.read("*/messages.csv")) if line["clients"] != "0"}
        assert len(nodes) >= 4
        absent = {(int(one["round"]), int(one["client"])) for one in incidents(project) if one["what"] == "absent"}
        print(f"{time.monotonic() - began:.0f} s in all; absent {len(absent)} times")
        assert digest(project) == of_simulator(experiment, absent)
    finally:
        project.close()


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
        assert digest(project) == of_simulator(known, absent)
    finally:
        project.close()


def test_plaintext_is_possible_and_loud(images: Engine, tmp_path: Path) -> None:
    """For trying things out: no keys at all, the same model, and a warning in every log."""
    experiment = Experiment.of(
        rounds=2, seed=1, partition={"clients": 6}, participation=HALF, run={"executor": "sequential"}
    )
    project = federation(images, tmp_path, "fedsim-plain", experiment)
    project.environment["INSECURE"] = "no-tls-no-identities"
    try:
        project.compose("up", "-d", "--no-build", seconds=600.0)
        project.wait("run", 600.0)
        assert digest(project) == of_simulator(experiment, set())
        for service in ("superlink", "run", "client-0"):
            assert "WARNING: INSECURE" in project.compose("logs", "--no-color", service)
    finally:
        project.close()


def health(project: Project, service: str) -> str:
    state = json.loads(project.engine.docker("inspect", "-f", "{{json .State}}", project.container(service)))
    return str(state["Health"]["Status"])


def until(holds: Callable[[], bool], seconds: float, project: Project) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            raise EngineError(project.compose("logs", "--no-color", "--tail", "12", check=False)[-6000:])
        time.sleep(0.5)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def rounds(project: Project) -> int:
    """How many are over; 0 while the server cannot say."""
    try:
        return max((int(line["round"]) + 1 for line in rows(project.read("*/ledger.csv"))), default=0)
    except (EngineError, subprocess.TimeoutExpired):
        return 0


def incidents(project: Project) -> list[dict[str, str]]:
    return rows(project.read("*/incidents.csv"))


def digest(project: Project) -> str:
    return str(json.loads(project.read("*/manifest.json"))["model_sha256"])


def of_simulator(experiment: Experiment, absent: set[tuple[int, int]]) -> str:
    """The digest of the simulator's model when these clients miss these rounds, counted as incidents.csv does."""
    return model_digest(simulated(experiment, lambda round, client: (round, client) in absent).server.model)
