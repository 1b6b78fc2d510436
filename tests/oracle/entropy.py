"""The entropy code written from the docstring of ``fedsim.wire.ans`` alone, one symbol after another."""

from __future__ import annotations


def field(number: int, width: int) -> str:
    return bin(number + (1 << width))[3:]


def to_bytes(bits: str, padding: str) -> bytes:
    bits += padding * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def table(counts: list[int]) -> str:
    used = [symbol for symbol, count in enumerate(counts) if count]
    width, some = (len(counts) - 1).bit_length(), counts[used[0] : used[-1] + 1]
    lengths = "".join("1" * count.bit_length() + "0" for count in some)
    rests = "".join(field(count, count.bit_length())[1 : 1 + count.bit_length() // 2] for count in some if count)
    return field(used[0], width) + field(used[-1], width) + lengths + rests


def middle(count: int) -> int:
    length = count.bit_length()
    kept = bin(count)[2:][: 1 + length // 2]
    return int((kept + "1" + "0" * length)[:length], 2)


def frequencies(counts: list[int]) -> list[int]:
    """0 of a symbol that does not occur."""
    weights = [middle(count) if count else 0 for count in counts]
    used, total = sum(weight > 0 for weight in weights), sum(weights)
    found = [1 + weight * (2**24 - used) // total if weight else 0 for weight in weights]
    found[weights.index(max(weights))] += 2**24 - sum(found)
    return found


def words(symbols: list[int], counts: list[int]) -> list[int]:
    if sum(count > 0 for count in counts) == 1:
        return []
    f = frequencies(counts)
    out, x = [], 0
    for symbol in reversed(symbols):
        if x >= 2**40 * f[symbol]:
            out.append(x % 2**32)
            x //= 2**32
        x = x // f[symbol] * 2**24 + sum(f[:symbol]) + x % f[symbol]
    while x:
        out.append(x % 2**32)
        x //= 2**32
    return out


def logarithm(number: int, digits: int = 16) -> int:
    logarithm, rest = number.bit_length() - 1, number << (32 - number.bit_length())
    for _ in range(digits):
        rest = rest * rest // 2**31
        logarithm = 2 * logarithm + (rest >= 2**32)
        rest = rest // 2 if rest >= 2**32 else rest
    return logarithm


def estimate(counts: list[int]) -> int:
    total = sum(counts)
    return sum(count * (logarithm(total) - logarithm(count)) for count in counts if count) // 2**16


def with_table(symbols: list[int], base: int, head: str, other: int) -> bytes | None:
    """The body where its table and the entropy are fewer than so many bits."""
    counts = [0] * base
    for symbol in symbols:
        counts[symbol] += 1
    if len(table(counts)) + estimate(counts) >= other:
        return None
    octets = b"".join(word.to_bytes(4, "little") for word in words(symbols, counts))
    return to_bytes(head + table(counts), "0") + octets.rstrip(b"\0")


def entropy_body(symbols: list[int], base: int, other: int) -> bytes | None:
    """Of digits: where it is tried against another of so many bits, and shorter."""
    body = with_table(symbols, base, "", other)
    return body if body is not None and len(body) < -(-other // 8) else None


def levels_table(symbols: list[int], base: int, other: int) -> bytes | None:
    """Of levels."""
    return with_table(symbols, base, "1" * 8, other)


def grouped(digits: list[int], base: int) -> str:
    bits, g = "", max(g for g in range(1, 63) if base**g <= 2**62)
    for start in range(0, len(digits), g):
        part = digits[start : start + g]
        number = sum(digit * base ** (len(part) - 1 - i) for i, digit in enumerate(part))
        bits += field(number, next(w for w in range(100) if 2**w >= base ** len(part)))
    return bits
