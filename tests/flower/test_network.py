"""Simulated seconds of communication against deployed rounds; `python -m tests.flower network` prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flower.network import EXPERIMENTS, MODEL, PROFILES, rounds


@pytest.mark.slow
@pytest.mark.usefixtures("tunnel")
def test_simulated_seconds_are_within_15_percent_of_measured_ones(tmp_path: Path) -> None:
    found = list(rounds(tmp_path))
    assert len(found) == len(PROFILES) * len(EXPERIMENTS) * MODEL["rounds"]
    assert [one for one in found if not 0.85 <= one.ratio <= 1.15] == []
