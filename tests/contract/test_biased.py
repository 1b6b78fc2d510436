"""What a compressor leaves out is recovered, or the experiment is refused: every compressor, both directions.

Nothing is assumed but the constants that each declares: a compressor is biased where omega is infinite, and then its
delta says whether error feedback of coefficient 1 and memories of rate 1 are stable.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, get_args

import msgspec
import pytest

import fedsim
from fedsim.algorithms.checks import ROUNDING
from fedsim.algorithms.method import AnyCompressor
from fedsim.compression import Compressor, Eden, LowRank, PermK, PerTensor, RandK, Sign, SparseTernary, TopK
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.simulation.setup import prepare

DIM = 24
KINDS: list[Any] = [PermK(parts=4) if kind is PermK else kind() for kind in get_args(AnyCompressor)]
COMPRESSORS: list[Any] = [
    *KINDS,
    *(RandK(0.5, unbiased=False), TopK(1.0), TopK(0.5), SparseTernary(0.5), Sign(4), LowRank(1), Eden(2)),
    *(PerTensor(TopK(0.25)), PerTensor(Sign(), (3, 5)), PerTensor(RandK(0.5), (4,))),
]
NOTHING: dict[str, Any] = {}
FEEDBACK = {"feedback": 1.0}
RECOVERS: dict[str, list[dict[str, Any]]] = {
    "uplink": [NOTHING, FEEDBACK, {"memory": True}, {"memory": True, "feedback": 1.0}],
    "downlink": [NOTHING, FEEDBACK, {"memory": "update"}, {"memory": "model"}],
}
WORLD: dict[str, Any] = {
    "algorithm": "sgd",
    "data": {"source": "synthetic-linear", "clients": 4, "per_client": 6, "features": DIM},
    "rounds": 3,
    "server": {"step": 1e-3, "normalise": "registered"},
}
CASES = [
    pytest.param(compressor, way, extra, id=f"{way} {compressor!r} {extra}")
    for compressor, way in product(COMPRESSORS, RECOVERS)
    for extra in RECOVERS[way]
]


def experiment(compressor: Any, way: str, extra: dict[str, Any]) -> Experiment:
    plain = {"compressor": "identity"}
    return Experiment.of(
        **WORLD, **{"uplink": plain, "downlink": plain, way: msgspec.to_builtins(compressor) | {**extra}}
    )


def lost(compressor: Compressor, extra: dict[str, Any]) -> bool:
    """Whether what it leaves out is more than rounding, and nobody recovers it."""
    biased = not math.isfinite(compressor.omega(DIM))
    return biased and compressor.delta(DIM) < ROUNDING and not extra


def grows(compressor: Compressor, extra: dict[str, Any]) -> bool:
    """Whether an error that is fed back does not shrink: 1 - delta of a contraction, omega of another."""
    delta, omega = compressor.delta(DIM), compressor.omega(DIM)
    return bool(extra.get("feedback")) and (1 - delta if delta else omega) >= 1


@pytest.mark.parametrize(("compressor", "way", "extra"), CASES)
def test_it_runs_or_is_refused_with_the_reason(compressor: Any, way: str, extra: dict[str, Any]) -> None:
    given = experiment(compressor, way, extra)
    expected = None
    if lost(compressor, extra):
        expected = f"{way}.compressor: {compressor.__struct_config__.tag!r} is biased.*use {way}.feedback = 1"
    elif grows(compressor, extra):
        expected = f"{way}.feedback is 1 with a compressor of omega.*the error would grow.*use feedback = 'step'"
    if expected:
        with pytest.raises(ConfigError, match=expected):
            prepare(given)
    else:
        assert math.isfinite(fedsim.run(given).loss)


def test_both_ends_of_the_rule_are_met() -> None:
    outcomes = [(lost(one, extra), grows(one, extra)) for one in COMPRESSORS for extra in (NOTHING, FEEDBACK)]
    assert {(True, False), (False, True), (False, False)} <= set(outcomes)
