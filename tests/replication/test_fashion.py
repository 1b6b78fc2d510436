"""Fashion-MNIST on 20 clients: the networks, what a round sends, and, slow, the published order and the cheapest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from fedsim.wire.frame import HEADER_BYTES
from tests.replication import fashion, networks

FEW = {"data": {"source": "fashion-mnist", "limit": 4000}}
"""200 images a client."""

SIZE = 20_842
FRAME = HEADER_BYTES + 4 * SIZE
"""Bytes of a frame with a row of the small network as it is."""


@pytest.mark.parametrize(("network", "size"), [(networks.published, 421_642), (networks.small, SIZE)])
def test_the_size_of_a_network(network: Callable[..., nn.Module], size: int) -> None:
    assert sum(p.numel() for p in network((1, 28, 28), 10).parameters()) == size


def test_the_published_network_is_the_one_of_the_published_bits() -> None:
    """1.62e11 bits of plain SGD: 20 workers, both ways, 32 bits a number, 300 times."""
    assert float(f"{300 * 20 * 2 * 32 * 421_642:.2e}") == 1.62e11


@pytest.mark.usefixtures("fashion_mnist_folder")
@pytest.mark.parametrize(
    ("name", "up", "down"),
    [("sgd", False, False), ("diana", True, False), ("artemis", True, True), ("mcm", True, True)],
)
def test_what_five_rounds_send(name: str, up: bool, down: bool) -> None:
    """First models in full; then rows in full, or messages of s = 4, a hundred times shorter with their headers."""
    seen = fashion.play(fashion.experiment("small", 5 * 2560 / 60_000, fashion.method(name) | FEW))
    assert [one.rounds for one in seen] == [0, 5]
    uploads, updates = seen[-1].up / (20 * FRAME), seen[-1].down / (20 * FRAME) - 1
    assert 0 < uploads < 5 / 100 if up else uploads == 5
    assert 0 < updates < 4 / 100 if down else updates == 4


@pytest.mark.usefixtures("fashion_mnist_folder")
@pytest.mark.parametrize("name", fashion.CHEAP)
def test_two_cheap_rounds(name: str) -> None:
    """Nothing is refused, and the network learns; stc, which sends a twentieth at a time, has only begun to."""
    seen = fashion.play(fashion.experiment("small", 1, fashion.CHEAP[name] | FEW | {"rounds": 2}))
    assert seen[-1].rounds == 2
    assert seen[-1].accuracy > (1.5 * seen[0].accuracy if name.startswith("stc") else 0.4)
