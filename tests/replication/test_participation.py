"""What absence costs on a9a: the columns add up, and who pays for catching up."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim
from tests.replication import participation
from tests.replication.participation import Row

GRADIENTS = 400
"""Of clients, a run: 40 rounds at p = 0.5, 200 at p = 0.1."""


def row(folder: Path, method: str, p: float) -> Row:
    """A short run at the step 1/L."""
    return participation.play(participation.experiment(folder, method, p, 1, GRADIENTS), 1)


def test_the_columns_are_the_ledger(libsvm_folder: Path) -> None:
    found = row(libsvm_folder, "artemis", 0.5)
    last = fedsim.run(participation.experiment(libsvm_folder, "artemis", 0.5, 1, GRADIENTS)).metrics[-1]
    assert (found.bytes.up, found.bytes.down) == (last["up_bytes"], last["down_bytes"])
    assert found.bytes.first == 20 * (40 + 4 * 124)
    assert 0 < found.bytes.catch_up < found.bytes.by_model


@pytest.mark.parametrize(("p", "times"), [(0.5, 1.1), (0.1, 1.8)])
def test_a_message_of_its_own_is_cheaper_than_replaying(libsvm_folder: Path, p: float, times: float) -> None:
    """Rand-MCM's downlink beside Artemis', first models apart; the saving grows as clients are absent for longer."""
    shared, own = (row(libsvm_folder, method, p).bytes for method in ("artemis", "rand-mcm"))
    assert shared.down - shared.first > times * (own.down - own.first)
    assert own.by_model > 5 * own.catch_up


def test_without_compression_who_missed_an_update_is_sent_the_model(libsvm_folder: Path) -> None:
    found = row(libsvm_folder, "sgd", 0.1).bytes
    assert found.catch_up == found.by_model
