"""Who takes part in a round: a function of (seed, round) alone.

scheme      cohort                                            inclusion probability
full        every client                                      1
bernoulli   each client with probability p, independently     p      (the cohort may be empty)
k-of-n      k distinct clients, uniformly                     k / n
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.randomness import Purpose, Stream, only


class Full(msgspec.Struct, frozen=True, tag_field="scheme", tag="full", forbid_unknown_fields=True):
    """Every client takes part in every round."""

    def probability(self, clients: int) -> float:
        """Chance that a given client is in a cohort: 1."""
        return 1.0

    def sample(self, clients: int, seed: int, round: int) -> Tensor:
        """Client numbers of the cohort, int64[n], ascending."""
        return torch.arange(clients)


class Bernoulli(msgspec.Struct, frozen=True, tag_field="scheme", tag="bernoulli", forbid_unknown_fields=True):
    """Each client takes part with probability p, independently of the others and of other rounds."""

    p: Annotated[float, msgspec.Meta(gt=0, le=1, description="the probability that a client takes part in a round")]

    def probability(self, clients: int) -> float:
        """Chance that a given client is in a cohort: p."""
        return self.p

    def sample(self, clients: int, seed: int, round: int) -> Tensor:
        """Client numbers of the cohort, int64[n], ascending; possibly empty."""
        stream = Stream(seed, Purpose.PARTICIPATION, round)
        coins = stream.uniform(torch.arange(clients), 1, torch.float64)[:, 0]
        return torch.nonzero(coins < self.p)[:, 0]


class KofN(msgspec.Struct, frozen=True, tag_field="scheme", tag="k-of-n", forbid_unknown_fields=True):
    """k distinct clients, every subset equally likely."""

    k: Annotated[int, msgspec.Meta(ge=1, description="the number of clients in a round")]

    def probability(self, clients: int) -> float:
        """Chance that a given client is in a cohort: k / n."""
        return self.k / clients

    def sample(self, clients: int, seed: int, round: int) -> Tensor:
        """Client numbers of the cohort, int64[k], ascending. Work grows with k, not with the registered clients."""
        if self.k > clients:
            raise ConfigError(f"participation.k = {self.k}, but there are {clients} clients; lower k or add clients")
        # Floyd's algorithm: the i-th draw is uniform on [0, clients - k + i]; a repeat takes the new top element.
        words = Stream(seed, Purpose.PARTICIPATION, round).words(only(), 2 * self.k)[0].numpy().astype(np.uint64)
        tops = np.arange(clients - self.k, clients)
        # (64-bit word * (top + 1)) >> 64 in halves of 32 bits: neither product nor sum exceeds 64 bits.
        counts, high, low, half = tops.astype(np.uint64) + np.uint64(1), words[::2], words[1::2], np.uint64(32)
        draws = (high * counts + (low * counts >> half)) >> half
        chosen: set[int] = set()
        for top, draw in zip(tops.tolist(), draws.tolist(), strict=True):
            chosen.add(top if draw in chosen else draw)
        return torch.from_numpy(np.array(sorted(chosen)))


Participation = Full | Bernoulli | KofN
