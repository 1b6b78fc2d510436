"""What the server does instead of a mean, so that a minority of a cohort cannot move its step far.

    paper   here     meaning
    x_i     rows     what client i's direction comes to at the server, h_i + D_i (D_i without memories), float[n, d]
    A       shares   sum of the factors v_i / p (or v_i / sum_S v_j) of a cohort: 1 in expectation
    beta    trim     share of a cohort that is left out at either end of each coordinate
    tau     bound    clip times the median of ||x_i||

    mean               sum_S (v_i / p) x_i
    clip               the same of x_i min(1, tau / ||x_i||); before any of the others, too
    median             A times the median of each coordinate
    trimmed-mean       A times each coordinate's mean without its ceil(beta n) largest and ceil(beta n) smallest
    geometric-median   A argmin_z sum_i ||x_i - z||, by Weiszfeld's iteration from the mean of rows clipped at clip = 1

All count heads. A weight would be the power of whoever has it: geometric medians weighted by samples are moved up to
twice as far in the digits experiment (``tests/statistical/test_hostile.py``).

Compression widens what an attacker can hide in: D_i differs from its row by sqrt(omega) times its length, in the limit
of few levels nearly all of its coordinates are zero, and the median of zeros is zero. Coordinate rules are therefore
refused where omega > 1. The geometric median sees the noise of honest rows, too. In that experiment it holds against a
fifth who flip signs, follow ALIE or collude, as long as they draw their levels as the protocol says; those who choose
their levels, know everything and stay as short as the others move it as they would a mean, or further. Memories add
another surface: what the server adds up over rounds (the h of PP2) keeps for ever what one upload put there, so each
client's own h_i must be looked at (PP1). And no rule is better than honest clients are alike: a minority that says what
honest clients with other data might say is indistinguishable from them.

Sources: Yin, Chen, Ramchandran, Bartlett, ICML 2018 (median, trimmed mean); Pillutla, Kakade, Harchaoui, "Robust
aggregation for federated learning", 2022 (geometric median); Sun, Kairouz, Suresh, McMahan, 2019 (norm bound); Zhu and
Ling, "BROADCAST", 2021 (the geometric median of differences from memories; what compression costs); Karimireddy, He,
Jaggi, ICLR 2022 (what heterogeneity costs).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.algorithms.method import ServerOptions, Uplink
from fedsim.algorithms.whitening import Off, Whitening
from fedsim.errors import ConfigError
from fedsim.flat import tree_sum

STEPS = 4
"""Of Weiszfeld's iteration; each brings a far minority of 20 % four times nearer to what it can do at most."""

NEAR = 1e-6
"""Rows closer to the point than this times their median length pull as if they were so far away."""

TINY = 1e-300
"""A length that is none."""

SPREAD = 1.0
"""The largest omega for which a coordinate of a decoded row tells more than its noise."""


def combine(server: ServerOptions, rows: Tensor, shares: Tensor) -> Tensor:
    """The estimate of a cohort, float[d], from its rows, float[n, d], n >= 1. shares: float[n]."""
    if server.clip:
        rows = clipped(rows, server.clip)
    rule = RULES.get(server.aggregate)
    if rule is None:
        return tree_sum(shares[:, None] * rows, dim=0)
    return tree_sum(shares, dim=0) * rule(rows, server.trim)


def clipped(rows: Tensor, times: float) -> Tensor:
    """Rows, float[n, d], n >= 1, shortened to at most ``times`` their median length (the lower one of two)."""
    lengths = _lengths(rows)
    factors = (times * lengths.median() / lengths.clamp_min(TINY)).clamp_max(1.0)
    return rows * factors[:, None].to(rows.dtype)


def trimmed_mean(rows: Tensor, trim: float) -> Tensor:
    """float[n, d] -> float[d]; ``trim`` of the rows, rounded up, are left out at both ends, but never all.

    >>> trimmed_mean(torch.tensor([[1.0], [2.0], [4.0], [1e9], [0.0]]), 0.2)
    tensor([2.3333])
    """
    n = len(rows)
    # 0.1 * 30 is not 3.
    cut = min(math.ceil(trim * n - 1e-9), (n - 1) // 2)
    return tree_sum(rows.sort(dim=0).values[cut : n - cut], dim=0) / (n - 2 * cut)


def median(rows: Tensor) -> Tensor:
    """float[n, d] -> float[d]: the middle of each coordinate, or the mean of the two there.

    >>> median(torch.tensor([[1.0, 5.0], [2.0, 5.0], [1e9, 7.0]]))
    tensor([2., 5.])
    """
    return trimmed_mean(rows, 0.5)


def geometric_median(rows: Tensor) -> Tensor:
    """float[n, d] -> float[d], after ``STEPS`` iterations.

    >>> geometric_median(torch.tensor([[1.0, 2.0]] * 9 + [[1e9, 1e9]])).round(decimals=3)
    tensor([1., 2.])
    """
    near = NEAR * float(_lengths(rows).median()) + TINY
    point = tree_sum(clipped(rows, 1.0), dim=0) / len(rows)
    for _ in range(STEPS):
        pulls = 1.0 / _lengths(rows - point).clamp_min(near)
        pulls = pulls / tree_sum(pulls, dim=0)
        point = tree_sum(pulls[:, None].to(rows.dtype) * rows, dim=0)
    return point


def _lengths(rows: Tensor) -> Tensor:
    """float[n, d] -> float64[n]."""
    wide = rows.to(torch.float64)
    return tree_sum(wide * wide, dim=1).sqrt()


RULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "median": lambda rows, _: median(rows),
    "trimmed-mean": trimmed_mean,
    "geometric-median": lambda rows, _: geometric_median(rows),
}
"""Rows and trim -> float[d]."""


def check(server: ServerOptions, uplink: Uplink, whitening: Whitening, d: int) -> None:
    """Raise ConfigError for a rule that would not protect, with the reason and the way out."""
    if (server.aggregate == "trimmed-mean") != (server.trim > 0):
        raise ConfigError(
            f"server.trim = {server.trim:g} with server.aggregate = {server.aggregate!r}: a trimmed mean, and only "
            "that, leaves out a share of a cohort; use both, for example trim = 0.2, or drop both"
        )
    if not server.robust:
        return
    chosen = (
        f"server.clip = {server.clip:g}" if server.aggregate == "mean" else f"server.aggregate = {server.aggregate!r}"
    )
    omega = uplink.compressor.omega(d)
    if server.aggregate in ("median", "trimmed-mean") and omega > SPREAD:
        raise ConfigError(
            f"{chosen} sees mostly zeros and noise in rows of omega = {omega:.3g} (at most {SPREAD:g}); use server."
            "aggregate = 'geometric-median', or more uplink.levels, or uplink.compressor = 'identity'"
        )
    if server.weights != "uniform":
        raise ConfigError(
            f"{chosen} counts heads, but server.weights = {server.weights!r} gives power to whoever has samples; use "
            "server.weights = 'uniform'"
        )
    if uplink.memory and (server.normalise == "registered" or uplink.synchronise):
        raise ConfigError(
            f"{chosen} looks at each client's memory, but server.normalise = 'registered' and uplink.synchronise need "
            "their mean; use server.aggregate = 'mean' and server.clip = 0, or a recipe such as artemis"
        )
    if uplink.memory and server.memory != "pp1":
        raise ConfigError(
            f"{chosen} looks at each client's memory, but server.memory = 'pp2' keeps their mean, where what an "
            "attacker once put stays; use server.memory = 'pp1'"
        )
    if not isinstance(whitening, Off):
        raise ConfigError(
            f"{chosen} protects directions, but whitening.mode = {whitening.__struct_config__.tag!r} takes the mean of "
            "what clients say of their features; use whitening.mode = 'off'"
        )
