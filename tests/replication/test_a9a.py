"""a9a in its 20 published clusters: the figures of an independent implementation, and what memories must keep true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import fedsim
from fedsim.simulation.engine import play
from fedsim.simulation.setup import prepare
from fedsim.simulation.state import State, initial_state
from tests.replication import experiments, figures
from tests.replication.figures import A9A_BITS, ALGORITHMS, BANDS, PRESERVING, STOCHASTIC
from tests.replication.measure import Measurement, mean_tail, measure, minimum

SAFE = "1/L, 400 rounds"
EXACT = 1e-12
"""Largest distance of two memories that should be equal; they are of order 1e-2."""


def played(folder: Path, algorithm: str, rounds: int, **server: object) -> tuple[State, torch.Tensor]:
    """The state after some rounds of half participation, and the clients' weights."""
    setup = prepare(experiments.a9a_half(folder, algorithm, rounds, **server))
    state = initial_state(setup)
    for _ in range(rounds):
        play(setup, state)
    return state, setup.weights


def test_the_problem_is_the_published_one(libsvm_folder: Path) -> None:
    setup = prepare(experiments.a9a(libsvm_folder, "sgd", "1/L", 1))
    assert (len(setup.federation.all()), setup.task.dim, setup.clients) == (32561, 124, 20)
    assert (int(setup.federation.sizes.min()), int(setup.federation.sizes.max())) == (325, 4792)
    assert 1 / setup.step == pytest.approx(13.1389, abs=5e-5)
    assert minimum(setup.experiment) == pytest.approx(0.322621, abs=5e-7)


@pytest.mark.parametrize("algorithm", ["sgd", "diana", "artemis"])
def test_bits_of_a_round_by_the_published_formula(libsvm_folder: Path, algorithm: str) -> None:
    """Exactly: the ledger's sum over a round in which nobody was absent and the memories are in place."""
    experiment = experiments.a9a(libsvm_folder, algorithm, "1/L", 2, run={"evaluate_every": 1})
    before, after = (found["formula_bits"] for found in fedsim.run(experiment).metrics[1:])
    assert round(after - before) == A9A_BITS[algorithm]


def test_400_rounds_at_the_safe_step(libsvm_folder: Path) -> None:
    """Artemis, one seed; the slow test's seeds differ by 0.03, far less than the tolerance of 0.15."""
    cell = next(cell for cell in figures.a9a_p1(libsvm_folder) if (cell.row, cell.algorithm) == (SAFE, "artemis"))
    run = measure(cell.experiment)
    assert cell.met(run.tail(0))
    assert round(run.bits) == cell.bits
    assert run.drift < EXACT


@pytest.mark.parametrize(("algorithm", "excess", "spread"), [("diana", -2.25, 0.034), ("artemis", -1.78, 0.106)])
def test_half_of_the_clients_for_100_rounds(libsvm_folder: Path, algorithm: str, excess: float, spread: float) -> None:
    """PP2: h = sum_i v_i h_i though half of the clients are absent, and the descent begins as in the slow test.

    excess, spread: mean and standard deviation of log10 F - F* over the seeds 0 to 5; one seed is allowed 4 deviations.
    """
    experiment = experiments.a9a_half(libsvm_folder, algorithm, 100)
    run = measure(experiment)
    assert run.drift < EXACT
    assert run.tail(0) == pytest.approx(excess, abs=4 * spread)


def test_the_server_knows_every_memory(libsvm_folder: Path) -> None:
    """PP1: the server's copies are the clients' own, bit for bit."""
    state, _ = played(libsvm_folder, "diana", 20, memory="pp1")
    assert state.store.memory is not None
    assert state.server.memories is not None
    assert torch.equal(state.server.memories, state.store.memory.dense)


def test_the_published_code_overstates_the_mean_memory(libsvm_folder: Path) -> None:
    """paper_compat: h = (1/p) sum_i v_i h_i, which is why its steps are 1/p times longer than they say."""
    state, weights = played(libsvm_folder, "diana", 60, paper_compat=True)
    assert state.store.memory is not None
    assert state.server.memory is not None
    torch.testing.assert_close(0.5 * state.server.memory, weights @ state.store.memory.dense, rtol=0, atol=EXACT)


def keys(part: str) -> list[tuple[str, str]]:
    """(row, algorithm) of the cells of a part; the folder matters only once they run."""
    return [(cell.row, cell.algorithm) for cell in figures.PARTS[part](Path())]


def replay(part: str, row: str, algorithm: str, folder: Path) -> tuple[figures.Cell, list[Measurement]]:
    """A cell and its runs."""
    cell = next(cell for cell in figures.PARTS[part](folder) if (cell.row, cell.algorithm) == (row, algorithm))
    return cell, [measure(cell.at(seed)) for seed in cell.seeds]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "algorithm"), keys("a9a-p1"))
def test_full_participation(libsvm_folder: Path, row: str, algorithm: str) -> None:
    cell, runs = replay("a9a-p1", row, algorithm, libsvm_folder)
    assert cell.met(mean_tail(cell, runs))
    assert all(round(run.bits) == cell.bits and run.drift < EXACT for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_half_participation(libsvm_folder: Path, algorithm: str) -> None:
    cell, runs = replay("a9a-pp", "PP2", algorithm, libsvm_folder)
    assert cell.met(mean_tail(cell, runs))
    assert all(run.drift < EXACT for run in runs)


def inside(levels: Mapping[str, float], row: str) -> bool:
    """Whether all plateaus of a row stand to each other as BANDS has it."""
    bands = {name: band for (where, name), band in BANDS.items() if where == row}
    return all(low <= levels[name] - levels[other] <= high for name, (other, low, high) in bands.items())


@pytest.mark.slow
def test_plateaus_of_stochastic_gradients(libsvm_folder: Path) -> None:
    """sgd : diana : artemis = 1 : (omega + 1) : (omega + 1)^2 at most, and all three are where they stay."""
    levels = {}
    for cell in figures.a9a_stochastic(libsvm_folder):
        runs = [measure(cell.at(seed)) for seed in cell.seeds]
        levels[cell.algorithm] = mean_tail(cell, runs)
        last_quarter = sum(run.tail(0.25) for run in runs) / len(runs)
        assert last_quarter == pytest.approx(levels[cell.algorithm], abs=0.05)
    assert inside(levels, STOCHASTIC)


@pytest.mark.slow
def test_a_preserved_model_has_the_plateau_of_uplink_compression(libsvm_folder: Path) -> None:
    """MCM, section 5: MCM = DIANA, Artemis most of a decade higher, Dore = Artemis; and the published levels."""
    cells = list(figures.a9a_preserved(libsvm_folder))
    levels = {cell.algorithm: mean_tail(cell, [measure(cell.at(seed)) for seed in cell.seeds]) for cell in cells}
    assert all(cell.met(levels[cell.algorithm]) for cell in cells)
    assert inside(levels, PRESERVING)


def test_after_ten_epochs_a_preserved_model_is_as_good_as_without_downlink_compression(libsvm_folder: Path) -> None:
    """One seed, on the way to the plateau; the second half of the evaluations."""
    names = ("diana", "mcm", "artemis")
    runs = {name: measure(experiments.a9a_preserved(libsvm_folder, name, epochs=10)) for name in names}
    levels = {name: run.tail(0.5) for name, run in runs.items()}
    assert levels["mcm"] == pytest.approx(levels["diana"], abs=0.15)
    assert levels["artemis"] - levels["diana"] > 0.15


@pytest.mark.slow
def test_what_the_server_remembers_under_half_participation(libsvm_folder: Path) -> None:
    """Diana: PP2 descends smoothly, PP1 is shaken by who takes part, the published code takes steps of gamma / p.

    roughness: mean second difference of log10 excess over the last quarter, 40 rounds between evaluations.
    """
    plain = measure(experiments.a9a_half(libsvm_folder, "diana")).excess[-11:]
    pp1 = measure(experiments.a9a_half(libsvm_folder, "diana", memory="pp1")).excess[-11:]
    published = measure(experiments.a9a_half(libsvm_folder, "diana", paper_compat=True)).excess[-11:]

    def roughness(excess: tuple[float, ...]) -> float:
        return float(np.abs(np.diff(excess, n=2)).mean())

    assert roughness(plain) < 0.002
    assert roughness(pp1) > 0.02
    assert (published[-1] - published[0]) / (plain[-1] - plain[0]) == pytest.approx(2, abs=0.1)
