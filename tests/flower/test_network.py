"""Simulated seconds of communication against deployed rounds; `python -m tests.flower network` prints them."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path

import pytest

from tests.flower.network import EXPERIMENTS, MODEL, PROFILES, rounds


@pytest.mark.slow
@pytest.mark.usefixtures("tunnel")
def test_simulated_seconds_are_within_15_percent_of_measured_ones(tmp_path: Path) -> None:
    found = list(rounds(tmp_path))
    assert len(found) == len(PROFILES) * len(EXPERIMENTS) * MODEL["rounds"]
    for case in product(PROFILES, EXPERIMENTS):
        # Of three rounds: one may have met a machine that had no time for the processes at the ends.
        ratio = statistics.median(one.ratio for one in found if (one.profile, one.experiment) == case)
        assert 0.85 <= ratio <= 1.15, (case, ratio)
