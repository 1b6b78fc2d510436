"""Runs with simulated seconds, also those that were played without a network: read off their ledgers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedsim.reporting.runs import Run
from fedsim.simulation.hindsight import network_named, replay


def timed(runs: Iterable[Run], network: str) -> list[Run]:
    """The runs with "seconds" (since the first round) in their metrics, over the network of this name.

    Raises ConfigError for a name that is none, CheckpointError and DataError as ``replay``.
    """
    known, found = network_named(network), []
    for run in runs:
        seconds = np.concatenate(([0.0], np.cumsum(replay(run.path, known).timing.seconds)))
        metrics = [{**line, "seconds": float(seconds[line["round"]])} for line in run.metrics]
        found.append(replace(run, metrics=metrics))
    return found
