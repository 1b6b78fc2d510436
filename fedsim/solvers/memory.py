"""What a client's local solver remembers between rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Notes = Mapping[str, Tensor]
"""Named tensors of a rule or a direction; what they mean is its own business."""


@dataclass(frozen=True, slots=True)
class Memory:
    """steps: local steps taken so far. rate, direction: notes of the step-size rule and of the direction."""

    steps: int = 0
    rate: Notes = field(default_factory=dict)
    direction: Notes = field(default_factory=dict)
