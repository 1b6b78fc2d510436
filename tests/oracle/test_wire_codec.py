"""The codec against one written from the docstrings of ``fedsim.wire`` alone, with strings of "0" and "1"."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from fedsim import kernels
from fedsim.compression.payload import Digits, DigitsLayout, Levels, LevelsLayout
from fedsim.errors import WireError
from fedsim.wire import ans, model
from fedsim.wire.coding import decode, encode, size
from tests.oracle.arithmetic import (
    ODDS,
    TOTAL,
    head_shares,
    magnitude_shares,
    model_body,
    model_levels,
    nonzero_share,
)
from tests.oracle.entropy import entropy_body, grouped, levels_table, to_bytes


def slow_encode(levels: list[int], norms: list[float], s: int, bucket: int) -> bytes:
    head = b"".join(struct.pack("<f", norm) for norm in norms)
    if not any(norms):
        return head
    body = model_body(levels, s, bucket)
    return head + (levels_table([level + s for level in levels], 2 * s + 1, 8 * len(body) - 128 - s // 2) or body)


def slow_digits(digits: list[int], scales: list[float], seeds: list[int], base: int, written: bool) -> bytes:
    head = b"".join(struct.pack("<I", seed) for seed in seeds) + b"".join(struct.pack("<f", scale) for scale in scales)
    if not written:
        return head
    fixed = grouped(digits, base)
    return head + (entropy_body(digits, base, len(fixed)) or to_bytes(fixed, "0"))


def random_payload(generator: np.random.Generator) -> Levels:
    d, n = int(generator.integers(1, 90)), 3
    s = int(generator.choice([1, 1, 2, 3, 4, 16, 100, 32767, 32768]))
    layout = LevelsLayout(d, s, int(generator.integers(1, d + 5)))
    top = min(s, int(generator.choice([1, 3, 40000])))
    norms = np.abs(generator.standard_normal((n, layout.buckets))).astype(np.float32)
    norms[generator.random(norms.shape) < generator.choice([0.0, 0.5])] = 0.0
    levels = generator.integers(-top, top + 1, (n, d)) * (generator.random((n, d)) < generator.choice([0.02, 0.2, 1.0]))
    levels[np.repeat(norms == 0, layout.bucket, axis=1)[:, :d]] = 0
    return Levels(layout, torch.from_numpy(levels.astype(np.int32)), torch.from_numpy(norms))


@pytest.mark.parametrize("seed", range(150))
def test_same_bytes_as_the_slow_codec(seed: int) -> None:
    payload = random_payload(np.random.default_rng(seed))
    layout = payload.layout
    messages = encode(payload)
    for message, levels, norms in zip(messages, payload.levels.tolist(), payload.norms.tolist(), strict=True):
        assert message == slow_encode(levels, norms, layout.levels, layout.bucket)
        body = message[4 * layout.buckets :]
        if body and body[0] < 255:
            assert model_levels(body, layout.d, layout.levels, layout.bucket) == levels


def heavy_payload(generator: np.random.Generator) -> Levels:
    """Rows long enough for the entropy code, whose levels are of many magnitudes."""
    d, s = int(generator.integers(300, 1500)), int(generator.choice([1, 4, 16, 300]))
    levels = (generator.standard_t(2, (3, d)) * generator.choice([0.1, 1, 3])).clip(-s, s).astype(np.int32)
    return Levels(LevelsLayout(d, s, d), torch.from_numpy(levels), torch.ones(3, 1))


@pytest.mark.parametrize("form", ["compiled", "numpy"])
@pytest.mark.parametrize("seed", range(40))
def test_same_bytes_as_the_slow_entropy_code(seed: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "installed", lambda: form == "compiled")
    payload = heavy_payload(np.random.default_rng(seed))
    messages = encode(payload)
    for message, levels in zip(messages, payload.levels.tolist(), strict=True):
        assert message == slow_encode(levels, [1.0], payload.layout.levels, payload.layout.bucket)
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    assert torch.equal(decode(messages, payload.layout).levels, payload.levels)


def test_the_entropy_code_is_used_where_it_is_shorter() -> None:
    """Seldom for rows that the distributions are made for; always for long ones that they are not."""
    heavy = [message for seed in range(40) for message in encode(heavy_payload(np.random.default_rng(seed)))]
    assert sum(message[4] == 255 for message in heavy) <= len(heavy) // 5
    for levels in ([1, 1, 1, 0] * 500, [7, -3] * 600, [16] * 300):
        payload = Levels(LevelsLayout(len(levels), 16, len(levels)), torch.tensor([levels]).int(), torch.ones(1, 1))
        (message,) = encode(payload)
        assert message[4] == 255
        assert message == slow_encode(levels, [1.0], 16, len(levels))


def random_digits(generator: np.random.Generator) -> Digits:
    d, n = int(generator.choice([1, 5, 60, 900])), 3
    base, bucket = int(generator.choice([2, 3, 16, 511, 2**17])), int(generator.choice([0, 1, 7, d, d + 3]))
    layout = DigitsLayout(d, base, bucket, bool(generator.integers(2)))
    digits = np.minimum(generator.geometric(generator.choice([0.01, 0.3, 0.9]), (n, d)) - 1, base - 1).astype(np.int32)
    scales = generator.random((n, layout.buckets)).astype(np.float32)
    if bucket:
        scales[generator.random(scales.shape) < generator.choice([0.0, 0.3, 1.0])] = 0.0
        digits[np.repeat(scales == 0, bucket, axis=1)[:, :d]] = 0
    seeds = generator.integers(0, 2**32, (n, int(layout.seeded)))
    return Digits(layout, torch.from_numpy(digits), torch.from_numpy(scales), torch.from_numpy(seeds))


@pytest.mark.parametrize("seed", range(150))
def test_same_bytes_as_the_slow_codec_of_digits(seed: int) -> None:
    payload = random_digits(np.random.default_rng(seed))
    layout, messages = payload.layout, encode(payload)
    rows = zip(messages, payload.digits.tolist(), payload.scales.tolist(), payload.seeds.tolist(), strict=True)
    for message, digits, scales, seeds in rows:
        assert message == slow_digits(digits, scales, seeds, layout.base, any(scales) or not layout.bucket)
    found = decode(messages, layout)
    assert torch.equal(found.digits, payload.digits)
    assert torch.equal(found.scales, payload.scales)
    assert torch.equal(found.seeds, payload.seeds)


@pytest.mark.parametrize("s", [1, 2, 3, 4, 9, 16, 100, 1000])
def test_every_distribution_is_the_slow_one(s: int) -> None:
    for d in (1, 7, 66, 5000):
        for bucket in {1, 5, d}:
            found = model.tables(LevelsLayout(d, s, bucket))
            assert np.diff(found.heads).tolist() == head_shares(s, bucket)
            assert found.zeros.tolist() == [TOTAL - nonzero_share(odds) for odds in range(len(ODDS))]
    if s > 1:
        assert np.diff(found.magnitudes).tolist() == magnitude_shares(s)


def test_every_share_is_of_the_same_total() -> None:
    for s in (1, 2, 16, 2**15):
        found = model.tables(LevelsLayout(50, s, 50))
        for sums in (found.heads, *found.magnitudes):
            assert sums[0] == 0
            assert sums[-1] == model.TOTAL
            assert np.diff(sums).min() >= 1


@pytest.mark.parametrize("power", range(0, 22, 3))
def test_a_lone_level_far_out(power: int) -> None:
    """Zeros up to a nonzero cost next to nothing, and carries run through them."""
    gap = 2**power
    levels = [0] * gap + [-1]
    payload = Levels(LevelsLayout(gap + 1, 1, gap + 1), torch.tensor([levels], dtype=torch.int32), torch.ones(1, 1))
    (message,) = encode(payload)
    if power < 16:
        assert message == slow_encode(levels, [1.0], 1, gap + 1)
    assert len(message) <= 4 + 3 + power // 4
    assert torch.equal(decode([message], payload.layout).levels, payload.levels)


@pytest.mark.parametrize("levels", [1, 16])
def test_carries_through_many_bytes(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms write the same, whatever is carried: of rows of high levels, whose code begins with high bytes."""
    generator = np.random.default_rng(levels)
    row = np.where(generator.random((400, 60)) < 0.03, 0, -levels).astype(np.int32)
    payload = Levels(LevelsLayout(60, levels, 60), torch.from_numpy(row), torch.ones(400, 1))
    found = encode(payload)
    monkeypatch.setattr(kernels, "installed", lambda: False)
    assert encode(payload) == found
    assert torch.equal(decode(found, payload.layout).levels, payload.levels)


@pytest.mark.parametrize("seed", range(100))
def test_damage_is_refused_or_is_the_encoding_of_another_row(seed: int) -> None:
    generator = np.random.default_rng([seed, 1])
    payload = random_payload(generator)
    layout = payload.layout
    for message in encode(payload):
        for _ in range(10):
            damaged = bytearray(message)
            for at in generator.integers(0, len(damaged), generator.integers(1, 3)):
                damaged[at] ^= 1 << int(generator.integers(8))
            try:
                found = decode([bytes(damaged)], layout)
            except WireError:
                continue
            row = found.levels[0].tolist(), found.norms[0].tolist()
            assert slow_encode(*row, layout.levels, layout.bucket) == bytes(damaged)
            assert size(found).tolist() == [8 * len(damaged)]


def test_blocks_of_an_entropy_code_are_one_string(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(0).binomial(30, 0.4, 10_000).astype(np.int32) - 12
    counts = ans.counted(symbols, -15, 40)
    whole = ans.encode(symbols, counts, np.ones(4, np.uint8), -15)
    monkeypatch.setattr(ans, "_BLOCK", 999)
    assert ans.counted(symbols, -15, 40).tolist() == counts.tolist() == np.bincount(symbols + 15, minlength=40).tolist()
    assert ans.encode(symbols, counts, np.ones(4, np.uint8), -15) == whole
    assert (ans.decode(np.frombuffer(whole, np.uint8), 4, len(symbols), 40) - 15).tolist() == symbols.tolist()
