"""The codec against one written from the docstrings of ``fedsim.wire`` alone, with strings of "0" and "1"."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from fedsim import kernels
from fedsim.compression.payload import Digits, DigitsLayout, Levels, LevelsLayout
from fedsim.errors import WireError
from fedsim.wire import ans
from fedsim.wire.coding import decode, encode, size
from tests.oracle.entropy import entropy_body, field, grouped, to_bytes


def dense_bits(levels: list[int], s: int) -> str:
    return "1111" + grouped([level + s for level in levels], 2 * s + 1)


def sparse_bits(levels: list[int], s: int, b: int) -> str:
    nonzero = [(i, level) for i, level in enumerate(levels) if level]
    w = max((abs(level) - 1 for _, level in nonzero), default=0).bit_length()
    header, plane, unary, before = field(b, 4) + (field(w, 4) if s > 1 else ""), "", "", -1
    for i, level in nonzero:
        gap, before = i - before - 1, i
        plane += ("1" if level < 0 else "0") + field(abs(level) - 1, w) + field(gap % 2**b, b)
        unary += "1" * (gap // 2**b) + "0"
    return header + plane + unary


def slow_encode(levels: list[int], norms: list[float], s: int) -> bytes:
    head = b"".join(struct.pack("<f", norm) for norm in norms)
    if not any(norms):
        return head
    candidates = [(sparse_bits(levels, s, b), "1") for b in range(15)] + [(dense_bits(levels, s), "0")]
    bits, padding = min(candidates, key=lambda candidate: len(candidate[0]))
    entropy = entropy_body([level + s for level in levels], 2 * s + 1, "1111", len(bits))
    return head + (to_bytes(bits, padding) if entropy is None else entropy)


def slow_decode(message: bytes, d: int, s: int, buckets: int) -> list[int]:
    body = message[4 * buckets :]
    bits = "".join(field(octet, 8) for octet in body)
    if not bits:
        return [0] * d
    if bits.startswith("1111"):
        base, at, levels = 2 * s + 1, 4, []
        g = max(g for g in range(1, 63) if base**g <= 2**62)
        while len(levels) < d:
            digits = min(g, d - len(levels))
            width = (base**digits - 1).bit_length()
            number, at = int(bits[at : at + width], 2), at + width
            levels += [number // base ** (digits - 1 - i) % base - s for i in range(digits)]
        return levels
    b, w, rest = int(bits[:4], 2), 0, bits[4:]
    if s > 1:
        w, rest = int(rest[:4], 2), rest[4:]
    m = 1 + w + b
    roots = [k for k in range(len(rest) // m + 1) if rest[k * m :].count("0") == k]
    assert len(roots) == 1
    levels, at = [0] * d, -1
    quotients = [len(ones) for ones in rest[roots[0] * m :].split("0")]
    for k in range(roots[0]):
        fixed = rest[k * m : (k + 1) * m]
        magnitude = int("0" + fixed[1 : 1 + w], 2) + 1
        at += quotients[k] * 2**b + int("0" + fixed[1 + w :], 2) + 1
        levels[at] = -magnitude if fixed[0] == "1" else magnitude
    return levels


def slow_digits(digits: list[int], scales: list[float], seeds: list[int], base: int, written: bool) -> bytes:
    head = b"".join(struct.pack("<I", seed) for seed in seeds) + b"".join(struct.pack("<f", scale) for scale in scales)
    if not written:
        return head
    fixed = grouped(digits, base)
    return head + (entropy_body(digits, base, "", len(fixed)) or to_bytes(fixed, "0"))


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
        assert message == slow_encode(levels, norms, layout.levels)
        assert slow_decode(message, layout.d, layout.levels, layout.buckets) == levels


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
        assert message == slow_encode(levels, [1.0], payload.layout.levels)
    assert size(payload).tolist() == [8 * len(message) for message in messages]
    assert torch.equal(decode(messages, payload.layout).levels, payload.levels)


def test_the_entropy_code_is_used_where_it_is_shorter() -> None:
    entropy = 0
    for seed in range(40):
        payload = heavy_payload(np.random.default_rng(seed))
        dense = 4 + len(to_bytes(dense_bits(payload.levels[0].tolist(), payload.layout.levels), "0"))
        entropy += sum(message[4] >> 4 == 15 and len(message) < dense for message in encode(payload))
    assert 30 <= entropy <= 110


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


def test_every_code_is_used() -> None:
    used: set[int] = set()
    for seed in range(150):
        payload = random_payload(np.random.default_rng(seed))
        head = 4 * payload.layout.buckets
        used |= {message[head] >> 4 for message in encode(payload) if len(message) > head}
    assert used >= {0, 1, 2, 3, 4, 5, 15}


@pytest.mark.parametrize("code", range(15))
def test_a_lone_level_far_out(code: int) -> None:
    gap = 2 ** (code + 1) * (8 if code == 14 else 1)  # beyond the largest code the unary plane must grow
    levels = [0] * gap + [-1]
    payload = Levels(LevelsLayout(gap + 1, 1, gap + 1), torch.tensor([levels], dtype=torch.int32), torch.ones(1, 1))
    (message,) = encode(payload)
    assert message == slow_encode(levels, [1.0], 1)
    assert message[4] >> 4 == code
    assert torch.equal(decode([message], payload.layout).levels, payload.levels)


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
            assert slow_encode(found.levels[0].tolist(), found.norms[0].tolist(), layout.levels) == bytes(damaged)
            assert size(found).tolist() == [8 * len(damaged)]


def test_blocks_of_an_entropy_code_are_one_string(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(0).binomial(30, 0.4, 10_000).astype(np.int32) - 12
    counts = ans.counted(symbols, -15, 40)
    whole = ans.encode(symbols, counts, np.ones(4, np.uint8), -15)
    monkeypatch.setattr(ans, "_BLOCK", 999)
    assert ans.counted(symbols, -15, 40).tolist() == counts.tolist() == np.bincount(symbols + 15, minlength=40).tolist()
    assert ans.encode(symbols, counts, np.ones(4, np.uint8), -15) == whole
    assert (ans.decode(np.frombuffer(whole, np.uint8), 4, len(symbols), 40) - 15).tolist() == symbols.tolist()
