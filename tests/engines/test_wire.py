"""run.wire: messages that are only counted cost what made ones cost, and leave the same model and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.experiment import Experiment
from fedsim.simulation.engine import play
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import initial_state

HALF = {"scheme": "bernoulli", "p": 0.5}
LINEAR = {"data": {"source": "synthetic-linear", "clients": 6, "per_client": 15, "features": 5}}
DIGITS = {"data": {"source": "digits"}, "partition": {"clients": 9, "alpha": 0.5}, "participation": HALF}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "artemis": {**DIGITS, "local": {"batch": 7}},
    "artemis, many levels and buckets": {
        **DIGITS,
        "uplink": {"levels": 20, "bucket": 100, "norm": "linf"},
        "downlink": {"levels": 300},
    },
    "artemis from the first gradient, float64": {
        **LINEAR,
        "uplink": {"initial": "gradient"},
        "run": {"precision": "float64"},
    },
    "powers of two": {
        **DIGITS,
        "uplink": {"compressor": "natural-dithering", "levels": 4, "bucket": 100},
        "downlink": {"compressor": "natural"},
    },
    "eden and 16 bits": {
        **LINEAR,
        "algorithm": "fedavg",
        "uplink": {"compressor": "eden", "bits": 3, "bucket": 4, "feedback": 1.0},
        "downlink": {"compressor": "half"},
    },
    "signs and float16": {
        **DIGITS,
        "algorithm": "fedavg",
        "uplink": {"compressor": "sign", "bucket": 64, "feedback": 1.0},
        "downlink": {"compressor": "half", "values": "float16"},
    },
    "diana, pp1": {**LINEAR, "algorithm": "diana", "server": {"memory": "pp1"}, "participation": HALF},
    "dore": {**DIGITS, "algorithm": "dore"},
    "fedavg": {**DIGITS, "algorithm": "fedavg", "local": {"batch": 5}},
    "hardly anybody": {**LINEAR, "participation": {"scheme": "bernoulli", "p": 0.05}},
    "shared whitening": {**DIGITS, "whitening": {"mode": "shared", "refresh": 3}, "server": {"step": 0.5}},
    "mixing": {
        **DIGITS,
        "participation": {"scheme": "full"},
        "whitening": {"mode": "mixing"},
        "direction": {"kind": "whitened"},
        "local": {"order": "reshuffle", "epochs": 1, "batch": 20, "step": 0.5},
        "server": {"step": 1.0},
    },
}


def experiment(name: str, wire: str) -> Experiment:
    tables = {"rounds": 8, "seed": 2, **EXPERIMENTS[name]}
    return Experiment.of(**{**tables, "run": {"wire": wire, "evaluate_every": 1, **tables.get("run", {})}})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_counted_is_real(name: str, tmp_path: Path) -> None:
    results = {wire: fedsim.run(experiment(name, wire), tmp_path / wire) for wire in ("counted", "real")}
    assert results["counted"].digest == results["real"].digest
    assert results["counted"].ledger.totals == results["real"].ledger.totals
    for file in ("ledger.csv", "metrics.jsonl"):
        counted, real = ((tmp_path / wire / file).read_bytes() for wire in ("counted", "real"))
        assert counted == real
        assert counted.count(b"\n") > 3


def test_how_messages_cross_is_not_part_of_the_name() -> None:
    assert experiment("artemis", "counted") != experiment("artemis", "real")
    assert experiment("artemis", "counted").identifier() == experiment("artemis", "real").identifier()


def test_links_advance_alike_and_only_real_ones_know_a_digest() -> None:
    stores = {}
    for wire in ("counted", "real"):
        setup = prepare(experiment("artemis", wire))
        state = initial_state(setup)
        for _ in range(4):
            play(setup, state)
        stores[wire] = state.store
    assert stores["counted"].epochs.tolist() == stores["real"].epochs.tolist()
    assert max(stores["real"].epochs) > 1
    assert not stores["counted"].digests.any()
    assert stores["real"].digests.any(axis=1).tolist() == (stores["real"].epochs > 0).tolist()
