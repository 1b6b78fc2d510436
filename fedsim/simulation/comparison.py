"""How many times fewer bytes: a run against the same experiment without compression, both played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedsim.algorithms.method import Downlink, Uplink
from fedsim.compression import Identity
from fedsim.experiment import Experiment
from fedsim.simulation.run import Metrics, Observer, Result, resume, run

FOLDER = "uncompressed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Bytes (frames, both directions) until the training loss was at most ``loss``; None: not reached.

    loss is the final loss of the compressed run; round and uncompressed_round are the evaluations that reached it.
    """

    loss: float
    round: int
    bytes: int
    uncompressed_round: int | None
    uncompressed_bytes: int | None

    @property
    def saving(self) -> float | None:
        """How many times fewer bytes the compressed run needed; None when either needed none or never got there."""
        return self.uncompressed_bytes / self.bytes if self.uncompressed_bytes and self.bytes else None


def uncompressed(experiment: Experiment) -> Experiment:
    """The same experiment with nothing compressed and no memories: same clients, cohorts, batches and step sizes.

    It may take twice as many rounds, so that it is not cut off just short of the loss it is compared at, and is
    evaluated in every round, so that its bytes are not rounded up in favour of compression.
    """
    plain = Identity()
    normalise = experiment.server.normalise
    server = msgspec.structs.replace(
        experiment.server,
        memory="pp2",
        paper_compat=False,
        # Without memories those who are absent count as zeros, which would shorten the step.
        normalise="expected" if normalise == "registered" else normalise,
    )
    options = msgspec.structs.replace(experiment.run, baseline=False, evaluate_every=1, trackers=())
    return msgspec.structs.replace(
        experiment,
        algorithm="sgd",
        rounds=2 * experiment.rounds,
        uplink=Uplink(plain),
        downlink=Downlink(plain),
        server=server,
        run=options,
    )


def compare(result: Result, folder: Path | None = None, observer: Observer | None = None) -> tuple[Comparison, Result]:
    """Play (or resume) the uncompressed run until it reaches the loss of ``result``; at most twice as many rounds."""
    place = None if folder is None else folder / FOLDER
    if place is not None and (place / "experiment.toml").exists():
        other = resume(place, observer, target=result.loss)
    else:
        other = run(uncompressed(result.experiment), place, observer, target=result.loss)
    own, theirs = _reached(result.metrics, result.loss), _reached(other.metrics, result.loss)
    assert own is not None
    comparison = Comparison(
        loss=result.loss,
        round=own["round"],
        bytes=_bytes(own),
        uncompressed_round=None if theirs is None else theirs["round"],
        uncompressed_bytes=None if theirs is None else _bytes(theirs),
    )
    return comparison, other


def _reached(metrics: Sequence[Metrics], loss: float) -> Metrics | None:
    return next((found for found in metrics if found["loss"] <= loss), None)


def _bytes(metrics: Metrics) -> int:
    return int(metrics["up_bytes"] + metrics["down_bytes"])
