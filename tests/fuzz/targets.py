"""All targets by name."""

from __future__ import annotations

from tests.fuzz import compiled, ends, files, reports, wire

TARGETS = {target.name: target for part in (wire, compiled, ends, files, reports) for target in part.TARGETS}
