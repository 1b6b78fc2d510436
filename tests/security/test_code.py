"""An experiment that comes from elsewhere names no code that runs here, unless the owner of the machine allows it.

Any function that can be imported would do: ``rate.factory = "os:system"`` with its ``options`` is a shell.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flwr.app import UserConfig

from client.app import app as client_app
from fedsim.ends.answer import Answer
from fedsim.ends.host import Host
from fedsim.ends.trust import Trust
from fedsim.errors import ConfigError, DataError, DeployError
from fedsim.experiment import Experiment
from fedsim.plugins import code_named
from server.inprocess import InProcessGrid
from tests.flower.driven import config_of, play

Refused = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]
OWN = "tests.plugins_example"
DATA = {"source": "synthetic-linear", "clients": 2, "per_client": 9, "features": 3}
NAMED: dict[str, dict[str, Any]] = {
    "local.order": {"local": {"order": f"{OWN}:there_and_back", "epochs": 1}},
    "rate.factory": {"rate": {"rule": "own", "factory": f"{OWN}:Warmup", "options": {"steps": 3}}, "local.steps": 2},
    "direction.factory": {"direction": {"kind": "own", "factory": f"{OWN}:Clipped", "options": {"norm": 0.5}}},
    "task.factory": {
        "data": {"source": "digits"},
        "task": {"kind": "module", "factory": "tests.unit.test_executors:tanh"},
        "server": {"step": 0.1},
    },
}


def experiment(key: str) -> Experiment:
    given = dict(NAMED[key])
    local = {"steps": 2, "step": 0.1} if given.pop("local.steps", None) else {}
    tables = {"data": DATA, "local": local, "rounds": 1, "run": {"executor": "sequential"}, **given}
    return Experiment.of(**tables)


def host(allow_code: bool) -> Host:
    return Host(lambda run, client: None, trust=Trust(allow_code))


@pytest.mark.parametrize("key", NAMED)
def test_code_that_an_experiment_names_is_refused(key: str, refused: Refused) -> None:
    text = experiment(key).toml()
    with refused(ConfigError, f"{key} = '", "names Python code", "fedsim worker --allow-code", "allow-code=true"):
        host(allow_code=False).play(text, [])
    assert host(allow_code=True).play(text, []) == Answer(())


def test_a_shell_is_refused(tmp_path: Path, refused: Refused) -> None:
    """Refused before anything is imported or called; the same text does run it where that is allowed."""
    marker = tmp_path / "was here"
    rate = {"rule": "own", "factory": "os:system", "options": {"command": f"touch '{marker}'"}}
    text = Experiment.of(data=DATA, rate=rate, local={"steps": 2, "step": 0.1}).toml()
    with refused(ConfigError, "rate.factory = 'os:system'", "--allow-code"):
        host(allow_code=False).play(text, [])
    assert not marker.exists()
    with refused(ConfigError, "returned int"):
        host(allow_code=True).play(text, [])
    assert marker.exists()


def test_no_other_key_names_code() -> None:
    """The keys that are marked are all those with which ``fedsim.plugins`` or a task's factory is called."""
    keys = {"task.factory"}  # fedsim.tasks.classifier.from_factory, which tests/security/test_source.py knows
    for file in (ROOT / "fedsim").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("named", "made"):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    keys.add(str(first.value))
                else:
                    assert file.name == "plugins.py", f"{file}:{node.lineno} a key that is not written out"
    given = Experiment()
    for key in NAMED:
        table = key.partition(".")[0]
        given = msgspec.structs.replace(given, **{table: getattr(experiment(key), table)})
    assert {named.partition(" = ")[0] for named in code_named(given)} == keys == set(NAMED)


def test_a_node_without_a_worker_asks_its_own_config(tmp_path: Path) -> None:
    """Nothing that travels with the run can allow it: neither the run config nor the experiment."""
    given = experiment("rate.factory")

    def grid(name: str, **own: Any) -> InProcessGrid:
        run: UserConfig = {**config_of(given, tmp_path / name), "allow-code": True}
        return InProcessGrid(client_app, run, 1, config=[own])

    for own in ({}, {"allow-code": False}, {"allow-code": "true"}):
        with pytest.raises(DeployError, match=r"rate\.factory = .* names Python code"):
            play(grid("refused", **own), msgspec.structs.replace(given, deploy=_at_once()), tmp_path / "refused")
    play(grid("allowed", **{"allow-code": True}), given, tmp_path / "allowed")
    assert (tmp_path / "allowed" / "model.safetensors").exists()


def _at_once() -> Any:
    return msgspec.structs.replace(Experiment().deploy, start_s=0.2)


PLACES: dict[str, dict[str, Any]] = {
    "data.path": {"data": {"source": "libsvm", "path": "{}"}},
    "data.test_path": {"data": {"source": "libsvm", "path": "{data}/x", "test_path": "{}"}},
    "data.path, of images": {"data": {"source": "fashion-mnist", "path": "{}"}},
    "partition.file": {"partition": {"scheme": "clusters", "clients": 2, "file": "{}"}},
}


@pytest.mark.parametrize("key", PLACES)
def test_data_elsewhere_is_not_even_looked_at(key: str, tmp_path: Path, refused: Refused) -> None:
    """An error about a file's first line would tell the server what is in it."""
    data, secret = tmp_path / "data", tmp_path / "secret"
    data.mkdir()
    (data / "x").write_text("1 1:1\n0 1:2\n")
    secret.write_text("the password\n")
    (data / "link").symlink_to(secret)
    for path in (str(secret), f"{data}/../secret", f"{data}/link", "/etc/passwd", "~/.ssh/id_rsa"):
        text = Experiment.of(**_filled(PLACES[key], path, data)).toml()
        with refused(ConfigError, key.partition(",")[0], "this machine reads data below", "only (--data)"):
            Host(lambda run, client: None, trust=Trust(data=data)).play(text, [])
    # Without the option, or below the folder, it is read.
    for path, trust in ((str(secret), Trust()), (f"{data}/none", Trust(data=data))):
        text = Experiment.of(**_filled(PLACES[key], path, data)).toml()
        with pytest.raises(DataError):
            Host(lambda run, client: None, trust=trust).play(text, [])


def _filled(tables: dict[str, Any], path: str, data: Path) -> dict[str, Any]:
    fill = {"{}": path, "{data}/x": f"{data}/x"}
    return {name: {k: fill.get(str(v), v) for k, v in table.items()} for name, table in tables.items()}
