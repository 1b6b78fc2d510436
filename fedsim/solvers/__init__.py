"""How a client computes its direction: which samples, how many steps."""

from __future__ import annotations

from fedsim.solvers.local import Local, Plan, Solution, solve

__all__ = ["Local", "Plan", "Solution", "solve"]
