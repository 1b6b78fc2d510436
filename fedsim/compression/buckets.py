"""Coordinates that share a scale: rows cut into buckets, the last of which may be shorter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.flat import tree_sum


def cut(rows: Tensor, bucket: int) -> Tensor:
    """float[n, d] -> float64[n, buckets, bucket], zeros at the end."""
    n, d = rows.shape
    buckets = -(-d // bucket)
    return torch.nn.functional.pad(rows, (0, buckets * bucket - d)).reshape(n, buckets, bucket).to(torch.float64)


def norms(magnitudes: Tensor, bucket: int, linf: bool) -> Tensor:
    """float[n, d] >= 0 -> float32[n, buckets], rounded up so that no coordinate exceeds its norm: the 2-norm or, with
    ``linf``, the largest. The same bits for a row alone and in a cohort.
    """
    wide = cut(magnitudes, bucket)
    exact = wide.amax(dim=2) if linf else tree_sum(wide * wide, dim=2).sqrt()
    exact = torch.maximum(exact, wide.amax(dim=2))  # sqrt(x * x) may fall below x by one rounding
    nearest = exact.to(torch.float32)
    above = torch.nextafter(nearest, torch.full_like(nearest, math.inf))
    return torch.where(nearest.to(torch.float64) < exact, above, nearest)


def spread(scales: Tensor, bucket: int, d: int) -> Tensor:
    """float[n, buckets] -> float[n, d] (or [n, 1] when the row is one bucket, which broadcasts)."""
    if scales.shape[1] == 1:
        return scales
    return scales.repeat_interleave(bucket, dim=1)[:, :d]


def size(bucket: int, d: int) -> int:
    """Coordinates of a bucket of a row of ``d``: all of them where ``bucket`` is 0 or more than there are."""
    return min(bucket, d) or d
