"""Errors for a mistyped key or value of an experiment: they name it, what was given, what is possible, on one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment, from_table, load
from fedsim.keys import nearest

Refused = Callable[..., AbstractContextManager[None]]


def test_nearest() -> None:
    assert nearest("level", ["levels", "norm"]) == " (did you mean 'levels'?)"
    assert nearest("zzz", ["levels", "norm"]) == ""
    assert nearest("x", []) == ""


UNKNOWN = [
    ("sed=3", "'sed'", "'seed'", "algorithm, seed, rounds"),
    ("uplnk.levels=3", "'uplnk'", "'uplink'", "uplink, downlink"),
    ("uplink.level=3", "'uplink.level'", "'uplink.levels'", "compressor = 'quantize'", "levels, norm, bucket, memory"),
    ("downlink.feedbck=0", "'downlink.feedbck'", "'downlink.feedback'", "levels, norm, bucket, feedback"),
    ("data.test_frction=0", "'data.test_frction'", "'data.test_fraction'", "source = 'digits'", "source, standardise"),
    ("partition.alhpa=1", "'partition.alhpa'", "'partition.alpha'", "scheme = 'dirichlet'", "scheme, clients, alpha"),
    ("task.ll2=1", "'task.ll2'", "'task.l2'", "kind = 'softmax'", "kind, l2"),
    ("participation.l=1", "'participation.l'", "scheme = 'k-of-n'", "scheme, k"),
    ("local.step_s=1", "'local.step_s'", "'local.steps'", "[local]:", "steps, epochs, batch, order, step, send"),
    ("server.stp=1", "'server.stp'", "'server.step'", "[server]:", "step, schedule"),
    ("run.thread=1", "'run.thread'", "'run.threads'", "[run]:", "precision, device"),
]


@pytest.mark.parametrize("parts", UNKNOWN, ids=lambda parts: parts[0])
def test_unknown_keys_name_the_nearest(parts: tuple[str, ...], refused: Refused) -> None:
    assignment, *expected = parts
    with refused(ConfigError, "unknown key", *expected):
        load(None, [assignment])


KINDS = [
    ("uplink.compressor=quantise", "uplink.compressor = 'quantise'", "'quantize'", "identity, natural"),
    ("downlink.compressor=5", "downlink.compressor = 5", "identity, natural"),
    ("uplink.compressor=[1]", "uplink.compressor = [1]", "identity, natural"),
    ("uplink.compressor.levels=2", "uplink.compressor = {'levels': 2}", "identity, natural", "[uplink]"),
    ("data.source=digit", "data.source = 'digit'", "'digits'", "breast-cancer, digits"),
    ("partition.scheme=dirichlt", "partition.scheme = 'dirichlt'", "'dirichlet'", "clusters, dirichlet, iid"),
    ("task.kind=svm", "task.kind = 'svm'", "cnn, least-squares, logistic, mlp, module, softmax"),
    ("participation.scheme=kofn", "participation.scheme = 'kofn'", "'k-of-n'", "bernoulli, full, k-of-n"),
]


@pytest.mark.parametrize("parts", KINDS, ids=lambda parts: parts[0])
def test_unknown_kinds_list_the_possible_ones(parts: tuple[str, ...], refused: Refused) -> None:
    assignment, *expected = parts
    with refused(ConfigError, *expected):
        load(None, [assignment])


MISSING = [
    ("participation.scheme=bernoulli", "participation.p is missing", "scheme = 'bernoulli'", "probability"),
    ("data.source=libsvm", "data.path is missing", "source = 'libsvm'"),
    ("task.kind=module", "task.factory is missing", "kind = 'module'", "package.module:function"),
    ("partition.scheme=iid", "partition.clients is missing", "scheme = 'iid'", "number of clients"),
]


@pytest.mark.parametrize("parts", MISSING, ids=lambda parts: parts[0])
def test_missing_keys_say_what_they_mean(parts: tuple[str, ...], refused: Refused) -> None:
    assignment, *expected = parts
    with refused(ConfigError, *expected):
        load(None, [assignment])


WRONG = [
    ("uplink=3", "uplink = 3", "expected a table [uplink]"),
    ("server=true", "server = true", "expected a table [server]"),
    ("seed=-1", "seed = -1", "from 0 to 9223372036854775807"),
    ("seed=1.5", "seed = 1.5", "whole number"),
    ("rounds=0", "rounds = 0", "from 1"),
    ("rounds=4294967295", "rounds = 4294967295", "4294967294"),
    ("uplink.levels=0", "uplink.levels = 0", "from 1 to 32767"),
    ("uplink.levels=40000", "uplink.levels = 40000", "from 1 to 32767"),
    ("uplink.levels=many", "uplink.levels = 'many'", "from 1 to 32767"),
    ("uplink.norm=l3", "uplink.norm = 'l3'", "'l2'", "'linf'"),
    ("uplink.rate=0", "uplink.rate = 0", "> 0", "<= 1", "auto"),
    ("uplink.feedback=1.5", "uplink.feedback = 1.5", "from 0 to 1", "step"),
    ("uplink.memory=1", "uplink.memory = 1", "true or false"),
    ("uplink.initial=one", "uplink.initial = 'one'", "'gradient' or 'zero'"),
    ("server.schedule=cosine", "server.schedule = 'cosine'", "constant", "inverse-sqrt"),
    ("server.step=nan", "server.step = nan", "finite"),
    ("participation.k=0", "participation.k = 0", ">= 1", "number of clients"),
    ("partition.alpha=0", "partition.alpha = 0", "> 0"),
    ("data.test_fraction=1", "data.test_fraction = 1", "< 1"),
    ("run.precision=float16", "run.precision = 'float16'", "float32", "float64"),
    ("run.device=1", "run.device = 1", "text"),
    ("local.batch=-1", "local.batch = -1", ">= 0"),
    ("uplink.levels=" + "9" * 400, "uplink.levels = 999", "..."),
]


@pytest.mark.parametrize("parts", WRONG, ids=lambda parts: parts[0][:40])
def test_wrong_values_name_what_was_given_and_what_is_expected(parts: tuple[str, ...], refused: Refused) -> None:
    assignment, *expected = parts
    with refused(ConfigError, *expected):
        load(None, [assignment])


def test_an_item_of_a_list_is_named(refused: Refused) -> None:
    with refused(ConfigError, "task.hidden[1] = 0", ">= 1"):
        load(None, ["task.kind=mlp", "task.hidden=[3, 0]"])
    with refused(ConfigError, "task.hidden = 3", "list"):
        load(None, ["task.kind=mlp", "task.hidden=3"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
PLACES = [(name, key) for name, keys in Experiment().table().items() if isinstance(keys, dict) for key in keys]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from([*PLACES, ("seed", None), ("rounds", None), ("algorithm", None)]), value=ANYTHING)
def test_any_value_anywhere_is_an_experiment_or_one_line(place: tuple[str, str | None], value: Any) -> None:
    name, key = place
    message = ""
    try:
        experiment = from_table({name: value} if key is None else {name: {key: value}})
    except ConfigError as error:
        message = str(error)
    if message:
        assert "\n" not in message
        assert name in message
        assert len(message) < 400
    else:
        assert from_table(experiment.table()) == experiment
