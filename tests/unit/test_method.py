"""The switches: what they mean, which contradict each other, and what the refusal says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import fedsim
from fedsim.algorithms.checks import check, check_error
from fedsim.algorithms.method import (
    Downlink,
    Feedback,
    Method,
    ServerOptions,
    Uplink,
    Within,
    feedback_coefficient,
)
from fedsim.compression import Half, Identity, Quantize, RandK, TopK
from fedsim.errors import ConfigError
from fedsim.simulation.comparison import uncompressed

MEMORY = Uplink(memory=True)


@pytest.mark.parametrize(
    ("uplink", "alpha"),
    [
        (Uplink(), 0.0),
        (Uplink(memory=True), 1 / (2 * (math.sqrt(100) + 1))),
        (Uplink(Quantize(10, bucket=16), memory=True), 1 / (2 * (16 / 100 + 1))),
        (Uplink(Identity(), memory=True), 0.5),
        (Uplink(Identity(), memory=True, rate_levels=1), 1 / (2 * (math.sqrt(100) + 1))),
        (Uplink(Quantize(4), memory=True, rate_levels=20), 1 / (2 * (100 / 400 + 1))),
        (Uplink(memory=True, rate=0.3), 0.3),
        (Uplink(memory=True, rate=0.3, rate_levels=5), 0.3),
    ],
)
def test_alpha(uplink: Uplink, alpha: float) -> None:
    assert uplink.alpha(100) == pytest.approx(alpha, rel=1e-15)
    assert Method(uplink, Downlink(), ServerOptions(), 100).alpha == uplink.alpha(100)


@pytest.mark.parametrize(
    ("uplink", "server", "key"),
    [
        (Uplink(rate=0.5), ServerOptions(), "uplink.rate = 0.5"),
        (Uplink(rate_levels=2), ServerOptions(), "uplink.rate_levels = 2"),
        (Uplink(initial="gradient"), ServerOptions(), "uplink.initial = 'gradient'"),
        (Uplink(), ServerOptions(memory="pp1"), "server.memory = 'pp1'"),
        (Uplink(), ServerOptions(paper_compat=True), "server.paper_compat = True"),
    ],
)
def test_what_needs_memories(uplink: Uplink, server: ServerOptions, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(uplink, Downlink(), server, probability=1.0)
    assert str(caught.value).startswith(f"{key} needs memories, but uplink.memory = false; set it to true or drop ")
    with_memory = Uplink(uplink.compressor, True, uplink.rate, uplink.rate_levels, uplink.initial)
    check(with_memory, Downlink(), server, probability=1.0)


def test_the_first_gradient_needs_everybody() -> None:
    check(Uplink(memory=True, initial="gradient"), Downlink(), ServerOptions(), probability=1.0)
    with pytest.raises(
        ConfigError, match=r"uplink\.initial = 'gradient' needs every client .* participation is partial"
    ):
        check(Uplink(memory=True, initial="gradient"), Downlink(), ServerOptions(), probability=0.99)


def test_paper_compat_is_pp2() -> None:
    check(MEMORY, Downlink(), ServerOptions(paper_compat=True), probability=0.5)
    with pytest.raises(ConfigError, match=r"server\.paper_compat changes the pp2 update only, .*; drop one of them"):
        check(MEMORY, Downlink(), ServerOptions(paper_compat=True, memory="pp1"), probability=0.5)


@pytest.mark.parametrize("uplink", [Uplink(), MEMORY])
@pytest.mark.parametrize("probability", [1.0, 0.01])
def test_plain_switches_pass(uplink: Uplink, probability: float) -> None:
    check(uplink, Downlink(), ServerOptions(normalise="present", weights="uniform", average=True), probability)


@pytest.mark.parametrize(("feedback", "number"), [("step", 0.25), (0.0, 0.0), (1, 1.0), (0.5, 0.5)])
def test_feedback_coefficient(feedback: Feedback, number: float) -> None:
    found = feedback_coefficient(feedback, 0.25)
    assert found == number
    assert isinstance(found, float)


def test_feedback_must_be_stable() -> None:
    """c^2 omega < 1; Quantize(1) has omega = 10 at d = 100."""
    for feedback in (0.0, 0.316):
        check_error("uplink", Quantize(), feedback, 0.0, 100)
    for contraction in (Identity(), TopK(0.01), RandK(0.01, unbiased=False)):
        check_error("uplink", contraction, 1.0, 0.0, 100)
    check_error("uplink", RandK(0.01), 0.0, 0.0, 100)
    for feedback in (0.317, 1.0):
        with pytest.raises(
            ConfigError, match=r"uplink\.feedback is .*omega = 10 at d = 100.*smaller step, or a finer compressor"
        ):
            check_error("uplink", Quantize(), feedback, 0.0, 100)


def test_what_a_biased_compressor_leaves_out_must_be_recovered() -> None:
    for name, compressor in (("top-k", TopK(0.01)), ("rand-k", RandK(0.01, unbiased=False))):
        check_error("uplink", compressor, 0.0, 1.0, 100)
        with pytest.raises(ConfigError, match=rf"uplink\.compressor: '{name}' is biased, .*use uplink\.feedback = 1"):
            check_error("uplink", compressor, 0.0, 0.0, 100)


def test_what_is_only_rounded_may_be_lost() -> None:
    check_error("downlink", Half(), 0.0, 0.0, 100)
    check_error("downlink", Half("float16"), 0.0, 0.0, 100)


def test_a_memory_must_be_stable() -> None:
    """rate < 2 / (1 + omega), which is 2 / 11."""
    check_error("uplink", Quantize(), 0.0, 0.181, 100)
    check_error("uplink", Identity(), 0.0, 1.0, 100)
    with pytest.raises(ConfigError, match=r"downlink\.rate is 0\.182 .*omega = 10.*use rate = 'auto'"):
        check_error("downlink", Quantize(), 0.0, 0.182, 100)


def test_rates_by_hand() -> None:
    """Quantize(1) has omega = 10 at d = 100."""
    assert Downlink().beta(100) == 0.0
    assert Downlink(memory="model").beta(100) == 1 / 22
    assert Downlink(memory="update", rate=0.1).beta(100) == 0.1
    assert Uplink(memory=True, correction="auto").alpha(100) == 1.0
    assert Uplink(memory=True, correction="auto").correct(100) == 1 / 21
    assert (Uplink().correct(100), Uplink().full(100)) == (1.0, 0.0)
    assert Uplink(memory=True, synchronise="auto").full(100) == 1 / 11


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "sgd", "server": {"memory": "pp1"}}, "server.memory = 'pp1' needs memories"),
    ({"uplink": {"initial": "gradient"}}, "uplink.initial = 'gradient' needs every client"),
    ({"server": {"memory": "pp1", "paper_compat": True}}, "server.paper_compat"),
    ({"uplink": {"feedback": 1.0}}, "uplink.feedback is 1 with"),
    ({"algorithm": "dore", "server": {"step": 4.0}}, "downlink.feedback is 4 with"),
    ({"uplink": {"rate": 1.0}}, "uplink.rate is 1 with"),
    ({"algorithm": "mcm", "downlink": {"rate": 1.0}}, "downlink.rate is 1 with"),
    ({"algorithm": "qsgd", "uplink": {"correction": "auto"}}, "uplink.correction = 'auto' needs memories"),
    ({"algorithm": "qsgd", "uplink": {"synchronise": 0.5}}, "uplink.synchronise = 0.5 needs memories"),
    ({"downlink": {"rate": 0.5}}, "downlink.rate = 0.5 needs a downlink memory"),
    ({"downlink": {"each": True, "memory": "update"}}, "downlink.each = True needs clients that hold models"),
    ({"algorithm": "mcm", "downlink": {"feedback": 0.1}}, "downlink.feedback = 0.1 recovers what compression leaves"),
    ({"server": {"memory": "pp1", "normalise": "registered"}}, "server.memory = 'pp1' has no mean of all memories"),
    (
        {"algorithm": "marina", "server": {"memory": "pp1", "normalise": "expected"}},
        "server.memory = 'pp1' has no mean",
    ),
    (
        {"algorithm": "ef21", "server": {"aggregate": "geometric-median", "weights": "uniform"}},
        "but server.normalise = 'registered' and uplink.synchronise need their mean; use server.aggregate = 'mean'",
    ),
    ({"algorithm": "dasha", "uplink": {"compressor": "top-k"}}, "'auto' needs an unbiased compressor, but 'top-k' is"),
    ({"algorithm": "diana", "uplink": {"compressor": "top-k"}}, "'top-k' is biased, so that server.normalise"),
    ({"algorithm": "dasha", "uplink": {"rate": 0.5}}, "uplink.correction = 'auto' needs uplink.rate = 1, got 0.5"),
    ({"algorithm": "marina", "uplink": {"synchronise": 0.0}}, "uplink.correction = 0.0 lets errors stay or grow"),
    ({"algorithm": "dasha", "uplink": {"correction": 0.5}}, "uplink.correction = 0.5 lets errors stay or grow"),
    ({"algorithm": "rand-mcm", "whitening": {"mode": "shared"}, "server": {"step": 0.1}}, "downlink.each = true"),
    ({"participation": {"scheme": "k-of-n", "k": 21}}, "participation.k = 21, but there are 20 clients"),
    ({"server": {"step": -1}}, "server.step = -1"),
    ({"local": {"steps": 2, "step": "1/X"}}, "local.step = '1/X'"),
    ({"server": {"trim": 0.1}}, "server.trim = 0.1 with server.aggregate = 'mean': a trimmed mean, and only that"),
    (
        {"server": {"aggregate": "trimmed-mean"}},
        "server.trim = 0 with server.aggregate = 'trimmed-mean'",
    ),
    (
        {"server": {"aggregate": "median", "weights": "uniform", "memory": "pp1"}},
        "sees mostly zeros and noise in",
    ),
    ({"server": {"aggregate": "geometric-median"}}, "server.aggregate = 'geometric-median' counts heads, but server.w"),
    (
        {"server": {"clip": 1.0, "weights": "uniform"}},
        "server.clip = 1 looks at each client's memory, but",
    ),
    (
        {
            "server": {"clip": 1.0, "weights": "uniform", "memory": "pp1", "step": 0.1},
            "whitening": {"mode": "shared"},
        },
        "server.clip = 1 protects directions, but whitening.mode = 'shared' takes the mean",
    ),
    ({"server": {"trim": 0.5}}, "server.trim = 0.5: expected a number >= 0 and < 0.5"),
]


@pytest.mark.parametrize(("tables", "says"), REFUSED)
def test_a_run_is_refused_before_it_starts(tables: dict[str, Any], says: str) -> None:
    partial = {"data": {"source": "synthetic-linear"}, "participation": {"scheme": "bernoulli", "p": 0.5}, "rounds": 1}
    with pytest.raises(ConfigError) as caught:
        fedsim.run(fedsim.Experiment.of(**(partial | tables)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_local_step_that_has_no_effect_is_not_looked_at() -> None:
    data = {"source": "synthetic-linear", "per_client": 3}
    one, other = (
        fedsim.run(fedsim.Experiment.of(rounds=2, data=data, local={"step": step})).digest
        for step in ("1/L", "nonsense")
    )
    assert one == other


def test_the_uncompressed_run_takes_the_same_step() -> None:
    """Without memories, absent clients would count as zeros under 'registered'."""
    for recipe, normalise in (("ef21", "expected"), ("artemis", "expected"), ("fedavg", "present")):
        assert uncompressed(fedsim.Experiment.of(algorithm=recipe)).server.normalise == normalise


def test_a_compressor_in_other_coordinates_declares_what_it_is_there() -> None:
    within = Within(Quantize(4), torch.neg, torch.neg)
    assert (within.omega(9), within.delta(9)) == (Quantize(4).omega(9), Quantize(4).delta(9))
