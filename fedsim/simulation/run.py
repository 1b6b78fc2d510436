"""Run an experiment from its first round, or from wherever its folder says, to its last."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fedsim.data import refuse_absent
from fedsim.errors import CheckpointError, DivergedError, StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry, Ledger
from fedsim.simulation import trackers
from fedsim.simulation.elapsed import Elapsed
from fedsim.simulation.folder import RunFolder, model_digest
from fedsim.simulation.player import Player, Simulation
from fedsim.simulation.setup import Setup, prepare

Metrics = dict[str, Any]

MISFITS = (KeyError, ValueError, TypeError, IndexError, OverflowError, RuntimeError)
"""What a checkpoint that is undamaged, but not of this experiment, leads to."""

DIVERGED = 1e6
"""A loss so many times the first one never comes back."""


class Observer(Protocol):
    """Told what happens, in order; the progress display is one."""

    def started(self, setup: Setup, metrics: Metrics) -> None:
        """Before the first round of this process; ``metrics`` is the newest evaluation."""
        ...

    def played(self, round: int, up: Cost, down: Cost) -> None:
        """After each round: rounds done and the cost so far. May raise StoppedError to stop the run cleanly."""
        ...

    def evaluated(self, metrics: Metrics) -> None:
        """After each evaluation."""
        ...


@dataclass(frozen=True)
class Result:
    """What a run returns.

    model: float[d]; average: the Polyak-Ruppert mean float[d] or None; metrics: one dictionary an evaluation (round,
    loss unless the data is elsewhere, accuracy where there is one, up_bytes, down_bytes, gradients (of samples, by all
    clients), seconds (simulated, so far, where there is a [network]), ...); ledger: totals by direction and kind.
    """

    experiment: Experiment
    model: Tensor
    average: Tensor | None
    metrics: Sequence[Metrics]
    ledger: Ledger

    @property
    def loss(self) -> float:
        """Training loss of the final model; NaN where the data is the clients' own (``fedsim.data.own``)."""
        return float(self.metrics[-1].get("loss", math.nan))

    @property
    def digest(self) -> str:
        """SHA-256 of the final model's bytes."""
        return model_digest(self.model)


def run(
    experiment: Experiment,
    folder: Path | str | None = None,
    observer: Observer | None = None,
    target: float | None = None,
) -> Result:
    """Run an experiment and return its model, curves and costs.

    Args:
        experiment: what to run.
        folder: where to leave the run folder; None keeps everything in memory.
        observer: told about progress.
        target: stop at the first evaluation whose training loss is at most this.

    Raises ConfigError, DataError, DivergedError, CheckpointError.
    """
    trackers.of(experiment, None if folder is None else Path(folder))
    with closing(prepare(experiment)) as setup:
        refuse_absent(setup.federation)
        if folder is None:
            return advance(Simulation(setup), None, observer, target)
        place = RunFolder.create(Path(folder), experiment, setup.choice)
        with place.alone():
            return advance(Simulation(setup), place, observer, target)


def resume(folder: Path | str, observer: Observer | None = None, target: float | None = None) -> Result:
    """Continue a run from its newest checkpoint; the result is that of the uninterrupted run, bit for bit."""
    place = RunFolder(Path(folder))
    with closing(prepare(place.experiment())) as setup, place.alone():
        refuse_absent(setup.federation)
        return advance(Simulation(setup), place, observer, target)


def advance(
    player: Player, folder: RunFolder | None, observer: Observer | None = None, target: float | None = None
) -> Result:
    """Play the rounds that are left, from wherever the folder says; write what they leave. Raises as ``run``."""
    named = trackers.of(player.setup.experiment, None if folder is None else folder.path)
    with trackers.tracked(named, observer) as told:
        return _advance(player, folder, told, target)


def _advance(player: Player, folder: RunFolder | None, observer: Observer | None, target: float | None) -> Result:
    setup, began = player.setup, time.monotonic()
    experiment, ledger, metrics = setup.experiment, Ledger(has_file=folder is not None), []
    elapsed = Elapsed(setup.clock, has_file=folder is not None)
    data = "" if folder is None else setup.federation.digest()
    if folder is not None and (found := folder.restore()) is not None:
        try:
            player.restore(found.round, dict(found.tensors))
            elapsed.restore(found.notes)
            ledger.totals = {(Direction(w), Entry(k)): Cost(*c) for w, k, c in found.notes["totals"]}
        except MISFITS as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder.path}: the checkpoint does not fit its experiment.toml ({reason}); restore the file"
            ) from None
        if found.notes.get("data") != data:
            raise CheckpointError(
                f"{folder.path}: the data is not what this run began with; restore the files that experiment.toml names"
            )
        metrics = folder.metrics(has_loss=setup.federation.whole)

    def evaluate() -> Metrics:
        found = _evaluate(player, ledger, elapsed)
        first, loss = _level(metrics[0] if metrics else found), _level(found)
        if loss > DIVERGED * max(1.0, first):
            raise DivergedError(
                f"round {player.server.round}: the loss has grown from {first:.4g} to {loss:.4g} "
                f"with server.step = {setup.step:.4g}; use a smaller step"
            )
        metrics.append(found)
        if folder is not None:
            folder.append("metrics.jsonl", json.dumps(found) + "\n")
        if observer is not None:
            observer.evaluated(found)
        return found

    def save() -> None:
        if folder is not None:
            for log, text in {"ledger.csv": ledger.drain(), **elapsed.drain(), **player.drain()}.items():
                folder.append(log, text)
            totals = [
                (way.value, kind.value, [c.frames, c.formula_bits, c.payload_bits, c.frame_bytes])
                for (way, kind), c in ledger.totals.items()
            ]
            folder.checkpoint(
                player.server.round, player.tensors(), {"totals": totals, "data": data, **elapsed.notes()}
            )

    last = metrics[-1] if metrics else evaluate()
    if observer is not None:
        observer.started(setup, last)
    saved = player.server.round if metrics else -1
    try:
        while player.server.round < experiment.rounds and not (target is not None and last["loss"] <= target):
            frames = player.play()
            for lines in frames:
                ledger.add(lines)
            elapsed.played(player.server.round - 1, frames)
            done = player.server.round
            if setup.evaluated(done):
                last = evaluate()
            if observer is not None:
                observer.played(done, ledger.cost(Direction.UP), ledger.cost(Direction.DOWN))
            if done % player.checkpoint_every == 0:
                save()
                saved = done
    except StoppedError:
        save()
        raise
    except DivergedError as error:
        if folder is not None:
            folder.diverged(str(error))
        raise
    if saved != player.server.round:
        save()
    result = Result(experiment, player.server.model, player.server.average, metrics, ledger)
    if folder is not None:
        tensors = {"model": result.model} | ({} if result.average is None else {"average": result.average})
        outcome = {
            "rounds": player.server.round,
            "model_sha256": result.digest,
            "seconds": round(time.monotonic() - began, 3),
        }
        folder.finish(experiment, setup.choice, tensors, outcome)
    return result


def _level(metrics: Metrics) -> float:
    """What must not grow: the training loss, or the test loss where the training data is elsewhere."""
    return float(metrics["loss"] if "loss" in metrics else metrics.get("test_loss", 0.0))


def _evaluate(player: Player, ledger: Ledger, elapsed: Elapsed) -> Metrics:
    """The line of metrics.jsonl for the current model: costs so far, training loss, test metrics."""
    setup, server = player.setup, player.server
    federation = setup.federation
    up, down = ledger.cost(Direction.UP), ledger.cost(Direction.DOWN)
    losses = {"loss": setup.task.loss(server.model, federation.all())} if federation.whole else {}
    if not all(map(math.isfinite, losses.values())):
        raise DivergedError(
            f"round {server.round}: the loss is not finite with server.step = {setup.step:.4g}; use a smaller step"
        )
    found: Metrics = {
        "round": server.round,
        **losses,
        "up_bytes": up.frame_bytes,
        "down_bytes": down.frame_bytes,
        "payload_bits": up.payload_bits + down.payload_bits,
        "formula_bits": up.formula_bits + down.formula_bits,
        **elapsed.measures(),
        **player.measures(),
    }
    if federation.test is not None:
        found |= {f"test_{name}": value for name, value in setup.task.metrics(server.model, federation.test).items()}
    if server.average is not None and server.round and federation.whole:
        found["average_loss"] = setup.task.loss(server.average, federation.all())
    return found
