"""The ends of a deployment under everything that a network, a kill or a disk can do: see ``machine``.

pytest -m slow tests/faults/test_machine.py -s       20,000 schedules by their seeds; the fast ones are hypothesis's
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.ends.client import ClientEnd
from fedsim.ends.guard import Desk, Taken, limit
from fedsim.wire import decode_frame
from fedsim.wire.link import Sender
from tests.faults.machine import TABLES, schedule

SCHEDULES, ON_DISK = 4_000, 100
"""Of each experiment, in the campaign."""


@given(draw=st.randoms(use_true_random=False), name=st.sampled_from(list(TABLES)))
@settings(max_examples=80, deadline=None)
def test_schedules(draw: random.Random, name: str) -> None:
    schedule(draw, name)


@pytest.mark.parametrize("name", TABLES)
def test_schedules_on_disk(name: str, fast: Path) -> None:
    campaign(range(6), name, fast)


def campaign(seeds: range, name: str, folder: Path | None = None) -> Counter[str]:
    """What happened in the schedules of these seeds. A violation names its seed."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            place = None if folder is None else folder / str(seed)
            if place is not None:
                place.mkdir()
            counts += schedule(random.Random(seed), name, place)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        if place is not None:
            shutil.rmtree(place)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_thousands_of_schedules(name: str, fast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20,000 in all."""
    counts = campaign(range(SCHEDULES - ON_DISK), name) + campaign(range(SCHEDULES - ON_DISK, SCHEDULES), name, fast)
    assert counts["schedules"] == SCHEDULES
    with capsys.disabled():
        print(f"\n{name}: 0 violations in {counts.pop('schedules')} schedules, {ON_DISK} of them on disk")
        for what, count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"{count:9}  {what}")


def take(self: Desk, client: int, replied: Sequence[bytes]) -> Taken:
    """A reply of whatever round, built on whatever end."""
    frames, end = tuple(decode_frame(data, limit(self.setup)) for data in replied), self.ends(client)
    for frame in frames:
        end = end.after(frame.body)
    return Taken(client, frames, end)


def keep(self: Sender[Any], server: Any) -> Sender[Any]:
    """As if every upload had arrived."""
    return self if self.pending is None else Sender(*self.pending)


def forget(self: ClientEnd, *rest: Any) -> None:
    """A refresh that brings no memory."""
    self.sender, self.parted = self.sender.refresh(rest[0], self._afresh(None)), False


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "the server takes whatever comes": ("fedsim.ends.guard.Desk._take", take),
    "the client keeps what was lost": ("fedsim.wire.link.Sender.settle", keep),
    "a refresh without the memory": ("fedsim.ends.client.ClientEnd._refresh", forget),
    "the server forgets whom to refresh": ("fedsim.ends.server.ServerEnd.wants", lambda self, client, frames: False),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_machine_can_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends that are wrong in one place are found out within 60 schedules."""
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises(AssertionError, match=r"^artemis, seed \d+: "):
        campaign(range(60), "artemis")
