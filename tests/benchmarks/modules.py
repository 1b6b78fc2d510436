"""What any module costs beside the MLP whose gradient is written by hand: CPU milliseconds a round of one
thread, interleaved, best.

mlp           784-128-62 as a ``Stack``: the closed form
as a module   the same network, its gradient by autograd under vmap
group norm    with GroupNorm between the first layer and ReLU
transformer   two layers of width 32 over the 28 rows of an image; its arithmetic is another, so only the two columns
              of its line compare

Rounds are those of ``workloads``: 10 or 100 clients, one local epoch, batches of 20. "one by one" is the sequential
reference. Every pair of columns must end at the same parameters.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedsim.simulation.executors import chunk_of
from fedsim.tasks import Classifier, Module
from tests.benchmarks.local import Round, solved
from tests.benchmarks.workloads import CPU, Workload, mlp, workload

ROUNDS = {10: 20, 100: 6}
TRANSFORMER_ROUNDS = 1
APART = {"mlp": 1e-4, "as a module": 1e-4, "group norm": 1e-3, "transformer": 1e-3}
"""GroupNorm and LayerNorm divide by deviations that can be small: float32 rounding, magnified."""


class Transformer(nn.Module):
    """29,374 parameters."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(28, 32), nn.Linear(32, classes)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.layers(self.first(x.view(-1, 28, 28))).mean(dim=1))
        return scores


class Wrapped(nn.Module):
    """The MLP, but not as a Sequential, so that nothing knows its layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = mlp((784,), classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def wrapped(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Wrapped(classes)


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.GroupNorm(8, 128), nn.ReLU(), nn.Linear(128, classes))


def transformer(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Transformer(classes)


def table() -> None:
    """Print a line a module and cohort."""
    print(f"{'':14}{'clients':>8}{'side by side':>14}{'one by one':>12}{'x mlp':>8}{'one by one x mlp':>18}")
    for clients in ROUNDS:
        work = workload(f"mlp{clients}", 2)
        works = {"mlp": work}
        for name, factory in (("as a module", "wrapped"), ("group norm", "normed"), ("transformer", "transformer")):
            task = Module(f"tests.benchmarks.modules:{factory}").build((784,), 62, torch.float32, CPU)
            assert isinstance(task, Classifier)
            assert task.mapped is not None
            if name != "transformer" or clients == min(ROUNDS):  # seconds a round
                works[name] = replace(work, task=task)
        play(works, clients)


def play(works: dict[str, Workload], clients: int) -> None:
    """Print the lines of one cohort."""
    rounds: dict[tuple[str, bool], Round] = {}
    for name, work in works.items():
        beside = max(2, min(chunk_of(work.task.dim, 4), clients))
        rounds |= {(name, True): solved(work, beside, None), (name, False): solved(work, 1, None)}
        ended = [_ended(work, rounds[name, side]) for side in (True, False)]
        gap = float((ended[0] - ended[1]).norm() / ended[1].norm())
        assert gap <= APART[name], f"{name}: side by side and one by one end {gap} apart"
    took: dict[tuple[str, bool], list[float]] = {key: [] for key in rounds}
    for turn in range(ROUNDS[clients]):
        for (name, side), round_ in rounds.items():
            if name != "transformer" or turn < TRANSFORMER_ROUNDS:
                start = works[name].task.initial(0)
                before = time.process_time()
                round_(start, turn)
                took[name, side].append(1e3 * (time.process_time() - before))
    reference = min(took["mlp", True])
    for name in works:
        beside, alone = min(took[name, True]), min(took[name, False])
        ratios = f"{beside / reference:8.2f}{alone / reference:18.2f}"
        print(f"{name:14}{clients:8d}{beside:14.1f}{alone:12.1f}{ratios if name != 'transformer' else ''}", flush=True)


def _ended(work: Workload, round_: Round) -> Tensor:
    return round_(work.task.initial(0), 0)
