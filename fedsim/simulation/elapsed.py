"""Simulated seconds of a run as it goes: for metrics.jsonl, timing.csv and checkpoints. Nothing without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.errors import CheckpointError
from fedsim.ledger import Lines
from fedsim.simulation.network import Clock


@dataclass
class Elapsed:
    """seconds: since the first round. unwritten: lines of timing.csv, kept where there is a file for them."""

    clock: Clock | None
    has_file: bool
    seconds: float = 0.0
    unwritten: list[str] = field(default_factory=list)

    def played(self, round: int, lines: Sequence[Lines]) -> None:
        """A round, and its frames."""
        if self.clock is None:
            return
        seconds, slowest, late = self.clock.lasted(lines)
        self.seconds += seconds
        if self.has_file:
            self.unwritten.append(f"{round},{seconds!r},{slowest},{late}\n")

    def measures(self) -> Mapping[str, float]:
        """For a line of metrics.jsonl."""
        return {} if self.clock is None else {"seconds": self.seconds}

    def drain(self) -> Mapping[str, str]:
        """For timing.csv, once."""
        lines, self.unwritten = self.unwritten, []
        return {} if self.clock is None else {"timing.csv": "".join(lines)}

    def notes(self) -> Mapping[str, Any]:
        """For a checkpoint."""
        return {} if self.clock is None else {"seconds": self.seconds, "trace": self.clock.trace}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Inverse of ``notes``. Raises CheckpointError when clients have other lines than the run began with."""
        if self.clock is not None:
            self.seconds = float(notes["seconds"])
            if notes["trace"] != self.clock.trace:
                raise CheckpointError("network.file is not what this run began with; put it back")
