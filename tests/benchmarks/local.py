"""Milliseconds of local solving in a round, by executor, beside what is written by hand; interleaved, best of rounds.

"sequential" and "workers, 1" take one client after another: networks by ``fedsim.tasks.chain`` where they are one.

A round is: the cohort's directions from the model, and the model minus their mean by v_i. Every row plays the same
rounds, and the end parameters must agree, so the work was the same.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.randomness import Purpose, Stream
from fedsim.simulation.executors import chunk_of, cores
from fedsim.simulation.workers import Workers
from fedsim.solvers import Local, Plan
from fedsim.solvers.local import solve_into
from fedsim.solvers.order import ORDERS
from fedsim.solvers.plan import Ask, Rows
from fedsim.tasks import Classifier
from tests.benchmarks.handwritten import Round, loop, manual
from tests.benchmarks.workloads import STEP, Workload, workload

CASES = {"lr10": 40, "lr100": 20, "mlp10": 15, "mlp100": 6, "cnn10": 2}
"""Timed rounds of each row."""

TOGETHER = 5
"""Rounds of a row before the next one's turn, as in a run."""

CHECKED = 4
"""Rounds after which the parameters are compared."""

TOLERANCE = 1e-4
HALF = "sequential, bfloat16"
TOLERANCES = {HALF: 1e-2}
MLP_CHUNKS = (8, 16)


def rows(work: Workload, stack: ExitStack) -> dict[str, Round]:
    """What is compared."""
    found: dict[str, Round] = {"loop, by hand": loop(work)}
    cohort = len(work.cohorts[0])
    if work.task.stack is not None:
        sizes = {cohort} | {chunk for chunk in MLP_CHUNKS if chunk < cohort and work.task.dim > 10_000}
        found |= {f"stacked by hand, {chunk}": manual(work, chunk) for chunk in sorted(sizes)}
    found["sequential"] = solved(work, 1, None)
    if isinstance(work.task, Classifier) and work.task.stack is None:
        found[HALF] = solved(replace(work, task=replace(work.task, compute=torch.bfloat16)), 1, None)
    chunk = 1
    if work.task.stack is not None:
        chunk = min(chunk_of(work.task.dim, 4), cohort)
        found[f"stacked, {chunk}"] = solved(work, chunk, None)
    if cores() > 1:
        pool = stack.enter_context(Workers(work.task, work.federation, _plan(work, chunk), cores()))
        found[f"{cores()} workers, {chunk}"] = solved(work, chunk, pool)
        if chunk > 1 and isinstance(work.task, Classifier):
            single = stack.enter_context(Workers(work.task, work.federation, _plan(work, 1), cores()))
            found[f"{cores()} workers, 1"] = solved(work, 1, single)
    return found


def _plan(work: Workload, chunk: int) -> Plan:
    local = Local(epochs=1, batch=work.batch, order="incremental", step=STEP, send="difference")
    return Plan(local, STEP, chunk, ORDERS["incremental"])


def solved(work: Workload, chunk: int, pool: Workers | None) -> Round:
    """A round by ``chunk`` clients at a time, here or in a pool."""
    plan, sizes = _plan(work, chunk), work.federation.sizes.to(torch.float32)
    room = Rows.like(work.task.initial(0).expand(len(work.cohorts[0]), -1))

    def round_(model: Tensor, t: int) -> Tensor:
        cohort = work.cohorts[t % len(work.cohorts)]
        stream, models = Stream(0, Purpose.BATCH, t), model.expand(len(cohort), -1)
        if pool is None:
            solution = solve_into(work.task, work.federation, plan, Ask(models, cohort, stream, {}), room)
        else:
            solution = pool.solve(models, cohort, stream, {})
        share = sizes[cohort]
        return model - (share / share.sum()) @ solution.direction

    return round_


def play(name: str) -> None:
    """Print the table of one workload."""
    repeats = CASES[name]
    work = workload(name, CHECKED)
    with ExitStack() as stack:
        every, ended = rows(work, stack), {}
        for row, round_ in every.items():
            model = work.task.initial(0)
            for t in range(CHECKED if name[:3] != "cnn" else 1):
                model = round_(model, t)
            ended[row] = model
        start = work.task.initial(0)
        times: dict[str, list[float]] = {row: [] for row in every}
        for turn in range(0, repeats, TOGETHER):
            for row, round_ in every.items():
                for t in range(turn, min(turn + TOGETHER, repeats)):
                    before = time.perf_counter()
                    round_(start, t)
                    times[row].append(1e3 * (time.perf_counter() - before))
    reference = ended["sequential"]
    best = min(min(taken) for row, taken in times.items() if "by hand" in row)
    print(f"{name}: d = {work.task.dim}, {len(work.cohorts[0])} clients a round, best (median) of {repeats}")
    for row, taken in times.items():
        gap = float((ended[row] - reference).norm() / reference.norm())
        assert gap <= TOLERANCES.get(row, TOLERANCE), f"{row} does other work: end parameters differ by {gap}"
        low, middle = min(taken), sorted(taken)[len(taken) // 2]
        print(f"  {row:22} {low:9.3f} ({middle:9.3f}) ms   {low / best:6.2f} x the best by hand   apart {gap:.1e}")
