"""Each tensor by itself: what it does is what its compressor does there, and its constants are reached.

One statistical test, of 12 binomials with tails of 1e-9: a false-alarm rate below 1e-7. Unbiasedness and omega are
those of the compressors inside, which ``test_sparsifiers``, ``test_coordinates`` and the contract prove.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

import fedsim
from fedsim.algorithms.method import Method
from fedsim.compression import (
    Bernoulli,
    Compressor,
    Eden,
    Identity,
    LowRank,
    Parts,
    PerTensor,
    Quantize,
    RandK,
    Sign,
    TopK,
)
from fedsim.compression.payload import parts
from fedsim.errors import ConfigError, WireError
from fedsim.experiment import Experiment
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.setup import prepare
from fedsim.wire import coding, decode, encode, size

NOISE = Stream(5, Purpose.UPLINK, 2)
MLP = {
    "data": {"source": "digits"},
    "task": {"kind": "mlp", "hidden": [6]},
    "partition": {"scheme": "iid", "clients": 4},
    "participation": {"scheme": "full"},
    "server": {"step": 0.1},
    "rounds": 4,
}
TENSORS = (64 * 6, 6, 6 * 10, 10)


def test_the_tensors_of_a_row() -> None:
    assert PerTensor(sizes=(4, 7)).cut(20) == [4, 7, 9]
    assert PerTensor(sizes=(4, 7)).cut(11) == [4, 7]
    assert PerTensor(sizes=(4, 7)).cut(6) == [4, 2]
    assert PerTensor().cut(6) == [6]


@pytest.mark.parametrize("of", [Quantize(3), RandK(0.25), TopK(0.3, Quantize(2)), Eden(2), LowRank(), Bernoulli(0.5)])
def test_each_tensor_is_what_its_compressor_makes_of_it(of: Compressor) -> None:
    rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    clients = torch.tensor([4, 9, 2])
    whole = PerTensor(of, (4, 7))  # type: ignore[arg-type]
    payload = whole.compress(rows, NOISE, clients)
    assert isinstance(payload, Parts)
    back = whole.decompress(payload, torch.float32)
    for i, (start, stop) in enumerate(((0, 4), (4, 11), (11, 20))):
        alone = of.compress(rows[:, start:stop].contiguous(), Stream(5, Purpose.UPLINK, 2, i), clients)
        assert all(torch.equal(part, parts(payload.parts[i])[name]) for name, part in parts(alone).items())
        assert torch.equal(of.decompress(alone, torch.float32), back[:, start:stop])


def test_tensors_draw_apart() -> None:
    """Coordinate j of either of two tensors is kept with chance 1/4, and both are with chance 1/16."""
    draws, whole = 20_000, PerTensor(RandK(0.25), (4, 4))
    payload = whole.compress(torch.ones(draws, 8), NOISE, torch.arange(draws))
    kept = whole.decompress(payload, torch.float64).numpy() != 0
    for count, chance in (
        *((kept[:, j].sum(), 1 / 4) for j in range(8)),
        *((np.sum(kept[:, j] & kept[:, 4 + j]), 1 / 16) for j in range(4)),
    ):
        assert binom.cdf(count, draws, chance) >= 1e-9
        assert binom.sf(count - 1, draws, chance) >= 1e-9


def test_the_constants_are_reached_by_a_row_in_one_tensor() -> None:
    """Rand-k errs by omega on a row of equal numbers; top-k leaves 1 - delta of one."""
    for of, constant in ((RandK(0.1), "omega"), (TopK(0.1), "delta")):
        whole = PerTensor(of, (4, 10, 20))
        found = []
        for start, stop in ((0, 4), (4, 14), (14, 34)):
            row = torch.zeros(1, 34, dtype=torch.float64)
            row[0, start:stop] = 1
            sent = whole.decompress(whole.compress(row, NOISE, torch.arange(1)), torch.float64)
            found.append(float(((sent - row) ** 2).sum() / (row**2).sum()))
        worst = whole.omega(34) if constant == "omega" else 1 - whole.delta(34)
        assert max(found) == pytest.approx(worst, rel=1e-12)
    assert PerTensor(Sign(), (4, 10)).delta(30) == Sign().delta(16)
    assert PerTensor(Quantize(2), (4, 10)).omega(30) == Quantize(2).omega(16)
    assert PerTensor(Quantize(2), (4, 10)).formula_bits(14) == (
        sum(Quantize(2).formula_bits(d)[0] for d in (4, 10)),
        64.0,
    )


def test_a_norm_of_its_own_keeps_a_small_tensor() -> None:
    """A layer a million times smaller is lost beside another, and is not by itself."""
    row = torch.cat([torch.ones(1, 50), 1e-6 * torch.ones(1, 50)], dim=1)
    for compressor, kept in ((Quantize(4), False), (PerTensor(Quantize(4), (50,)), True)):
        sent = compressor.decompress(compressor.compress(row, NOISE, torch.arange(1)), torch.float32)
        assert bool(sent[0, 50:].any()) == kept


def test_lengths_of_parts_are_told_where_they_vary() -> None:
    rows = torch.randn(5, 400, generator=torch.Generator().manual_seed(2))
    whole = PerTensor(Quantize(16), (200, 150))
    payload = whole.compress(rows, NOISE, torch.arange(5))
    assert isinstance(payload, Parts)
    messages = encode(payload)
    for i, message in enumerate(messages):
        own = [encode(part)[i] for part in payload.parts]
        lengths = [len(own[0]).to_bytes(1, "little"), len(own[1]).to_bytes(1, "little")]
        assert len(own[0]) < 128
        assert message == lengths[0] + own[0] + lengths[1] + own[1] + own[2]
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    floats = PerTensor(Identity(), (3, 4))
    assert encode(floats.compress(rows, NOISE, torch.arange(5))) == encode(
        Identity().compress(rows, NOISE, torch.arange(5))
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda message: b"\x7f" + message[1:], "part 0 announces 127 bytes"),
        (lambda message: b"\x80\x00" + message[1:], "needless zero byte"),
        (lambda message: message + b"\0", "not the encoding of the row"),
    ],
)
def test_parts_that_are_refused(damage: object, says: str) -> None:
    whole = PerTensor(Quantize(2), (20, 20))
    (message,) = encode(whole.compress(torch.linspace(-1, 1, 60)[None], NOISE, torch.arange(1)))
    with pytest.raises(WireError, match=says):
        decode([damage(message)], whole.layout(60))  # type: ignore[operator]


def test_too_many_parts() -> None:
    with pytest.raises(WireError, match="use 1 to 65536"):
        coding.bounds(PerTensor(Identity(), (1,) * 2**16).layout(2**16 + 1))


@pytest.mark.parametrize("of", [{"compressor": "quantize", "levels": 4}, {"compressor": "rand-k", "fraction": 0.2}])
@pytest.mark.parametrize("wire", ["counted", "real"])
def test_in_an_experiment_the_tensors_are_the_models(of: dict[str, object], wire: str) -> None:
    given = Experiment.of(**MLP, uplink={"compressor": "per-tensor", "of": of}, run={"wire": wire})
    assert Experiment.of(**given.table()) == given
    method: Method = prepare(given).method
    assert isinstance(method.up, PerTensor)
    assert method.up.sizes == TENSORS
    assert method.alpha == 1 / (2 * (method.up.omega(sum(TENSORS)) + 1))
    explicit = Experiment.of(
        **MLP, uplink={"compressor": "per-tensor", "of": of, "sizes": list(TENSORS)}, run={"wire": wire}
    )
    one, other = fedsim.run(given), fedsim.run(explicit)
    assert one.digest == other.digest
    assert one.ledger.cost() == other.ledger.cost()
    plain = fedsim.run(Experiment.of(**MLP, uplink=of))
    assert plain.digest != one.digest


def test_a_linear_model_is_one_tensor_and_softmax_two() -> None:
    uplink = {"compressor": "per-tensor"}
    found = [
        prepare(Experiment.of(data={"source": name}, uplink=uplink)).method.up for name in ("breast-cancer", "digits")
    ]
    assert [one.sizes for one in found if isinstance(one, PerTensor)] == [(31,), (640, 10)]


def test_a_biased_compressor_is_refused_as_it_is_alone() -> None:
    top = {"compressor": "per-tensor", "of": {"compressor": "top-k"}}
    with pytest.raises(ConfigError, match="'per-tensor' is biased"):
        prepare(Experiment.of(**MLP, algorithm="qsgd", uplink=top))
    prepare(Experiment.of(**MLP, algorithm="qsgd", uplink={**top, "feedback": 1.0}))
