"""What a client's local solver remembers between rounds."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import Tensor

from fedsim.errors import ConfigError

Notes = Mapping[str, Tensor]
"""Named tensors of a rule or a direction; what they mean is its own business."""


class Memory(msgspec.Struct, frozen=True, gc=False):
    """steps: local steps taken so far. rate, direction: notes of the step-size rule and of the direction."""

    steps: int = 0
    rate: Notes = {}
    direction: Notes = {}


def check_notes(key: str, place: str, notes: object) -> None:
    """Raise ConfigError unless the notes of a user's own part can be stored: tensors by name."""
    if not isinstance(notes, Mapping) or not all(
        isinstance(name, str) and isinstance(note, Tensor) for name, note in notes.items()
    ):
        raise ConfigError(f"{key} = {place!r} returned notes {notes!r:.60}; expected a dictionary of named tensors")
