"""Fixtures of the replications."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replication import experiments


@pytest.fixture(scope="session")
def plane_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published plane points."""
    folder = tmp_path_factory.mktemp("plane")
    experiments.write_plane(folder)
    return folder
