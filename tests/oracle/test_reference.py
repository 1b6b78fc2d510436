"""The core against the numpy transcription of ``tests/oracle/reference.py``, round by round, in float64.

Equal exactly: cohorts, quantized levels and norms of equal inputs, the ledger's counts (frames, messages, payload bits,
frame bytes, the choice between the model and its updates). Equal to 1e-12 of the largest coordinate: models, memories,
errors, averages. These are not bitwise because the two call different BLAS, and because the reference adds a cohort
client by client where the core halves: the same sums in another order. Equal to 1e-12: the formula's bits (logarithms).

Uncompressed numbers cross as float64 here, except in one test. Rounded to float32, the weighted mean of numbers that
are float32 already is often an exact tie (1 in about 2 times the weights' denominator), which the order of the sum then
decides. Where the weights are powers of 1/2 the mean is exact, so that test takes 4 equal clients and cohorts of 2. It
leaves out the whitened recipes: in their coordinates nothing is exact, so a norm next to a float32 may go either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.algorithms.recipes import RECIPES
from fedsim.compression import Compressor, Identity, Levels, Quantize
from fedsim.experiment import Experiment
from fedsim.ledger import Direction, Entry
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup, prepare
from fedsim.simulation.state import initial_state
from fedsim.wire import encode
from tests.oracle import reference

ROUNDS = 30
TOLERANCE = 1e-12

PROBLEMS: dict[str, dict[str, Any]] = {
    "least-squares": {
        "data": {"source": "synthetic-linear", "clients": 6, "per_client": 9, "features": 4},
        "partition": {"scheme": "quantity", "clients": 6, "alpha": 1.0},  # unequal sizes
    },
    "logistic": {
        "rounds": 20,
        "data": {"source": "breast-cancer", "test_fraction": 0.8},
        "partition": {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "min_samples": 3},
        "task": {"kind": "logistic", "l2": 0.01},
    },
    "four equal clients": {"data": {"source": "synthetic-linear", "clients": 4, "per_client": 9, "features": 4}},
}
HALF = {"scheme": "bernoulli", "p": 0.5}

VARIANTS: dict[str, dict[str, Any]] = {
    "pp1": {"participation": HALF, "server": {"memory": "pp1"}},
    "pp1, everybody": {"server": {"memory": "pp1"}},
    "pp1, normalised by those present": {"participation": HALF, "server": {"memory": "pp1", "normalise": "present"}},
    "paper_compat": {"participation": HALF, "server": {"paper_compat": True}},
    "k of n": {"algorithm": "diana", "participation": {"scheme": "k-of-n", "k": 2}},
    "k of n, normalised by those present": {
        "participation": {"scheme": "k-of-n", "k": 3},
        "server": {"normalise": "present"},
    },
    "rarely anybody": {"participation": {"scheme": "bernoulli", "p": 0.08}},
    "rarely anybody, without memory, normalised by those present": {
        "algorithm": "bi-qsgd",
        "participation": {"scheme": "bernoulli", "p": 0.08},
        "server": {"normalise": "present"},
    },
    "average, decreasing steps": {"server": {"average": True, "schedule": "inverse-sqrt", "step": "2/L"}},
    "feedback by a decreasing step": {
        "algorithm": "double-squeeze",
        "participation": HALF,
        "server": {"schedule": "inverse-sqrt"},
    },
    "feedback by a number, with memory": {
        "participation": HALF,
        "uplink": {"feedback": 0.2},
        "downlink": {"feedback": 0.1},
    },
    "memories start at the gradient": {"uplink": {"initial": "gradient"}},
    "pp1, memories start at the gradient": {"uplink": {"initial": "gradient"}, "server": {"memory": "pp1"}},
    "levels, norms, buckets": {
        "participation": HALF,
        "uplink": {"levels": 4, "norm": "linf", "bucket": 3},
        "downlink": {"levels": 2, "bucket": 4},
    },
    "mini-batches": {"participation": HALF, "local": {"batch": 2}},
    "local steps, direction": {"participation": HALF, "local": {"steps": 3, "batch": 3, "step": "1/(2L)"}},
    "local steps, difference": {
        "participation": HALF,
        "local": {"steps": 4, "batch": 1, "step": "1/(2L)", "send": "difference"},
        "server": {"step": 0.7},
    },
    "one step, difference": {"local": {"send": "difference", "step": 0.05}, "server": {"step": 0.7}},
    "uniform weights": {"participation": HALF, "server": {"weights": "uniform"}},
    "the published step": {"server": {"smoothness": "frobenius", "step": "1/(2L)"}},
    "a given memory rate": {"participation": HALF, "uplink": {"rate": 0.3}},
    "the memory rate of other levels": {"participation": HALF, "uplink": {"rate_levels": 3}},
    "clients side by side": {"participation": HALF, "local": {"batch": 3, "steps": 2}, "run": {"chunk": 4}},
    "with replacement": {"local": {"epochs": 1, "batch": 2, "order": "with-replacement", "step": "1/(2L)"}},
    "shuffled once, steps across passes": {
        "participation": HALF,
        "local": {"steps": 2, "batch": 2, "order": "shuffle-once", "step": "1/(2L)", "send": "difference"},
    },
    "in the order of the file, harmonic": {
        "local": {"epochs": 2, "batch": 4, "order": "incremental", "step": "1/(2L)"},
        "rate": {"rule": "harmonic", "mu": 0.5, "hold": 5},
    },
    "synchronised": {"participation": HALF, "local": {"epochs": 1, "batch": 3, "order": "synchronised"}},
    "salr, capped": {
        "participation": HALF,
        "local": {"steps": 3, "batch": 2, "step": "1/(2L)"},
        "rate": {"rule": "salr", "descent": 2, "ascent": 3, "probe": 0.1, "period": 3, "cap": 1.2, "floor": 0.7},
    },
    "salr at the server": {
        "participation": HALF,
        "local": {"epochs": 1, "batch": 4, "order": "reshuffle", "step": "1/(4L)"},
        "rate": {"rule": "salr", "level": "server", "period": 3, "probe": 0.1},
    },
    "salr at the server, fresh batches, empty cohorts, feedback": {
        "participation": {"scheme": "bernoulli", "p": 0.2},
        "local": {"batch": 2},
        "rate": {"rule": "salr", "level": "server"},
        "downlink": {"feedback": "step"},
    },
    "whitened": {
        "participation": HALF,
        "whitening": {"mode": "shared", "refresh": 4, "ema": 0.5, "damping": 0.2},
        "server": {"step": 0.3},
    },
    "whitened, with feedback and local steps": {
        "algorithm": "artemis-rr-salr-whitened",
        "participation": HALF,
        "whitening": {"refresh": 2},
        "uplink": {"feedback": 0.2},
        "downlink": {"feedback": 0.1},
        "server": {"memory": "pp1"},
    },
    "a memory of updates": {"participation": HALF, "downlink": {"memory": "update"}},
    "a memory of models, decreasing steps, local steps": {
        "participation": HALF,
        "downlink": {"memory": "model", "rate": 0.2, "levels": 2},
        "server": {"schedule": "inverse-sqrt", "average": True},
        "local": {"steps": 3, "batch": 3, "step": "1/(2L)"},
    },
    "a memory of models, salr at the server": {
        "algorithm": "mcm",
        "participation": HALF,
        "local": {"batch": 4},
        "rate": {"rule": "salr", "level": "server", "period": 3, "probe": 0.1},
    },
    "a memory of models, whitened": {
        "algorithm": "artemis-whitened",
        "participation": HALF,
        "whitening": {"refresh": 4},
        "downlink": {"memory": "model"},
    },
    "own messages, rarely anybody": {"algorithm": "rand-mcm", "participation": {"scheme": "bernoulli", "p": 0.08}},
    "changes of gradients, from the first one": {"algorithm": "dasha", "uplink": {"initial": "gradient"}},
    "changes of gradients, a correction by hand": {
        "algorithm": "dasha",
        "participation": HALF,
        "uplink": {"correction": 0.3},
    },
    "seldom in full": {
        "algorithm": "marina",
        "participation": HALF,
        "uplink": {"synchronise": 0.1, "initial": "zero"},
        "downlink": {"compressor": "quantize"},
    },
    "each tensor by itself": {
        "participation": HALF,
        "uplink": {"compressor": "per-tensor", "of": {"compressor": "quantize", "levels": 2}, "sizes": [2]},
        "downlink": {"compressor": "per-tensor", "of": {"compressor": "natural"}},
    },
    "absent clients count": {"participation": HALF, "server": {"normalise": "registered"}},
    "geometric median": {
        "participation": HALF,
        "server": {"memory": "pp1", "weights": "uniform", "aggregate": "geometric-median"},
    },
    "geometric median of clipped rows, without memory, normalised by those present": {
        "algorithm": "bi-qsgd",
        "participation": HALF,
        "server": {"weights": "uniform", "aggregate": "geometric-median", "clip": 1.5, "normalise": "present"},
    },
    "median": {
        "participation": HALF,
        "uplink": {"levels": 4},
        "server": {"memory": "pp1", "weights": "uniform", "aggregate": "median"},
    },
    "trimmed mean": {
        "algorithm": "fedsgd",
        "participation": {"scheme": "k-of-n", "k": 5},
        "server": {"weights": "uniform", "aggregate": "trimmed-mean", "trim": 0.2},
    },
    "trimmed mean of hardly anybody": {
        "algorithm": "fedsgd",
        "participation": {"scheme": "bernoulli", "p": 0.2},
        "server": {"weights": "uniform", "aggregate": "trimmed-mean", "trim": 0.45},
    },
    "clipped": {"participation": HALF, "server": {"memory": "pp1", "weights": "uniform", "clip": 0.8}},
    "the largest seed": {"participation": HALF, "seed": 2**63 - 1},
}


def experiment(problem: str, changes: Mapping[str, Any], wire: str = "float64") -> Experiment:
    tables: dict[str, Any] = {"algorithm": "artemis", "seed": 11, "rounds": ROUNDS, **PROBLEMS[problem], **changes}
    tables["participation"] = changes.get("participation", {"scheme": "full"})
    tables["run"] = {"precision": "float64", **changes.get("run", {})}
    for channel in ("uplink", "downlink"):
        if isinstance(getattr(Experiment.of(**tables), channel).compressor, Identity):
            tables[channel] = {"values": wire, **tables.get(channel, {})}
    return Experiment.of(**tables)


def world(setup: Setup) -> reference.World:
    shards = [setup.federation.shard(i) for i in range(setup.clients)]
    task: Any = setup.experiment.task
    return reference.World(
        kind={"LeastSquares": "least-squares", "Logistic": "logistic"}[type(task).__name__],
        shards=[
            (shard.features.numpy(), (2 * shard.targets - 1 if shard.classes else shard.targets).numpy().astype(float))
            for shard in shards
        ],
        l2=task.l2,
    )


def assert_close(found: Tensor | None, expected: Any, what: str) -> None:
    assert found is not None, what
    expected = np.asarray(expected)
    error = np.abs(found.numpy() - expected).max()
    assert error <= TOLERANCE * max(1.0, np.abs(expected).max()), f"{what}: off by {error}"


@dataclass(frozen=True)
class Own:
    """A compressor of which the transcription has none: the engine's, one row at a time."""

    compressor: Compressor

    def compress(self, row: Any, address: tuple[int, int, int, int]) -> reference.Message:
        seed, purpose, round, client = address
        noise = Stream(seed, Purpose(purpose), round)
        payload = self.compressor.compress(torch.from_numpy(row[None].copy()), noise, torch.tensor([client]))
        sent = self.compressor.decompress(payload, torch.float64)[0].numpy()
        return reference.Message(sent, len(encode(payload)[0]))

    def omega(self, d: int) -> float:
        return self.compressor.omega(d)

    def formula_bits(self, d: int) -> tuple[float, float]:
        return self.compressor.formula_bits(d)


def table(given: Experiment) -> dict[str, Any]:
    tables = given.table()
    for name, channel in (("uplink", given.uplink), ("downlink", given.downlink)):
        if not isinstance(channel.compressor, Identity | Quantize):
            tables[name]["operator"] = Own(channel.compressor)
    return tables


def compare(given: Experiment) -> tuple[Tensor, int]:
    """Play both, round by round. Returns the final model and the number of frames compared."""
    setup = prepare(given)
    state = initial_state(setup)
    oracle = reference.play(table(given), world(setup), state.server.model.numpy())
    frames = 0
    for t, expected in enumerate(oracle):
        assert setup.cohort(t).clients.tolist() == expected.cohort
        lines = play(setup, state).lines
        server, store = state.server, state.store
        assert_close(server.model, expected.model, f"w_{t + 1}")
        if given.uplink.memory:
            assert store.memory is not None
            assert_close(store.memory.dense, expected.memories, f"h_i after round {t}")
            if given.server.memory == "pp1":
                assert_close(server.memories, expected.copies, f"the server's h_i after round {t}")
                assert server.memory is None
            else:
                assert_close(server.memory, expected.mean_memory, f"h after round {t}")
        else:
            assert (store.memory, server.memory, server.memories) == (None, None, None)
        if given.uplink.feedback:
            assert store.error is not None
            assert_close(store.error.dense, expected.errors, f"e_i after round {t}")
        if given.uplink.correction != 1:
            assert store.last is not None
            assert_close(store.last.dense, expected.last, f"k_i after round {t}")
        if given.downlink.each:
            assert store.sent is not None
            assert_close(store.sent.dense, expected.H_i, f"H_i after round {t}")
        elif given.downlink.memory != "none":
            assert_close(server.sent, expected.H, f"H after round {t}")
            assert_close(server.view, expected.held, f"what after round {t}")
        if given.downlink.feedback:
            assert_close(server.error, expected.error, f"e after round {t}")
        if given.server.average:
            assert_close(server.average, expected.average, f"the average after round {t}")

        found = sorted(
            (client, part.direction.value, part.kind.value, messages, payload, frame, formula)
            for part in lines
            for client, messages, formula, payload, frame in zip(
                part.clients, part.messages, part.formula_bits, part.payload_bits, part.frame_bytes, strict=True
            )
        )
        oracle_lines = sorted(
            (
                line.client,
                line.direction,
                line.kind,
                line.messages,
                line.payload_bits,
                line.frame_bytes,
                line.formula_bits,
            )
            for line in expected.sent
        )
        assert [line[:-1] for line in found] == [line[:-1] for line in oracle_lines]
        assert [line[-1] for line in found] == pytest.approx([line[-1] for line in oracle_lines], rel=TOLERANCE)
        frames += len(found)
    assert state.server.round == given.rounds
    return state.server.model, frames


@pytest.mark.parametrize("participation", [{"scheme": "full"}, HALF], ids=["p=1", "p=0.5"])
@pytest.mark.parametrize("problem", ["least-squares", "logistic"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("wire", ["counted", "real"])
def test_recipes(wire: str, recipe: str, problem: str, participation: dict[str, Any]) -> None:
    changes = {"algorithm": recipe, "participation": participation, "run": {"wire": wire}}
    _, frames = compare(experiment(problem, changes))
    assert frames > 60


@pytest.mark.parametrize("participation", [{"scheme": "full"}, {"scheme": "k-of-n", "k": 2}], ids=["4 of 4", "2 of 4"])
@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if "whitening" not in recipe.settings])
def test_recipes_as_they_are_and_run(recipe: str, participation: dict[str, Any]) -> None:
    given = experiment("four equal clients", {"algorithm": recipe, "participation": participation}, wire="float32")
    model, _ = compare(given)
    assert fedsim.run(given).model.numpy().tobytes() == model.numpy().tobytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    compare(experiment("least-squares", VARIANTS[name]))


def test_the_variants_reach_both_catch_ups_and_empty_cohorts() -> None:
    setup = prepare(experiment("least-squares", VARIANTS["rarely anybody"]))
    empty = [not len(setup.cohort(t).clients) for t in range(ROUNDS)]
    assert 0 < sum(empty) < ROUNDS
    totals = fedsim.run(setup.experiment).ledger.totals
    late = fedsim.run(experiment("logistic", {"participation": HALF})).ledger.totals
    assert (Direction.DOWN, Entry.MODEL) in totals
    assert late[Direction.DOWN, Entry.UPDATES].frames > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("levels", "bucket"), [(1, 0), (1, 5), (2, 0), (4, 3), (16, 0), (255, 7), (32767, 0)])
def test_levels_and_norms_are_equal_exactly(levels: int, norm: Any, bucket: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng([levels, bucket])
    d, clients = 23, [0, 3, 2**31, 2**32 - 2]
    rows = generator.standard_normal((len(clients), d)) * np.exp(5 * generator.standard_normal((len(clients), d)))
    rows[0, 4:11] = 0.0
    rows[1] = 0.0
    given = torch.from_numpy(rows).to(dtype)
    quantizer = Quantize(levels, norm, bucket)
    stream = Stream(77, Purpose.UPLINK, 12)
    payload = quantizer.compress(given, stream, torch.tensor(clients))
    assert isinstance(payload, Levels)
    back = quantizer.decompress(payload, dtype).numpy()
    for i, client in enumerate(clients):
        draws = reference.uniforms(reference.words(77, reference.UPLINK, 12, client, d), given.numpy().dtype)
        expected = reference.quantize(given[i].numpy(), levels, norm, bucket, draws)
        assert payload.levels[i].tolist() == expected.levels
        assert payload.norms[i].tolist() == expected.norms
        assert back[i].tobytes() == expected.sent.tobytes()
