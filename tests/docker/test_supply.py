"""What the images hold is written down: pinned, complete, allowed by pyproject.toml, and listed in the SBOM."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.pins import DOCKER, pins
from tests.docker.test_static import program

EXTRAS = ("flower", "deploy", "images")
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "platform_system": "Linux"}
OF_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
"""What torch's own index leaves out of the CPU build."""


def project() -> list[Requirement]:
    """What pyproject.toml says that fedsim[flower,deploy,images] needs."""
    table = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    optional = table["optional-dependencies"]
    return [Requirement(line) for line in (*table["dependencies"], *(one for name in EXTRAS for one in optional[name]))]


def needed(requirements: Iterable[Requirement]) -> dict[str, list[tuple[str, Requirement]]]:
    """name -> by whom and how; all that these requirements lead to, as the installed packages say themselves."""
    found: dict[str, list[tuple[str, Requirement]]] = {}
    todo, seen = [("fedsim", one) for one in requirements], set()
    while todo:
        by, requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if OF_CUDA.fullmatch(name):
            continue
        found.setdefault(name, []).append((by, requirement))
        key = name, frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # not needed by this machine; test_every_dependency_is_pinned still asks for its pin
        for one in map(Requirement, lines):
            extras = requirement.extras or {""}
            if one.marker is None or any(one.marker.evaluate({**IMAGE, "extra": extra}) for extra in extras):
                todo.append((name, one))
    return found


def test_every_dependency_is_pinned() -> None:
    """At a version that whoever needs it allows; and nothing is pinned that nobody needs."""
    pinned, wanted = pins(), needed(project())
    assert len(wanted) > 50
    assert sorted(set(wanted) - set(pinned)) == []
    refused = {
        f"{name}=={pinned[name]} for {by}: {requirement}"
        for name, all_of_them in wanted.items()
        for by, requirement in all_of_them
        if by == "fedsim" and not requirement.specifier.contains(pinned[name])
    }
    assert refused == set()
    assert sorted(set(pinned) - set(wanted)) == []


@pytest.mark.parametrize(
    "line", ["numpy", "numpy>=2", "numpy==2.*", "numpy==2.0 ", "git+https://x/y", "-e .", "torch==1"]
)
def test_a_line_that_pins_nothing(
    line: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("docker")
    for file in DOCKER.glob("*.Dockerfile"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "requirements.txt").write_text(f"# What\n{line}\n")
    monkeypatch.setattr("tests.docker.pins.DOCKER", folder)
    with pytest.raises(ValueError, match=r"requirements.txt:2"):
        pins()


def test_the_bill_of_materials() -> None:
    """docker/sbom.sh lists exactly what is pinned, by names that vulnerability databases know."""
    path = program("cyclonedx-py").rpartition("/")[0]
    command = ["sh", str(DOCKER / "sbom.sh")]
    done = subprocess.run(command, env={"PATH": f"{path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bomFormat"] == "CycloneDX"
    listed = {one["name"]: one["version"] for one in found["components"]}
    assert listed == pins()
    assert len(found["components"]) == len(listed)
    assert {one["purl"] for one in found["components"]} == {f"pkg:pypi/{name}@{v}" for name, v in listed.items()}
