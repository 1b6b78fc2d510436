"""Every block of the README is what the code does: commands, the experiment file, the Python example, the table."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

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
    lines = [line for line in re.findall(r"`([^`]*--set [^`]*)`", text) if "key=value" not in line]
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


def test_the_two_commands_stand_at_the_top() -> None:
    head = README[: README.index("## ")]
    assert "pip install -e . && fedsim run\n" in head
    assert "pip install -e '.[dev]' && pytest\n" in head
