"""All targets by name."""

from __future__ import annotations

from tests.fuzz import compiled, ends, files, wire

TARGETS = {target.name: target for part in (wire, compiled, ends, files) for target in part.TARGETS}
