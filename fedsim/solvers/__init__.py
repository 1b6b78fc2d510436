"""How a client computes its direction: which samples, how many steps, how long and along what.

``Order``, ``Rule`` and ``Direction`` are what a user's own parts implement, with ``Here``, ``Notes`` and ``Step``.
"""

from __future__ import annotations

from fedsim.solvers.local import Local, Plan, Solution, solve
from fedsim.solvers.memory import Memory, Notes
from fedsim.solvers.order import Order
from fedsim.solvers.rate import Here, Rule
from fedsim.solvers.step import Direction, Step

__all__ = ["Direction", "Here", "Local", "Memory", "Notes", "Order", "Plan", "Rule", "Solution", "Step", "solve"]
