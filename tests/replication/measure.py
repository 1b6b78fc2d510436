"""Play a cell's experiment for each of its seeds and say what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import fedsim
from fedsim import Experiment
from fedsim.data import Scheme, Source, split
from fedsim.simulation.folder import RunFolder
from fedsim.simulation.setup import prepare
from fedsim.tasks import TaskOptions
from fedsim.tasks.optimum import optimum
from tests.replication.figures import Cell

SMALLEST = 1e-17
"""An excess that rounding makes zero or negative counts as this much."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. excess: log10(F - F*) of each evaluation, the first one before round 0. bits: of a round, by formula.

    drift: how far the server's memory is from the clients': max |h - sum_i v_i h_i|, with PP1 max |h_i - h_i|; 0 where
    there are no memories. seconds: of the run.
    """

    excess: tuple[float, ...]
    bits: float
    drift: float
    seconds: float

    def tail(self, share: float) -> float:
        """Mean of the last ``share`` of the evaluations, at least of the last one."""
        last = self.excess[-max(1, round(share * (len(self.excess) - 1))) :]
        return sum(last) / len(last)


def measure(experiment: Experiment) -> Measurement:
    """Run one experiment in a folder of its own."""
    floor, began = minimum(experiment), time.monotonic()
    with TemporaryDirectory() as place:
        result = fedsim.run(experiment, Path(place) / "run")
        checkpoint = RunFolder(Path(place) / "run").restore()
    assert checkpoint is not None
    first, last = result.metrics[1], result.metrics[-1]
    rounds = last["round"] - first["round"]
    return Measurement(
        excess=tuple(math.log10(max(found["loss"] - floor, SMALLEST)) for found in result.metrics),
        bits=(last["formula_bits"] - first["formula_bits"]) / rounds if rounds else math.nan,
        drift=drift(experiment, checkpoint.tensors),
        seconds=time.monotonic() - began,
    )


def drift(experiment: Experiment, tensors: Mapping[str, Tensor]) -> float:
    """The distance of the server's memories from the clients', in a checkpoint."""
    if "clients.memory" not in tensors:
        return 0.0
    mine = tensors["clients.memory"]
    if "server.memories" in tensors:
        return float((mine - tensors["server.memories"]).abs().max())
    return float((prepare(experiment).weights @ mine - tensors["server.memory"]).abs().max())


def minimum(experiment: Experiment) -> float:
    """F* of an experiment's data."""
    seed = experiment.seed if experiment.data.__struct_config__.tag != "libsvm" else 0
    return _minimum(experiment.data, experiment.partition, experiment.task, seed)


@cache
def _minimum(data: Source, partition: Scheme, task: TaskOptions, seed: int) -> float:
    federation = split(data.load(seed), partition, seed)
    built = task.build(tuple(federation.features.shape[1:]), federation.classes, torch.float64, torch.device("cpu"))
    return optimum(built, federation.all())[1]


def measure_all(cells: Iterable[Cell], processes: int) -> Iterator[tuple[Cell, list[Measurement]]]:
    """Each cell with the runs of its seeds, in order, as soon as they are done."""
    jobs = [(cell, seed) for cell in cells for seed in cell.seeds]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        runs = pool.map(measure, [cell.at(seed) for cell, seed in jobs])
        for cell, group in groupby(zip(jobs, runs, strict=True), key=lambda pair: pair[0][0]):
            yield cell, [run for _, run in group]


def mean_tail(cell: Cell, runs: Sequence[Measurement]) -> float:
    """What is compared with the figure: the mean over the seeds, on the log10 axis."""
    return sum(run.tail(cell.tail) for run in runs) / len(runs)
