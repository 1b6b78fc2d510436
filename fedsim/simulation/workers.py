"""A cohort spread over processes: forked once, one thread each, fed by pipes; rows go through shared memory.

Groups (``fedsim.solvers.local.groups_of``) are what is spread, and each is computed as it would be alone, so the split
changes no bit. The longest group goes first, always to the worker with the least to do. Models and directions lie in
memory that all processes map; only client numbers, notes of solvers and counts travel through pipes.

Workers inherit the data and the task by the fork, so nothing is copied. They end when the pool is closed, and when its
process dies: then their pipe ends. A larger cohort than any before takes a new fork, with twice the room.
"""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections.abc import Mapping
from mmap import mmap
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from fedsim.errors import WorkerError
from fedsim.randomness import Stream
from fedsim.simulation.messages import Work, answer_bytes, answer_of, work_bytes, work_of
from fedsim.solvers.local import gathered, groups_of, solve_group
from fedsim.solvers.memory import Memory
from fedsim.solvers.plan import Ask, Done, Group, Plan, Rows, Solution
from fedsim.tasks import Task

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from fedsim.data import Federation


class Workers:
    """Processes that solve for a cohort. Nothing is forked before the first cohort.

    The directions of a solution lie in the shared memory: the next ``solve`` overwrites them.
    """

    def __init__(self, task: Task, federation: Federation, plan: Plan, count: int) -> None:
        self.task, self.federation, self.plan, self.count = task, federation, plan, count
        self._room = 0
        self._stop: weakref.finalize[..., Workers] | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. A later ``solve`` forks again."""
        if self._stop is not None:
            self._stop()
        self._room, self._stop = 0, None

    def solve(self, models: Tensor, clients: Tensor, stream: Stream, memories: Mapping[int, Memory]) -> Solution:
        """As ``fedsim.solvers.solve``. Raises what a worker raised, and WorkerError when one died."""
        n = clients.shape[0]
        groups = groups_of(self.federation, clients, self.plan)
        if not n:
            return gathered([], [], Rows.like(models))
        if n > self._room:
            self._fork(max(n, 2 * self._room), models)
        shared = models.stride(0) == 0
        self._models[: 1 if shared else n] = models[:1] if shared else models
        try:
            shares = spread(groups, self._costs(clients, groups), self.count)
            busy = [i for i, share in enumerate(shares) if share]
            numbers = clients.tolist()
            for i in busy:
                theirs = [groups[g] for g in shares[i]]
                known = {c: memories[c] for group in theirs for c in map(numbers.__getitem__, group) if c in memories}
                self._send(i, Work(shared, numbers, stream, known, theirs))
            answers = {i: self._receive(i) for i in busy}
        except BaseException:
            self.close()
            raise
        done: dict[int, Done] = {}
        for i in busy:
            answer = answers[i]
            if isinstance(answer, BaseException):
                raise answer
            done |= zip(shares[i], answer, strict=True)
        return gathered(
            groups, [done[g] for g in range(len(groups))], Rows(self._rows.direction[:n], self._rows.losses[:n].clone())
        )

    def _costs(self, clients: Tensor, groups: list[Group]) -> list[int]:
        """Samples that each group goes through, or in proportion to that."""
        sizes, local = self.federation.sizes_of(clients), self.plan.local
        each = (sizes if local.epochs or not local.batch else sizes.clamp_max(local.batch)).tolist()
        return [sum(each[place] for place in group) for group in groups]

    def _fork(self, room: int, like: Tensor) -> None:
        self.close()
        self._models, direction = (_shared(room, self.task.dim, like.dtype) for _ in range(2))
        self._rows, self._room = Rows(direction, _shared(room, 1, like.dtype)[:, 0]), room
        fork = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes: list[ForkProcess] = []
        for _ in range(self.count):
            ours, theirs = fork.Pipe()
            self._pipes.append(ours)
            process = fork.Process(target=_work, args=(self, theirs, list(self._pipes)), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
        self._stop = weakref.finalize(self, _end, self._pipes, self._processes)

    def _send(self, i: int, work: Work) -> None:
        try:
            self._pipes[i].send_bytes(work_bytes(work))
        except (BrokenPipeError, ConnectionResetError):
            self._died(i)

    def _receive(self, i: int) -> list[Done] | BaseException:
        try:
            return answer_of(self._pipes[i].recv_bytes())
        except (EOFError, ConnectionResetError):
            self._died(i)

    def _died(self, i: int) -> NoReturn:
        process = self._processes[i]
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise WorkerError(
            f"worker {i + 1} of {self.count} (process {process.pid}) died with {how}; if the memory is full, lower "
            "run.workers or use run.executor = 'sequential'"
        )


def spread(groups: list[Group], costs: list[int], count: int) -> list[list[int]]:
    """Numbers of the groups that each of ``count`` workers does: largest first, to whoever has the least.

    >>> spread([[0], [1], [2], [3]], [5, 9, 4, 1], 2)
    [[1, 3], [0, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for g in sorted(range(len(groups)), key=lambda g: -costs[g]):
        i = loads.index(min(loads))
        shares[i].append(g)
        loads[i] += costs[g]
    return shares


def _work(pool: Workers, pipe: Connection, others: list[Connection]) -> None:
    """A worker's life. others: the pool's ends, which must be closed here, or no pipe would ever end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            answer = answer_bytes(_answer(pool, work_of(message)))
        except BaseException as error:
            answer = answer_bytes(error)
        try:
            pipe.send_bytes(answer)
        except OSError:
            return


def _answer(pool: Workers, work: Work) -> list[Done]:
    n, clients = len(work.numbers), torch.tensor(work.numbers)
    models = pool._models[:1].expand(n, -1) if work.shared else pool._models[:n]
    ask, rows = Ask(models, clients, work.stream, work.known), pool._rows.of(n)
    return [solve_group(pool.task, pool.federation, pool.plan, ask, group, rows) for group in work.groups]


def _shared(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros that processes forked later share, dtype[rows, width]; memory is taken when a row is first written."""
    size = rows * width * dtype.itemsize
    return torch.frombuffer(mmap(-1, max(size, 1)), dtype=dtype, count=rows * width).view(rows, width)


def _end(pipes: list[Connection], processes: list[ForkProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
        process.close()
