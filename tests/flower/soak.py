"""What a process holds while it plays thousands of rounds: memory, open files, children, sampled from outside of it."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL = 4096
"""Bytes at the end of a ledger among which there is a whole line."""


@dataclass(frozen=True, slots=True)
class Sample:
    """round: the last one of the ledger. resident: MB. files: open. children: processes, of these too."""

    round: int
    resident: float
    files: int
    children: int


@dataclass(frozen=True, slots=True)
class Soak:
    """samples: of each process that was watched, by its name."""

    status: int
    seconds: float
    samples: Mapping[str, Sequence[Sample]]


def soak(
    command: Sequence[str], environment: Mapping[str, str], ledger: Path, every: int, others: Mapping[str, int]
) -> Soak:
    """Run a command to its end. every: rounds between samples. others: processes to watch beside it, by name."""
    began, due = time.monotonic(), every
    samples: dict[str, list[Sample]] = {name: [] for name in ("server", *others)}
    with ledger.parent.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                if (now := last_round(ledger)) >= due:
                    due = now - now % every + every
                    for name, number in {"server": process.pid, **others}.items():
                        samples[name].append(sample(number, now))
                time.sleep(0.1)
        finally:
            process.kill()
    return Soak(process.wait(), time.monotonic() - began, samples)


def last_round(ledger: Path) -> int:
    """The newest round that a ledger.csv tells of, -1: none."""
    if not ledger.exists():
        return -1
    with ledger.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().decode().rpartition("\n")[0].splitlines()
    found = next(csv.reader(lines[-1:]), ["round"])[0]
    return int(found) if found.isdecimal() else -1


def sample(process: int, round: int) -> Sample:
    """What a process holds now."""
    place = Path("/proc") / str(process)
    pages = int((place / "statm").read_text().split()[1])
    children = {child for task in (place / "task").iterdir() for child in (task / "children").read_text().split()}
    files = len(list((place / "fd").iterdir()))
    return Sample(round, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, len(children))


def slope(samples: Sequence[Sample]) -> float:
    """MB of resident memory per 1 000 rounds: of the straight line of least squares."""
    fit = statistics.linear_regression([one.round / 1000 for one in samples], [one.resident for one in samples])
    return fit.slope
