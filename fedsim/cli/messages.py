"""``fedsim messages``: what one quantized message costs, by formula, by entropy and for real."""

from __future__ import annotations

DIMENSIONS = (20, 66, 124, 301, 1_000, 10_000, 100_000)
LEVELS = (1, 4, 16)


def messages() -> None:
    """Print, for Gaussian rows, the bits of a message: published formula, zero-order entropy, real encoding."""
    from fedsim.wire.measure import message_costs

    print("| d | s | float32 | formula | entropy | payload | payload / formula | payload / entropy |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for cost in message_costs(DIMENSIONS, LEVELS):
        print(
            f"| {cost.d} | {cost.s} | {32 * cost.d} | {cost.formula:.0f} | {cost.entropy:.0f} | {cost.payload:.0f} "
            f"| {cost.payload / cost.formula:.2f} | {cost.payload / cost.entropy:.3f} |"
        )
