"""A user's own order, step-size rule and direction. An experiment names them by dotted path:

[local]
order = "tests.plugins_example:there_and_back"
epochs = 1

[rate]
rule = "own"
factory = "tests.plugins_example:Warmup"
options = { steps = 10 }

[direction]
kind = "own"
factory = "tests.plugins_example:Clipped"
options = { norm = 0.5 }
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.solvers import Here, Notes, Step


def there_and_back(seed: int, client: int, n: int, epoch: int, clients: int) -> Tensor:
    """The order of the file in even passes, the reverse in odd ones."""
    return torch.arange(n) if epoch % 2 == 0 else torch.arange(n).flip(0)


class Warmup:
    """Steps grow in proportion over a client's first ``steps`` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        return base * min(1.0, (k + 1) / self.steps), notes, 0


class Clipped:
    """The gradient, no longer than ``norm``. It counts in its notes how often it was cut."""

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def begin(self, notes: Notes) -> Notes:
        return notes or {"cut": torch.zeros(1, dtype=torch.int64)}

    def step(self, here: Here, notes: Notes) -> Step:
        gradient, loss = here.task.gradients(here.model, here.batch)
        too_long = float(gradient.norm()) > self.norm
        if too_long:
            gradient = gradient * (self.norm / gradient.norm())
        return Step(gradient, loss, {"cut": notes["cut"] + int(too_long)}, gradients=here.batch.weights.shape[1])
