"""``fedsim keys`` knows every key that an experiment has, with the default and the words of the code."""

from collections.abc import Callable
from typing import Any

import pytest

from fedsim.algorithms.recipes import RECIPES
from fedsim.cli.keys import described, keys
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment


def test_every_key_of_every_recipe_is_listed() -> None:
    listed = {line.name for line in described()}
    for recipe in RECIPES:
        for table, value in Experiment.of(algorithm=recipe).table().items():
            names = {f"{table}.{key}" for key in value} if isinstance(value, dict) else {table}
            assert names <= listed


def test_what_is_said_is_what_holds() -> None:
    default = Experiment().table()
    for line in described():
        table, _, key = line.name.rpartition(".")
        if not line.when and isinstance(value := (default[table] if table else default)[key], (int, str)):
            expected = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            assert line.default == expected, line.name
        assert line.accepts
        assert line.meaning, f"{line.name} {line.when}: not explained where it is defined"


def test_a_table_a_key_and_what_is_none(capsys: pytest.CaptureFixture[str], refused: Callable[..., Any]) -> None:
    keys("uplink")
    text = capsys.readouterr().out
    assert text.startswith("[uplink]\n  memory = false   (true or false)\n      clients send the difference")
    assert '\n[uplink]  with compressor = "quantize"\n  levels = 1   (a whole number from 1 to ' in text
    assert "downlink" not in text
    keys("server.step")
    assert capsys.readouterr().out.count("\n") == 3
    keys("")
    assert capsys.readouterr().out.startswith('  algorithm = "artemis"   (text)\n')
    with refused(ConfigError, "uplin: no such key (did you mean 'uplink'?); tables and keys: algorithm, seed, rounds"):
        keys("uplin")
