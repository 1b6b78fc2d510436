"""What a hostile frame of at most 1 MiB costs: memory bounded by the model's size, and a documented end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory that can begin anew"
)

DOCUMENTED = {"accepted", "FedsimError", "WireError", "ConfigError", "CheckpointError", "DataError", "DecodeError"}


@pytest.fixture(scope="module")
def costs() -> list[dict[str, Any]]:
    """Of each input, in a process of its own with a limited address space."""
    command = [sys.executable, "-m", "tests.fuzz.bounded"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_memory_is_bounded_by_the_model(costs: list[dict[str, Any]]) -> None:
    """The limit on the address space is no part of a reader's way out: MemoryError is none of the outcomes."""
    assert len(costs) > 180
    assert [one for one in costs if one["outcome"] not in DOCUMENTED] == []
    assert [one for one in costs if one["mib"] > one["bound"]] == []
    assert sum(one["octets"] > 2**19 for one in costs) > 100
    assert {one["outcome"] for one in costs} >= {"accepted", "WireError", "ConfigError", "CheckpointError", "DataError"}


@pytest.mark.slow
def test_time_is_printed(costs: list[dict[str, Any]]) -> None:
    print("\n| input of at most 1 MiB | d | MiB | of | ms | of | outcome |\n|---|---:|---:|---:|---:|---:|---|")
    for one in sorted(costs, key=lambda one: -one["ms"] / one["allowed"])[:25]:
        mib, ms = f"{one['mib']:.1f} | {one['bound']:.1f}", f"{one['ms']:.0f} | {one['allowed']:.0f}"
        print(f"| {one['name']} | {one['d']} | {mib} | {ms} | {one['outcome']} |")
    late = [one for one in costs if one["ms"] > one["allowed"]]
    largest = max(one["mib"] / one["bound"] for one in costs)
    print(f"{len(costs)} inputs; most memory {largest:.0%} of its bound; {len(late)} took longer than 20 ms + 5 ns d")
