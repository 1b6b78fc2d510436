"""What messages cost: every compressor on rows of several kinds, its bits by formula, entropy and encoding, and speed.

    python -m tests.benchmarks messages [gaussian heavy a9a softmax mlp]

gaussian and heavy (Student's t with 2 degrees of freedom) have 66, 1000, 1e4, 1e5 and 1e6 coordinates. The others
are gradients after a few steps of gradient descent: of 124 parameters on a9a (in ../shared/data/libsvm beside the
repository), and on the digits of scikit-learn of 650 and of about 1e5 and 1e6. "entropy" is the zero-order entropy of a
message's whole numbers, and the bits of its floats and seeds; "by entropy" the payload over that; error is
||C(x) - x||^2 / ||x||^2 of the one message; enc and dec are MB of float32 rows a second of the thread's own time,
compression left out; ms is both for one message. Decoding checks that a message is canonical, which encodes it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from fedsim.algorithms.method import AnyCompressor
from fedsim.compression import Compressor, Eden, Half, NaturalDithering, Payload, PermK, Quantize
from fedsim.compression.payload import parts
from fedsim.data import Digits, LibSVM
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError
from fedsim.randomness import Purpose, Stream
from fedsim.wire import decode, encode
from fedsim.wire.measure import entropy_bits

DIMENSIONS = (66, 1_000, 10_000, 100_000, 1_000_000)
VARIANTS: list[Compressor] = [
    *(Quantize(16), Quantize(1, "linf"), Quantize(16, "linf"), NaturalDithering(8, "linf")),
    *(Eden(2), Eden(4, bucket=4096), Half("float16")),
]


def gaussian() -> Iterator[Tensor]:
    for d in DIMENSIONS:
        yield torch.randn(1, d, generator=torch.Generator().manual_seed(d))


def heavy() -> Iterator[Tensor]:
    for d in DIMENSIONS:
        uniform = torch.rand(1, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        yield ((2 * uniform - 1) / (2 * uniform * (1 - uniform)).sqrt()).float()  # its quantile function


def gradient(model: nn.Module, train: Examples, steps: int = 20) -> Tensor:
    """Of the cross-entropy over the examples, after so many steps of gradient descent."""
    features, targets = train.features.float(), train.targets
    for _ in range(steps + 1):
        loss = nn.functional.cross_entropy(model(features), targets)
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, slope in zip(model.parameters(), slopes, strict=True):
                weight -= 0.3 * slope
    return torch.cat([slope.flatten() for slope in slopes])[None]


def a9a() -> Iterator[Tensor]:
    torch.manual_seed(0)
    train = LibSVM(str(Path(__file__).resolve().parents[3] / "shared" / "data" / "libsvm" / "a9a.gz")).load(0).train
    # the logistic loss of a margin m is the cross-entropy of (0, m)
    yield gradient(nn.Sequential(nn.Linear(124, 1, bias=False), nn.ConstantPad1d((1, 0), 0.0)), train)


def softmax() -> Iterator[Tensor]:
    torch.manual_seed(0)
    yield gradient(nn.Linear(64, 10), Digits().load(0).train)


def mlp() -> Iterator[Tensor]:
    for width in (1333, 13333):
        torch.manual_seed(0)
        yield gradient(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)), Digits().load(0).train)


ROWS: dict[str, Callable[[], Iterator[Tensor]]] = {
    "gaussian": gaussian,
    "heavy": heavy,
    "a9a": a9a,
    "softmax": softmax,
    "mlp": mlp,
}


def compressors() -> Iterable[Compressor]:
    """One of every kind that a method can have, with its default options, and some more."""
    return [PermK(10) if kind is PermK else kind() for kind in get_args(AnyCompressor)] + VARIANTS


def entropy(payload: Payload) -> float:
    """Bits of a message of one row."""
    bits = 0.0
    for part in parts(payload).values():
        if part.is_floating_point():
            bits += 8 * part.element_size() * part.numel()
        else:
            bits += entropy_bits(part[0]) if part.numel() > 1 else 32 * part.numel()
    return bits


def seconds(work: Callable[[], object], at_least: float) -> float:
    """The shortest of the repetitions in so many seconds, of this thread's own time."""
    best, ends = float("inf"), time.thread_time() + at_least
    while True:
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
        if time.thread_time() > ends:
            return best


def line(name: str, compressor: Compressor, row: Tensor, at_least: float = 0.3) -> str:
    """One line of the table."""
    d = row.shape[1]
    payload = compressor.compress(row, Stream(1, Purpose.UPLINK), torch.arange(1))
    back = compressor.decompress(payload, torch.float64)
    messages = encode(payload)
    bits, least, formula = 8 * len(messages[0]), entropy(payload), sum(compressor.formula_bits(d))
    there = seconds(lambda: encode(payload), at_least)
    again = seconds(lambda: decode(messages, payload.layout), at_least)
    error = float(((back - row) ** 2).sum() / (row.double() ** 2).sum())
    ms = 1e3 * (there + again)
    return (
        f"| {name} | {d} | {compressor!r} | {formula:.0f} | {least:.0f} | {bits} | {bits / d:.3f} | "
        f"{bits / least:.4f} | {error:.3g} | {4e-6 * d / there:.0f} | {4e-6 * d / again:.0f} | {ms:.2f} |"
    )


def table(names: Iterable[str]) -> None:
    """Print the table."""
    print("| rows | d | compressor | formula | entropy | payload | bits / d | by entropy | error | enc | dec | ms |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in names:
        for row in ROWS[name]():
            for compressor in compressors():
                try:
                    print(line(name, compressor, row), flush=True)
                except FedsimError as error:
                    print(f"| {name} | {row.shape[1]} | {compressor!r} | {error} |")
