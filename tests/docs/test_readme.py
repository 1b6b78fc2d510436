"""Every block of the README is what the code does: commands, the experiment file, the Python example, the table."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.algorithms.recipes import RECIPES
from fedsim.cli.main import app
from fedsim.cli.messages import messages
from fedsim.experiment import load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run() -> None:
    assert blocks("python")
    for block in blocks("python"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, "README.md", "exec"), {})
        assert "times fewer" in printed.getvalue()


def test_experiment_files_are_valid(tmp_path: Path) -> None:
    assert blocks("toml")
    for block in blocks("toml"):
        (tmp_path / "experiment.toml").write_text(block)
        assert load(tmp_path / "experiment.toml").seed == 1


def test_assignments_are_valid() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    lines = re.findall(r"`([^`]*--set [^`]*)`", text)
    lines = [line for line in lines if "key=value" not in line and "fedsim sweep" not in line]
    assert lines
    for line in lines:
        words = shlex.split(line)
        load(None, [words[i + 1] for i, word in enumerate(words) if word == "--set"])


def test_commands_exist() -> None:
    table = re.findall(r"^\| `fedsim (\w+)", README, flags=re.MULTILINE)
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(table) == known


def test_table_of_messages_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    messages()
    table = README.split("<!-- fedsim messages -->")[1].split("<!-- end -->")[0]
    assert capsys.readouterr().out.strip() == table.strip()


def test_the_five_minutes_are_what_happens(tmp_path: Path) -> None:
    (tour,) = re.findall(r"## Five minutes\n\n```sh\n(.*?)```", README, flags=re.DOTALL)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    script = f"set -eu\n{tour}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "x fewer bytes to the same loss" in done.stdout
    assert "9 of 9 runs are finished" in done.stdout
    assert done.stdout.count("3 of 3") == 3
    assert re.search(r"^runs/methods/sgd-\S+ +4g +100 ", done.stdout, flags=re.MULTILINE)
    assert "@article{artemis," in done.stdout
    for page in ("first.html", "methods.html"):
        assert 100_000 < (tmp_path / page).stat().st_size < 6_000_000


def test_the_recipes_are_those_of_the_code() -> None:
    table = README.split("<!-- recipes -->")[1].split("<!-- end of recipes -->")[0]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table.strip().splitlines()[2:]]
    assert rows == [(f"`{name}`", recipe.summary, recipe.source) for name, recipe in RECIPES.items()]


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).exists()


def test_the_two_commands_stand_at_the_top() -> None:
    head = README[: README.index("## ")]
    assert "pip install -e . && fedsim run\n" in head
    assert "pip install -e '.[dev]' && pytest\n" in head
