"""Play a cell's experiment for each of its seeds and say what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from multiprocessing import get_context

import torch
from torch import Tensor

from fedsim import Experiment
from fedsim.data import Scheme, Source, split
from fedsim.ledger import Ledger
from fedsim.simulation.player import Simulation
from fedsim.simulation.setup import Setup, prepare
from fedsim.tasks import TaskOptions
from fedsim.tasks.optimum import optimum
from fedsim.tasks.task import Batch
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


def course(setup: Setup) -> Iterator[tuple[Simulation, Ledger]]:
    """The simulation and all it cost so far: before its first round, at each evaluation, and after its last round."""
    simulation, ledger, rounds = Simulation(setup), Ledger(has_file=False), setup.experiment.rounds
    yield simulation, ledger
    while (done := simulation.server.round) < rounds:
        for lines in simulation.play():
            ledger.add(lines)
        if (done + 1) % setup.experiment.run.evaluate_every == 0 or done + 1 == rounds:
            yield simulation, ledger


def measure(experiment: Experiment) -> Measurement:
    """Run one experiment."""
    floor, began, excess, bits = minimum(experiment), time.monotonic(), [], []
    with closing(prepare(experiment)) as setup:
        for simulation, ledger in course(setup):
            excess.append(math.log10(max(objective(setup, simulation.server.model) - floor, SMALLEST)))
            bits.append((simulation.server.round, ledger.cost().formula_bits))
        drifted = drift(setup, simulation.tensors())
    (first, begun), (last, ended) = bits[1], bits[-1]
    return Measurement(
        excess=tuple(excess),
        bits=(ended - begun) / (last - first) if last > first else math.nan,
        drift=drifted,
        seconds=time.monotonic() - began,
    )


def objective(setup: Setup, model: Tensor) -> float:
    """F(w) = sum_i v_i F_i(w), with the clients' weights in the experiment. model: float[d]."""
    examples, shares = setup.federation.all(), sample_shares(setup.experiment.server.weights, setup.federation.sizes)
    batch = Batch(examples.features[None], examples.targets[None], shares[None].to(model.dtype))
    return float(setup.task.gradients(model[None], batch)[1][0])


def sample_shares(weights: str, sizes: Tensor) -> Tensor:
    """What each sample counts in F, float64[samples], in the order of the clients. sizes: int64[N]."""
    each = sizes.to(torch.float64).reciprocal() / len(sizes)
    return torch.repeat_interleave(each if weights == "uniform" else torch.full_like(each, 1 / int(sizes.sum())), sizes)


def drift(setup: Setup, tensors: Mapping[str, Tensor]) -> float:
    """The distance of the server's memories from the clients', in a state as tensors."""
    if "clients.memory" not in tensors:
        return 0.0
    mine = tensors["clients.memory"]
    if "server.memories" in tensors:
        return float((mine - tensors["server.memories"]).abs().max())
    return float((setup.weights @ mine - tensors["server.memory"]).abs().max())


def minimum(experiment: Experiment) -> float:
    """F* of an experiment's data, with the clients' weights in it."""
    seed = experiment.seed if experiment.data.__struct_config__.tag != "libsvm" else 0
    return _minimum(experiment.data, experiment.partition, experiment.task, experiment.server.weights, seed)


@cache
def _minimum(data: Source, partition: Scheme, task: TaskOptions, weights: str, seed: int) -> float:
    federation = split(data.load(seed), partition, seed)
    built = task.build(tuple(federation.features.shape[1:]), federation.classes, torch.float64, torch.device("cpu"))
    return optimum(built, federation.all(), sample_shares(weights, federation.sizes))[1]


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
