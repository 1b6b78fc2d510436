"""Clients' lines: medians, spread, coins, jitter and traces; that they are functions of (seed, client, round) alone.

The statistical tests are fixed by their seeds; each would alarm on a perfect generator once in 10^7 seeds.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest

from fedsim.data import deal
from fedsim.errors import ConfigError, DataError
from fedsim.experiment import Experiment
from fedsim.network import PROFILES, DataCentre, Fibre, Line, Mobile, Speeds, Trace, certain, delays, speeds_of, there
from fedsim.randomness import Purpose, Stream, four_words
from fedsim.simulation.theory import setting
from tests.conftest import Refused

FALSE_ALARM = 1e-7
HEAD = "client,up_mbps,down_mbps,latency_s\n"


def rows(speeds: Speeds) -> np.ndarray:
    return np.stack([getattr(speeds, field.name) for field in fields(speeds)])


def test_four_words_are_those_of_the_stream() -> None:
    clients = np.array([5, 0, 2**32 - 1])
    for rounds, index in product((np.array([0, 7, 2**32 - 2]), np.array([7, 7, 7])), (0, 3)):
        found = four_words(2**63 - 1, Purpose.NETWORK, rounds, clients, index)
        for round, client, words in zip(rounds.tolist(), clients.tolist(), found, strict=True):
            stream = Stream(2**63 - 1, Purpose.NETWORK, round, index)
            assert stream.words(torch.tensor([client]), 4)[0].tolist() == words.tolist()


@pytest.mark.parametrize("profile", PROFILES)
def test_without_a_spread_every_client_has_the_median(profile: str) -> None:
    line = PROFILES[profile](spread=0.0)
    speeds = speeds_of(line, 3, seed=1)  # type: ignore[arg-type]
    expected = [1e6 * line.up_mbps, 1e6 * line.down_mbps, line.latency_s, line.jitter_s, line.sample_s, 1.0]
    assert rows(speeds).T.tolist() == [expected] * 3


def test_a_spread_is_lognormal_and_a_clients_own() -> None:
    line = Fibre(spread=0.7)
    speeds = speeds_of(line, 20_000, seed=3)
    scores = {
        "line": np.log(speeds.up / (1e6 * line.up_mbps)) / 0.7,
        "path": np.log(speeds.latency / line.latency_s) / 0.7,
        "computer": np.log(speeds.sample / line.sample_s) / 0.7,
    }
    for score in scores.values():
        assert kstest(score, "norm").pvalue > FALSE_ALARM
    assert np.allclose(speeds.down / speeds.up, line.down_mbps / line.up_mbps)
    assert np.allclose(speeds.jitter / speeds.latency, line.jitter_s / line.latency_s)
    independent = np.corrcoef(np.stack(list(scores.values())))[np.triu_indices(3, 1)]
    assert np.abs(independent).max() < 5.5 / np.sqrt(20_000)
    assert (rows(speeds_of(line, 7, seed=3)) == rows(speeds)[:, :7]).all()
    assert (rows(speeds_of(line, 7, seed=4)) != rows(speeds)[:, :7])[:5].all()


def test_who_is_there_is_a_coin_of_the_client_and_the_round() -> None:
    speeds, clients = speeds_of(Mobile(availability=0.3), 5_000, seed=2), np.arange(5_000)
    here = [there(speeds, 2, round, clients) for round in range(2)]
    for one in here:
        assert FALSE_ALARM < binom.cdf(one.sum(), 5_000, 0.3) < 1 - FALSE_ALARM
    assert FALSE_ALARM < binom.cdf((here[0] & here[1]).sum(), 5_000, 0.09) < 1 - FALSE_ALARM
    some = np.array([4_999, 17, 3])
    assert there(speeds, 2, 1, some).tolist() == here[1][some].tolist()
    assert there(speeds_of(Mobile(), 50, seed=2), 2, 1, np.arange(50)).all()


def test_jitter_is_exponential_with_its_mean() -> None:
    speeds = speeds_of(Mobile(spread=0.0, jitter_s=0.2), 10_000, seed=5)
    clients = np.arange(10_000)
    found = delays(speeds, 5, np.full(10_000, 9), clients)
    for way in found.T:
        assert kstest(way / 0.2, "expon").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(found.T)[0, 1]) < 5.5 / np.sqrt(10_000)
    assert (delays(speeds, 5, np.array([9, 9]), np.array([44, 3])) == found[[44, 3]]).all()
    assert not delays(speeds_of(DataCentre(), 5, seed=0), 0, np.zeros(5, np.int64), np.arange(5)).any()


def test_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    file.write_text(HEAD + "1,2,30,0.25\n0,1.5,20,0\n")
    speeds = speeds_of(Trace(str(file)), 2, seed=8)
    assert rows(speeds).tolist() == [[1.5e6, 2e6], [2e7, 3e7], [0, 0.25], [0, 0], [0, 0], [1, 1]]
    file.write_text("availability,client,up_mbps,down_mbps,latency_s,jitter_s,sample_s\n0.5,0,1,1,1,0.5,0.25\n")
    assert rows(speeds_of(Trace(str(file)), 1, seed=8)).tolist() == [[1e6], [1e6], [1], [0.5], [0.25], [0.5]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line for client 0"),
        (HEAD + "0,1,1,0\n", "no line for client 1; there are 2 clients"),
        (HEAD + "0,1,1,0\n0,1,1,0\n", ":3: not a line of a trace (client 0: expected one line"),
        (HEAD + "2,1,1,0\n", ":2: not a line of a trace (client 2"),
        (HEAD + "-1,1,1,0\n", ":2: not a line"),
        (HEAD + "0,1,1\n", ":2: not a line"),
        (HEAD + "0,1,1,0,0\n", ":2: not a line"),
        (HEAD + "0,fast,1,0\n", ":2: not a line of a trace (Expected `float`"),
        (HEAD + "0,0,1,0\n", ":2: not a line"),
        (HEAD + "0,1,nan,0\n", ":2: not a line"),
        (HEAD + "0,1,inf,0\n", ":2: not a line"),
        (HEAD + "0,1,1,-1\n", ":2: not a line"),
        ("client,up_mbps,down_mbps\n0,1,1\n", "latency_s"),
        ("client,up_mbps,down_mbps,latency_s,colour\n0,1,1,1,red\n", "colour"),
        (HEAD + '"0\n', ":2: not a line"),
        (HEAD + "\ufffd\0,1,1,0\n", ":2: not a line"),
        (HEAD + "0" * 1000, "longer than 768 bytes"),
    ],
)
def test_what_is_no_trace(text: str, said: str, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "lines.csv"
    file.write_text(text)
    with refused(DataError, str(file), said):
        speeds_of(Trace(str(file)), 2, seed=0)


@pytest.mark.parametrize(
    ("file", "said"), [("absent.csv", "no such file"), (".", "cannot be read"), ("a\0b", "is not a path")]
)
def test_a_trace_that_cannot_be_read(file: str, said: str, tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, said):
        speeds_of(Trace(str(tmp_path / file)), 2, seed=0)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"profile": "5g"}, "network.profile = '5g': unknown; one of: 4g, data-centre, fibre, iot, off, trace"),
        ({"profile": "4g", "up_mbp": 1}, "unknown key 'network.up_mbp' (did you mean 'network.up_mbps'?)"),
        ({"profile": "4g", "up_mbps": 0}, "network.up_mbps = 0: expected a number from "),
        ({"profile": "iot", "availability": 0.0}, "network.availability = 0.0: expected a number > 0 and <= 1"),
        ({"profile": "iot", "latency_s": float("inf")}, "network.latency_s = inf: expected a finite number"),
        ({"profile": "trace"}, "network.file is missing"),
        ({"deadline_s": 3}, "unknown key 'network.deadline_s'"),
    ],
)
def test_keys_that_mean_nothing(network: dict[str, object], said: str, refused: Refused) -> None:
    with refused(ConfigError, said):
        Experiment.of(network=network)


def test_a_network_names_a_run_and_its_absence_does_not() -> None:
    plain, fast = Experiment.of(), Experiment.of(network={"profile": "fibre"})
    assert plain.table()["network"] == {"profile": "off"}
    assert Experiment().identifier().hex() == "6118077fa345ddeb"  # as before there were networks
    assert fast.identifier() != plain.identifier()
    assert fast.network == Fibre()
    assert Experiment.of(**fast.table()) == fast


def test_no_theorem_for_all_clients_where_some_are_away_or_late() -> None:
    given = {
        "data": {"source": "breast-cancer"},
        "algorithm": "diana-nastya",
        "partition": {"scheme": "iid", "clients": 4},
    }
    networks = [{}, {"profile": "4g"}, {"profile": "4g", "deadline_s": 1.0}, {"profile": "4g", "availability": 0.5}]
    for network, everybody in zip(networks, (True, True, False, False), strict=True):
        experiment = Experiment.of(**given, network=network)
        federation = deal(experiment.data, experiment.partition, 0)
        task = experiment.task.build((30,), 2, torch.float64, torch.device("cpu"))
        assert setting(experiment, federation, task).always_there == everybody
    assert not certain(Trace("lines.csv"))


def test_every_profile_says_the_same_keys() -> None:
    for kind in PROFILES.values():
        assert kind.__struct_fields__ == Line.__struct_fields__
        line = kind()
        assert (line.availability, line.deadline_s) == (1.0, 0.0)  # a profile by itself changes no model
        assert msgspec.convert(msgspec.to_builtins(line), kind) == line
