"""What the images hold, read from the files that say so."""

from __future__ import annotations

import re
from pathlib import Path

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def pins() -> dict[str, str]:
    """name -> version of every package, torch included. Raises ValueError for a line that pins nothing."""
    found = {"torch": torch()}
    for number, line in enumerate((DOCKER / "requirements.txt").read_text().splitlines(), 1):
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9]+(?:\.[0-9]+)*)", line)
            if match is None or match[1] in found:
                raise ValueError(f"requirements.txt:{number}: {line!r}, expected name==version, once")
            found[match[1]] = match[2]
    return found


def torch() -> str:
    """Which both Dockerfiles install by itself."""
    (version,) = {
        found
        for name in ("client", "server")
        for found in re.findall(r"^ARG TORCH=(.*)$", (DOCKER / f"{name}.Dockerfile").read_text(), flags=re.MULTILINE)
    }
    return version
