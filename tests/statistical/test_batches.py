"""Every subset of a client's samples is equally likely."""

from __future__ import annotations

from itertools import combinations

import torch
from scipy.stats import chi2

from fedsim.randomness import Purpose, Stream
from fedsim.solvers.batches import choose


def test_every_subset_is_equally_likely() -> None:
    """60000 batches of 3 of 6 samples: chi-square over the 20 subsets, false alarm once in 10^7 seeds."""
    ids = torch.arange(20000)
    counts = dict.fromkeys(combinations(range(6), 3), 0)
    for step in range(3):
        stream = Stream(seed=5, purpose=Purpose.BATCH, round=1, index=step)
        for row in choose(stream, ids, torch.full_like(ids, 6), 9, 3).tolist():
            counts[tuple(row)] += 1
    expected = 60000 / 20
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 20
    assert statistic < chi2.isf(1e-7, df=19)
