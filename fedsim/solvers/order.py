"""In which order a client walks through its samples.

    order             pass e of a client with n samples
    fresh             no passes: every step draws b distinct samples anew (the rule of the published Artemis code)
    with-replacement  n independent draws: plain SGD
    reshuffle         a new permutation in every pass: random reshuffling, RR
    shuffle-once      one permutation, drawn before the first pass: SO
    incremental       the order of the file: IG
    synchronised      a new permutation in every pass, the same for clients of equal size, each client starting
                      client / N of the way along it

A permutation is a function of (seed, client, pass), so nothing has to be stored for RR to stay RR over rounds, restarts
and containers: only the number of steps a client has taken, which says in which pass it is and where.

The last batch of a pass is short when b does not divide n. Every sample of a pass of m = ceil(n / b) steps counts
m / n, so the mean over the steps of a pass is the mean over all samples, exactly.

Sources: Mishchenko, Khaled, Richtárik, "Random Reshuffling: Simple Analysis with Vast Improvements", NeurIPS 2020 (RR,
SO, IG); Yun, Rajput, Sra, "Minibatch vs Local SGD with Shuffling", ICLR 2022 (synchronised shuffling).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.plugins import blamed, named
from fedsim.randomness import SERVER, Purpose, Stream, only

FRESH = "fresh"
_LAST = 2**63 - 1


class Order(Protocol):
    """The samples of one pass, in order: int64[n]. What a user's own order implements."""

    def __call__(self, seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
        """seed: of the experiment; n: samples of the client; epoch: number of the pass; clients: N."""
        ...


def with_replacement(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """n independent, uniform draws."""
    words = _stream(seed, epoch).words(only(client), n)[0]
    return words * n >> 32


def reshuffle(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """A new permutation."""
    return _permutation(_stream(seed, epoch), client, n)


def shuffle_once(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """The permutation of the first pass."""
    return _permutation(_stream(seed, 0), client, n)


def incremental(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """0, 1, ..., n - 1."""
    return torch.arange(n)


def synchronised(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """The permutation that all clients of n samples share in this pass, from this client's own place on."""
    return _permutation(_stream(seed, epoch), SERVER, n).roll(-(client * n // clients))


ORDERS: dict[str, Order] = {
    "with-replacement": with_replacement,
    "reshuffle": reshuffle,
    "shuffle-once": shuffle_once,
    "incremental": incremental,
    "synchronised": synchronised,
}


def order_named(name: str) -> Order | None:
    """The order of an experiment: None for "fresh", or a user's own by its dotted path. Raises ConfigError."""
    if name == FRESH:
        return None
    if name in ORDERS:
        return ORDERS[name]
    return checked(cast(Order, named("local.order", name, (FRESH, *ORDERS), "fedsim.orders")), name)


def checked(order: Order, place: str) -> Order:
    """``order`` with its answers checked: int64[n], each from 0 to n - 1. For orders that are not ours."""

    def walk(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
        with blamed("local.order", place):
            places: object = order(seed, client, n, epoch, clients)
        if not isinstance(places, Tensor):
            found = type(places).__name__
        elif places.dtype != torch.int64 or places.shape != (n,):
            found = f"{places.dtype}{list(places.shape)}"
        elif int(places.amin()) < 0 or int(places.amax()) >= n:
            found = f"numbers from {int(places.amin())} to {int(places.amax())}"
        else:
            return places
        raise ConfigError(
            f"local.order = {place!r} returned {found} for client {client}; "
            f"expected torch.int64[{n}] with numbers from 0 to {n - 1}"
        )

    return walk


Passes = Callable[[int, Tensor, Tensor, int, int], Tensor]
"""(seed, clients int64[n], sizes int64[n], epoch, N) -> the pass of each, int64[n, largest size], then anything."""


def passes_of(order: Order) -> Passes:
    """The same passes for many clients at once; of a user's own order, one client after the other."""
    return PASSES.get(order) or _one_by_one(order)


def _draws(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
    return _stream(seed, epoch).words(clients, int(sizes.amax())) * sizes[:, None] >> 32


def _reshuffles(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
    return _permutations(_stream(seed, epoch).words(clients, int(sizes.amax())), sizes)


def _first_shuffles(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
    return _reshuffles(seed, clients, sizes, 0, n)


def _files(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
    return torch.arange(int(sizes.amax())).expand(clients.shape[0], -1)


def _shared(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
    width = int(sizes.amax())
    words = _stream(seed, epoch).words(only(), width).expand(clients.shape[0], -1)
    turned = torch.arange(width) + (clients * sizes // n)[:, None]
    return _permutations(words, sizes).gather(1, turned % sizes[:, None])


PASSES: dict[Order, Passes] = {
    with_replacement: _draws,
    reshuffle: _reshuffles,
    shuffle_once: _first_shuffles,
    incremental: _files,
    synchronised: _shared,
}


def _one_by_one(order: Order) -> Passes:
    def passes(seed: int, clients: Tensor, sizes: Tensor, epoch: int, n: int) -> Tensor:
        found = torch.zeros((clients.shape[0], int(sizes.amax())), dtype=torch.int64)
        for row, client, size in zip(found, clients.tolist(), sizes.tolist(), strict=True):
            row[:size] = order(seed, client, size, epoch, n)
        return found

    return passes


def _permutations(words: Tensor, sizes: Tensor) -> Tensor:
    """``_permutation`` of each row of keys, int64[n, width]; what is not a sample comes last."""
    beyond = torch.arange(words.shape[1]) >= sizes[:, None]
    return torch.argsort(words.masked_fill(beyond, _LAST), dim=1, stable=True)


def _stream(seed: int, epoch: int) -> Stream:
    return Stream(seed, Purpose.ORDER, epoch)


def _permutation(stream: Stream, client: int, n: int) -> Tensor:
    """Sort by random keys; equal keys keep the order of the file."""
    return torch.argsort(stream.words(only(client), n)[0], stable=True)
