"""The loop: inputs go into a target; only its documented refusals may come out, soon, and on one line.

Two ways to make inputs. ``drive`` damages what is in the corpus and keeps what is refused at a place, or accepted in a
way, not seen before. ``guided`` (a process of its own) lets atheris choose by the lines that an input reaches.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tests.fuzz.mutate import Bytes, Ints, each, mutants

SLOW = 0.05
"""Seconds that no input may take."""

LINE = 1500
"""Characters that a refusal may have."""

_DOUBTFUL = 0.002
_BATCH = 4096
_MOST = 4096


@dataclass(frozen=True)
class Case:
    """What a target does with an input.

    seeds: valid inputs; check: raises one of ``refusals`` for what is no valid input, returns for what is, and raises
    anything else for a defect; words: what damage likes to insert; bound: the longest input.
    rows: a check of many inputs at once, which returns how many were accepted and the index of a defect or -1.
    """

    seeds: Sequence[bytes]
    check: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    words: Sequence[bytes] = ()
    bound: int = _MOST
    rows: Callable[[Bytes, Ints], tuple[int, int]] | None = None


@dataclass(frozen=True)
class Target:
    """A decoder. share: of the inputs of a run over all targets, relative to the others."""

    name: str
    make: Callable[[], Case]
    share: float = 1.0

    @cached_property
    def case(self) -> Case:
        return self.make()


@dataclass
class Tally:
    """What came of one target. slowest: seconds, of one input (the least of several times where it seemed slow).

    crashes: the first input that led to each place of a defect, and what happened there.
    """

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    crashes: dict[tuple[int, ...], tuple[bytes, str]] = field(default_factory=dict)
    slow: list[tuple[bytes, float]] = field(default_factory=list)
    corpus: list[bytes] = field(default_factory=list)


def place(error: BaseException) -> tuple[int, ...]:
    """Line numbers from the check to where the error was raised."""
    lines, at = [], error.__traceback__
    while at is not None:
        lines.append(at.tb_lineno)
        at = at.tb_next
    return tuple(lines)


def once(case: Case, data: bytes) -> tuple[int, ...] | None:
    """Where an input was refused; None if it was accepted. Raises AssertionError for a defect."""
    try:
        case.check(data)
    except case.refusals as error:
        text = str(error)
        if "\n" in text or len(text) > LINE:
            raise AssertionError(f"a refusal of several lines, or {len(text)} characters: {text[:LINE]}") from error
        return place(error)
    return None


def drive(target: Target, inputs: int, seed: int, seconds: float = float("inf"), corpus: Iterable[bytes] = ()) -> Tally:
    """At least ``inputs`` inputs, unless ``seconds`` are over before. Deterministic but for the times."""
    case, tally = target.case, Tally()
    tally.corpus = [*case.seeds, *corpus]
    seen: set[tuple[int, ...] | None] = set()
    begun = time.perf_counter()
    for data in tally.corpus:
        one(case, data, tally, seen)
    while tally.inputs < inputs and time.perf_counter() - begun < seconds:
        count = max(1, min(_BATCH, inputs - tally.inputs))
        rows, lengths = mutants(tally.corpus, case.words, seed * 1_000_003 + tally.inputs, count, case.bound)
        if case.rows is not None:
            accepted, defect = case.rows(rows, lengths)
            tally.inputs, tally.accepted = tally.inputs + count, tally.accepted + accepted
            if defect >= 0:
                tally.crashes[()] = rows[defect, : lengths[defect]].tobytes(), "a write out of bounds"
        else:
            for data in each(rows, lengths):
                one(case, data, tally, seen)
                if time.perf_counter() - begun > seconds:
                    break
    tally.seconds = time.perf_counter() - begun
    return tally


def one(case: Case, data: bytes, tally: Tally, seen: set[tuple[int, ...] | None]) -> None:
    tally.inputs += 1
    start = time.perf_counter()
    try:
        where = once(case, data)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        tally.crashes.setdefault(place(error), (data, "".join(traceback.format_exception(error)[-6:])))
        return
    took = time.perf_counter() - start
    tally.accepted += where is None
    if where not in seen and len(tally.corpus) < 2000:
        seen.add(where)
        tally.corpus.append(data)
    if took > tally.slowest:
        if took > _DOUBTFUL:  # perhaps the machine was busy, or a kernel was compiled
            took = min(_again(case, data) for _ in range(3))
        if took > SLOW:
            tally.slow.append((data, took))
        tally.slowest = max(took, tally.slowest)


def _again(case: Case, data: bytes) -> float:
    start = time.perf_counter()
    once(case, data)
    return time.perf_counter() - start
