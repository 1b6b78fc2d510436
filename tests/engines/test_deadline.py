"""A simulated deadline is what a deployment makes of replies that come too late: the same bits, rows and frames.

Who is late is read off the simulator's ledger: clients that were sent something in a round and of whom nothing came.
The two ends then play the experiment without a deadline, and lose those replies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.ends.host import prepared
from fedsim.ends.server import ServerEnd
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.ledger import read_lines
from fedsim.simulation.setup import prepare
from tests.absences import simulated
from tests.conftest import Refused
from tests.engines.test_two_ended import federate

LINEAR: dict[str, Any] = {
    "rounds": 25,
    "data": {"source": "synthetic-linear", "clients": 8, "per_client": 16, "features": 40},
    "participation": {"scheme": "bernoulli", "p": 0.6},
    "run": {"executor": "sequential", "evaluate_every": 25},
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "artemis": {"local": {"order": "reshuffle", "batch": 4, "steps": 3}},
    "diana, pp1": {"algorithm": "diana", "server": {"memory": "pp1"}},
    "double-squeeze": {"algorithm": "double-squeeze"},
    "sgd, every client late now and then": {"algorithm": "sgd", "participation": {"scheme": "full"}},
    "real messages": {"run": {**LINEAR["run"], "wire": "real"}},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_late_is_lost(name: str, tmp_path: Path) -> None:
    tables = {**LINEAR, **EXPERIMENTS[name]}
    network = {"profile": "4g", "deadline_s": 0.7, "spread": 0.4, "jitter_s": 0.1}
    timed = fedsim.run(Experiment.of(**tables, network=network), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "ledger.csv")
    sent, answered = (
        {(int(one["round"]), int(one["client"])) for one in lines[lines["direction"] == way]} for way in ("down", "up")
    )
    late = sent - answered
    assert len(sent) > 2 * len(late) > 10  # some and not most
    assert len({client for _, client in late} & {client for _, client in answered}) > 1  # late now and then

    def lost(round: int, client: int) -> bool:
        return (round, client) in late

    plain = Experiment.of(**tables)
    server, _ = federate(plain, loses=lost)
    assert server.model.numpy().tobytes() == timed.model.numpy().tobytes()
    assert {key: cost.frame_bytes for key, cost in server.ledger.totals.items()} == {
        key: cost.frame_bytes for key, cost in timed.ledger.totals.items()
    }
    assert simulated(plain, lost).server.model.numpy().tobytes() == timed.model.numpy().tobytes()


def test_a_round_in_which_all_are_late_moves_nothing_but_the_clock(tmp_path: Path) -> None:
    tables = {**LINEAR, "algorithm": "sgd", "rounds": 3, "participation": {"scheme": "full"}}
    result = fedsim.run(Experiment.of(**tables, network={"profile": "iot", "deadline_s": 0.2}), tmp_path / "run")
    assert result.metrics[-1]["loss"] == result.metrics[0]["loss"]
    assert result.metrics[-1]["seconds"] == pytest.approx(0.6)
    assert result.metrics[-1]["up_bytes"] == 0
    assert {line.split(",")[3] for line in (tmp_path / "run" / "timing.csv").read_text().splitlines()[1:]} == {"8"}


def test_a_deployment_has_a_deadline_of_its_own(refused: Refused) -> None:
    with refused(ConfigError, "network.deadline_s = 2.0 is of simulated seconds", "deploy.deadline_s"):
        ServerEnd(prepare(Experiment.of(**LINEAR, network={"profile": "4g", "deadline_s": 2.0})))
    ServerEnd(prepare(Experiment.of(**LINEAR, network={"profile": "4g", "availability": 0.9})))


def test_a_machine_of_clients_looks_at_no_trace() -> None:
    given = Experiment.of(**LINEAR, network={"profile": "trace", "file": "/etc/passwd"})
    setup = prepared(given.toml())
    assert (setup.clock, setup.run) == (None, given.identifier())
