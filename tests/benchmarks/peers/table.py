"""Whether two engines did the same work, and the table of a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peers.problem import Played

TOLERANCE = 1e-4
"""Largest distance of final parameters, relative to their norm."""

REST = 0.95
"""Share of the coordinates, the nearest ones, that must agree ten times better where all together do not.

With ReLU, two roundings of one number next to 0 fall on both sides of it now and then, and one unit's weights part by
more than rounding. Other work (another order, batch, weight or step) moves all coordinates.
"""


def distances(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[float, float]:
    """(over all coordinates, over the nearest REST of them), relative to the norm of what is expected."""
    if found.shape != expected.shape:
        return float("inf"), float("inf")
    squares = np.sort(np.square(found.astype(np.float64) - expected))
    norm = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
    nearest = squares[: int(REST * len(squares))]
    return float(np.sqrt(squares.sum())) / norm, float(np.sqrt(nearest.sum())) / norm


def verdict(found: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """ "same", "same but for a kink" or "OTHER WORK"."""
    everywhere, rest = distances(found, expected)
    if everywhere <= TOLERANCE:
        return "same"
    return "same but for a kink" if rest <= TOLERANCE / 10 else "OTHER WORK"


@dataclass(frozen=True)
class Pair:
    """Blocks of a peer, and fedsim's blocks right after them: as many rounds, under the same other load."""

    peer: Played
    fedsim: Played


def merged(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of the same engine and setting as one, in the order of their first; the parameters of the last."""
    found: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        key = pair.peer.name, pair.peer.setting
        before = found.get(key)
        found[key] = (
            pair if before is None else Pair(_joined(before.peer, pair.peer), _joined(before.fedsim, pair.fedsim))
        )
    return list(found.values())


def _joined(first: Played, second: Played) -> Played:
    return replace(second, seconds=first.seconds + second.seconds)


def table(case: str, pairs: Sequence[Pair]) -> str:
    """Best and median milliseconds of a round of each peer, fedsim's best beside it, their ratio, and the distance."""
    lines = [f"{case}: no peer ran"]
    for pair in merged(pairs):
        peer, fedsim = pair.peer, pair.fedsim
        if len(lines) == 1:
            lines = [
                f"{case}: d = {len(fedsim.parameters)}, fedsim: {fedsim.setting}; milliseconds of a round",
                f"  {'peer':15} {'setting':24} {'best':>8} {'median':>8} {'fedsim':>8} {'ratio':>7} {'apart':>8}  work",
            ]
        low, middle = 1e3 * min(peer.seconds), 1e3 * sorted(peer.seconds)[len(peer.seconds) // 2]
        beside, distance = 1e3 * min(fedsim.seconds), distances(peer.parameters, fedsim.parameters)[0]
        lines.append(
            f"  {peer.name:15} {peer.setting:24} {low:8.2f} {middle:8.2f} {beside:8.2f} {low / beside:7.2f} "
            f"{distance:8.1e}  {verdict(peer.parameters, fedsim.parameters)}"
        )
    return "\n".join(lines)
