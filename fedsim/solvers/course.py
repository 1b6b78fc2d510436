"""Which samples the clients of a group use, step by step: the batches of ``batches`` and ``passes``, for all at once.

Clients stand in the order of their numbers of steps, most first, so those that still have a batch are a prefix, which
shrinks. A batch that is shorter than its neighbours is padded with samples of the same client at weight 0. Rows of the
data are found for many steps at once, and copied together for as many steps as fit into ``COPIED`` numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.randomness import Stream
from fedsim.solvers.batches import choose
from fedsim.solvers.order import incremental, passes_of
from fedsim.solvers.plan import Plan
from fedsim.solvers.transfer import sent

if TYPE_CHECKING:
    from fedsim.data import Federation

Ints = NDArray[np.int64]

COPIED, FOUND = 2**19, 2**17
"""Numbers of features that are copied at once, and samples that are found at once."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some steps: their samples, one after another. features: [R, *shape]; targets: int64[R] or float[R]; weights: [R].

    going: clients that take each step; widths: the longest of their batches, so R is the sum of their products. With
    ``same`` every step uses the same samples, which are there once.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor
    going: list[int]
    widths: list[int]
    same: bool

    def split(self, part: Tensor) -> Iterable[Tensor]:
        """[R, ...] -> [a, B, ...] for each step; ``part`` is one of the above, or made of one row by row."""
        shapes = zip(self.going, self.widths, strict=True)
        if self.same:
            return repeat(part.view(self.going[0], self.widths[0], *part.shape[1:]), len(self.going))
        pieces = torch.split_with_sizes(part, [a * width for a, width in zip(self.going, self.widths, strict=True)])
        return (piece.view(*shape, *part.shape[1:]) for piece, shape in zip(pieces, shapes, strict=True))


@dataclass(frozen=True, slots=True)
class Course:
    """Clients of a group and their ways, int64[c] each.

    clients: numbers; starts, sizes: of their samples; batches: b; done: steps before; steps: of this round.
    """

    federation: Federation
    plan: Plan
    clients: Ints
    starts: Ints
    sizes: Ints
    batches: Ints
    done: Ints
    steps: Ints

    @staticmethod
    def of(federation: Federation, plan: Plan, clients: Ints, done: Ints) -> Course:
        """clients: in the order of ``steps_of``."""
        offsets = federation.offsets.numpy()
        starts = offsets[clients]
        sizes = offsets[clients + 1] - starts
        return Course(federation, plan, clients, starts, sizes, batches_of(plan, sizes), done, steps_of(plan, sizes))

    @property
    def samples(self) -> Ints:
        """Samples of all steps."""
        b, n = self.batches, self.sizes
        if self.plan.order is None:
            return self.steps * b
        m = -(-n // b)
        if self.plan.local.epochs and not (self.done % m).any():  # whole passes
            return self.plan.local.epochs * n

        def before(k: Ints) -> Ints:
            passes, rest = np.divmod(k, m)
            return passes * n + np.minimum(rest * b, n)

        return before(self.done + self.steps) - before(self.done)

    def pages(self, stream: Stream, dtype: torch.dtype) -> Iterator[Page]:
        """All steps, in order. stream: of the round."""
        if self.whole and self.plan.order in (None, incremental):
            yield self._whole(dtype)
            return
        for first, places, counts in self.found(stream):
            yield from self._copied(places, counts, first, dtype)

    @property
    def whole(self) -> bool:
        """Whether everybody takes all of its samples in every step."""
        return bool((self.batches == self.sizes).all())

    def found(self, stream: Stream) -> Iterator[tuple[int, Ints, Ints]]:
        """(first of some steps, places int64[S, a, B], samples of each batch int64[S, a]), in order."""
        top, width, first = int(self.steps[0]), int(self.batches.max()), 0
        passes = _Passes(self, stream.seed)
        while first < top:
            a = int(np.count_nonzero(self.steps > first))
            last = min(top, first + max(1, FOUND // (a * width)))
            if self.plan.order is None:
                yield first, *self._fresh(stream, first, last, a)
            else:
                yield first, *passes.between(first, last, a)
            first = last

    def _whole(self, dtype: torch.dtype) -> Page:
        """All samples of everybody, in every step."""
        federation, n, width = self.federation, self.sizes, int(self.sizes.max())
        going, count = [len(n)] * int(self.steps[0]), len(n) * width
        if bool((n == width).all()) and bool((np.diff(self.starts) == width).all()):
            some = slice(int(self.starts[0]), int(self.starts[0]) + count)
            features, targets = federation.features[some], federation.targets[some]
            weights = torch.full((count,), 1 / width, dtype=dtype, device=targets.device)
            return Page(features, targets, weights, going, [width] * len(going), same=True)
        places = np.minimum(np.arange(width), n[:, None] - 1)[None]
        (page,) = self._copied(places, n[None], 0, dtype)
        return Page(page.features, page.targets, page.weights, going, [width] * len(going), same=True)

    def _fresh(self, stream: Stream, first: int, last: int, a: int) -> tuple[Ints, Ints]:
        """(places int64[S, a, B], samples of each batch int64[S, a])."""
        clients, sizes = torch.from_numpy(self.clients[:a]), torch.from_numpy(self.sizes[:a])
        width, size = int(sizes.amax()), self.plan.local.batch
        found = [choose(stream.at(stream.round, index=h), clients, sizes, width, size) for h in range(first, last)]
        counts = np.broadcast_to(self.batches[:a], (last - first, a))
        return np.minimum(torch.stack(found).numpy(), self.sizes[:a, None] - 1), counts

    def _copied(self, places: Ints, counts: Ints, first: int, dtype: torch.dtype) -> Iterator[Page]:
        """The pages of steps whose samples are found."""
        federation, (steps, a, width) = self.federation, places.shape
        features, column = federation.features, np.arange(width)
        takes = self.steps[:a] > first + np.arange(steps)[:, None]
        going, widths = takes.sum(axis=1), (takes * counts).max(axis=1)
        real = column < counts[:, :, None]
        kept = takes[:, :, None] & (column < widths[:, None, None])
        rows = sent((places + self.starts[:a, None])[kept], features.device)
        if self.plan.order is None:
            each = 1 / counts
        else:
            each = (-(-self.sizes[:a] // self.batches[:a]) / self.sizes[:a])[None]
        kind = np.float64 if dtype == torch.float64 else np.float32
        weights = sent((real * each.astype(kind)[:, :, None])[kept], features.device, dtype)
        targets = federation.targets.index_select(0, rows)
        at_once = max(1, COPIED // max(1, a * width * features.shape[1:].numel()))
        ends = np.cumsum(going * widths).tolist()
        for start in range(0, steps, at_once):
            stop = min(start + at_once, steps)
            some = slice(ends[start - 1] if start else 0, ends[stop - 1])
            copied = features.index_select(0, rows[some])
            yield Page(
                copied,
                targets[some],
                weights[some],
                going[start:stop].tolist(),
                widths[start:stop].tolist(),
                same=False,
            )


class _Passes:
    """The places of a group's passes. A pass is ordered once, for all clients that begin it on the same page."""

    def __init__(self, course: Course, seed: int) -> None:
        self.course, self.seed = course, seed
        self.known: dict[int, tuple[Ints, Ints]] = {}

    def between(self, first: int, last: int, a: int) -> tuple[Ints, Ints]:
        """As ``Course._fresh``. A client that has finished stays at its last batch."""
        course = self.course
        b, n = course.batches[:a], course.sizes[:a]
        last_step = course.done[:a] + course.steps[:a] - 1
        k = np.minimum(course.done[:a] + np.arange(first, last)[:, None], last_step)
        epochs, turns = np.divmod(k, -(-n // b))
        counts = np.minimum(b, n - turns * b)
        columns = np.minimum((turns * b)[:, :, None] + np.arange(int(counts.max())), n[:, None] - 1)
        if course.plan.order is incremental:
            return columns, counts
        places = np.empty_like(columns)
        known = {}
        for epoch in np.unique(epochs).tolist():
            steps, clients = np.nonzero(epochs == epoch)
            table, line = known[epoch] = self._table(epoch, np.unique(clients))
            places[steps, clients] = table[line[clients][:, None], columns[steps, clients]]
        self.known = known
        return places, counts

    def _table(self, epoch: int, wanted: Ints) -> tuple[Ints, Ints]:
        """(passes int64[k, width], line of each client in it or -1)."""
        course = self.course
        if epoch in self.known and bool((self.known[epoch][1][wanted] >= 0).all()):
            return self.known[epoch]
        assert course.plan.order is not None
        passes = passes_of(course.plan.order)
        clients, sizes = torch.from_numpy(course.clients[wanted]), torch.from_numpy(course.sizes[wanted])
        line = np.full(len(course.clients), -1)
        line[wanted] = np.arange(len(wanted))
        return passes(self.seed, clients, sizes, epoch, course.federation.clients).numpy(), line


def batches_of(plan: Plan, sizes: Ints) -> Ints:
    """b of clients with so many samples."""
    return np.minimum(plan.local.batch, sizes) if plan.local.batch else sizes


def steps_of(plan: Plan, sizes: Ints) -> Ints:
    """H of clients with so many samples."""
    if not plan.local.epochs:
        return np.full_like(sizes, plan.local.steps)
    return plan.local.epochs * -(-sizes // batches_of(plan, sizes))
