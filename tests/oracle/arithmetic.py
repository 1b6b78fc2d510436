"""The arithmetic code written from the docstrings of ``fedsim.wire.model`` and ``arithmetic`` alone, with one number as
long as the message."""

from __future__ import annotations

from functools import cache

from tests.oracle.entropy import logarithm

TOTAL = 2**24
ODDS = [(m * 2 ** max(e, 0), 4 * 2 ** max(-e, 0)) for e in range(-24, 17) for m in (4, 5, 6, 7)]
CURVES = [(1, 64), (1, 16), (1, 8), (1, 4), (1, 3), (1, 2), (3, 5), (2, 3), (3, 4), (4, 5), (6, 7), (8, 9), (12, 13)]
CURVES += [(n, n + 1) for n in (16, 24, 32, 48, 64, 128, 256, 1024, 4096)]
TAILS = [(1, 16), (1, 4), (1, 2), (3, 4)]
POWERS = [(4, 0), (3, 0), (2, 0), (3, 1), (3, 3), (0, 1)]


@cache
def cost(share: int, shift: int = 24) -> int:
    """Units of 2^-24 bits."""
    return shift * TOTAL - logarithm(share, 24) + 1


def shares(weights: list[int]) -> list[int]:
    whole, rest = sum(weights), TOTAL - len(weights)
    found = [1 + weight * rest // whole for weight in weights]
    found[weights.index(max(weights))] += TOTAL - sum(found)
    return found


def nonzero_share(odds: int) -> int:
    up, down = ODDS[odds]
    return max(1, TOTAL * up // (up + down))


@cache
def head_shares(s: int, bucket: int) -> list[int]:
    up, down = (4, 5) if s * s < bucket else (5, 2)  # sigma < 1
    near = [j for j, (a, b) in enumerate(ODDS) if 5 * (a * down) ** 2 * bucket <= 7 * (b * up * s) ** 2 and j % 2 == 0]
    middle = max(near, default=0)
    far = [2 * (j - middle) if j > middle else middle - j for j in range(len(ODDS))]
    return shares([2**28 // (4 + away) ** 3 >> (3 if j % 2 else 0) for j, away in enumerate(far)])


def falling(s: int, first: int, ratio: int, square: tuple[int, int]) -> list[int]:
    """ratio: w_2 / w_1 in units of 2^-60; each ratio is that before times ``square``."""
    weights = [first]
    while len(weights) < s:
        weights.append(weights[-1] * ratio // 2**60)
        ratio = ratio * square[0] // square[1]
    return weights


@cache
def magnitude_shares(s: int) -> list[list[int]]:
    most, found = 2**38 // s, []
    for a, b in CURVES:
        found.append(falling(s, most, a * 2**60 // b * a**2 // b**2, (a * a, b * b)))
    for a, b in TAILS:
        found.append(falling(s, most, a * 2**60 // b, (1, 1)))
    for power, b in POWERS:
        found.append([most * (1 + b) ** power // (m + b) ** power for m in range(1, s + 1)])
    return [shares(weights) for weights in found]


def plan(levels: list[int], s: int, bucket: int) -> tuple[int, int, int]:
    """Odds, shape, bytes."""
    nonzero = [abs(level) for level in levels if level]
    heads = head_shares(s, bucket)

    def under(odds: int) -> int:
        one = nonzero_share(odds)
        zeros = len(levels) - len(nonzero)
        return cost(heads[odds]) + zeros * cost(TOTAL - one) + len(nonzero) * (cost(one) + TOTAL + 1)

    prices = [under(odds) for odds in range(len(ODDS))]
    units = cost(255, 8) + min(prices)
    shape = 0
    if s > 1:
        counts = {m: nonzero.count(m) for m in set(nonzero)}
        sums = [sum(count * cost(own[m - 1]) for m, count in counts.items()) for own in magnitude_shares(s)]
        shape = sums.index(min(sums))
        units += 5 * TOTAL + 1 + min(sums)
    return prices.index(min(prices)), shape, -(-units // (8 * TOTAL))


def steps(levels: list[int], odds: int, shape: int, s: int, bucket: int) -> list[tuple[int, int, int]]:
    """(sum of the shares before, share, binary logarithm of the total) of everything that is said."""
    heads, one = head_shares(s, bucket), nonzero_share(odds)
    said = [(sum(heads[:odds]), heads[odds], 24)]
    if s > 1:
        said.append((shape, 1, 5))
    for level in levels:
        said.append((TOTAL - one, one, 24) if level else (0, TOTAL - one, 24))
        if level:
            said.append((int(level < 0), 1, 1))
            if s > 1:
                own = magnitude_shares(s)[shape]
                said.append((sum(own[: abs(level) - 1]), own[abs(level) - 1], 24))
    return said


def model_body(levels: list[int], s: int, bucket: int) -> bytes:
    odds, shape, octets = plan(levels, s, bucket)
    low, width, n = 0, 2**64 - 2**56, 8
    for start, share, shift in steps(levels, odds, shape, s, bucket):
        part = width >> 24 if shift > 1 else width >> 1
        scale = 2 ** (24 - shift) if shift > 1 else 1
        low, width = low + part * start * scale, part * share * scale
        while width < 2**56:
            low, width, n = low * 256, width * 256, n + 1
    unit = 256 ** (n - octets) if n > octets else 1
    number = -(-low // unit) * unit
    assert number < low + width
    return number.to_bytes(n, "big")[:octets].ljust(octets, b"\0")


def model_levels(body: bytes, d: int, s: int, bucket: int) -> list[int]:
    """The row of a body that is one."""
    above, width, at = int.from_bytes(body[:8].ljust(8, b"\0"), "big"), 2**64 - 2**56, 8

    def find(own: list[int], unit: int) -> int:
        nonlocal above, width, at
        part = width // (sum(own) * unit) * unit
        found, before = 0, 0
        while above >= part * (before + own[found]):
            found, before = found + 1, before + own[found]
        above, width = above - part * before, part * own[found]
        while width < 2**56:
            above, width, at = above * 256 + (body[at] if at < len(body) else 0), width * 256, at + 1
        return found

    odds = find(head_shares(s, bucket), 1)
    shape = find([1] * 32, 2**19) if s > 1 else 0
    one, levels = nonzero_share(odds), []
    for _ in range(d):
        if not find([TOTAL - one, one], 1):
            levels.append(0)
            continue
        sign = -1 if find([1, 1], 1) else 1
        levels.append(sign * (1 + (find(magnitude_shares(s)[shape], 1) if s > 1 else 0)))
    return levels
