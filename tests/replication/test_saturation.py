"""Six methods level off where predicted, within a factor of 2: ``python -m tests.replication saturation``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replication import saturation
from tests.replication.saturation import METHODS, line, row


@pytest.mark.parametrize("name", METHODS)
def test_on_a_plane(name: str) -> None:
    """Logistic regression; one step, 1500 rounds."""
    found = row("plane", name, "1/(2L)", saturation.plane(name, "1/(2L)", 1500))
    print(line(found))
    assert found.met


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["linear", "plane", "a9a", "full"])
def test_every_row(libsvm_folder: Path, problem: str) -> None:
    found = list(saturation.rows(libsvm_folder, (problem,)))
    print("\n".join(line(each) for each in found))
    assert all(each.met for each in found)
