"""Whatever advances an experiment round by round: the simulation here, a deployed server in ``fedsim.ends.serve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fedsim.algorithms.artemis import Server
from fedsim.ledger import Lines
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import from_tensors, initial_state, to_tensors


class Player(Protocol):
    """Plays rounds; its state goes into checkpoints, and it starts at round 0 or where ``restore`` puts it."""

    setup: Setup

    @property
    def server(self) -> Server:
        """The central state."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Rounds between checkpoints."""
        ...

    def play(self) -> Sequence[Lines]:
        """One round; what its frames cost."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds."""
        ...

    def restore(self, round: int, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``. Raises KeyError, TypeError or ValueError when they do not fit the experiment."""
        ...

    def measures(self) -> Mapping[str, float]:
        """What it counts besides bytes, for metrics.jsonl."""
        ...

    def drain(self) -> Mapping[str, str]:
        """What further logs of the run folder have to say since the last call, by file name."""
        ...


class Simulation:
    """All clients in this process."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.state = setup, initial_state(setup)

    @property
    def server(self) -> Server:
        """The central state."""
        return self.state.server

    @property
    def checkpoint_every(self) -> int:
        """Rounds between checkpoints."""
        return self.setup.experiment.run.checkpoint_every

    def play(self) -> Sequence[Lines]:
        """One round; what its frames cost."""
        return play(self.setup, self.state).lines

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds."""
        return to_tensors(self.state)

    def restore(self, round: int, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""
        self.state = from_tensors(self.setup, round, tensors)

    def measures(self) -> Mapping[str, float]:
        """Sample gradients that all clients have taken, and how far apart the last round's directions were."""
        return {"gradients": self.state.gradients, **self.state.spread}

    def drain(self) -> Mapping[str, str]:
        """Nothing more."""
        return {}
