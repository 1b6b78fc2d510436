"""Sweeps that come with fedsim, by name."""

from __future__ import annotations

from importlib.resources import files

NAMES = ("paper",)


def text(name: str) -> str:
    """The TOML text of one of ``NAMES``."""
    return (files("fedsim.sweep") / f"{name}.toml").read_text()
