"""The apps are Flower's to import: each is a folder of its own, and runs in Flower's processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.flower.slow_link import Link, slow_link

collect_ignore = ["apps"]
if importlib.util.find_spec("flwr") is None:
    collect_ignore += ["test_federation.py", "test_deployed.py", "test_inprocess.py", "test_apps.py", "test_engines.py"]
    collect_ignore += [
        "test_kills.py",
        "test_kills_deployed.py",
        "test_one_truth.py",
        "test_slow_link.py",
        "test_network.py",
    ]

TUNNEL = "/dev/net/tun"


@pytest.fixture(scope="session")
def tunnel() -> None:
    """What a slow link needs."""
    if os.geteuid() or not os.access(TUNNEL, os.R_OK | os.W_OK):
        pytest.skip(f"a slow link needs root and {TUNNEL}")
    try:
        subprocess.run(["ip", "netns", "list"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a slow link needs `ip netns`")


@pytest.fixture(scope="module")
def link(tunnel: None) -> Iterator[Link]:
    with slow_link() as made:
        yield made
