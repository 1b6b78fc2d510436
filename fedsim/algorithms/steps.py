"""Step sizes: a number, or a multiple of 1/L for tasks whose smoothness constant L can be computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

from fedsim.errors import ConfigError

_MULTIPLE = re.compile(r"(?P<top>\d+(?:\.\d*)?|\.\d+)\s*/\s*(?:L|\(\s*(?P<bottom>\d+(?:\.\d*)?|\.\d+)\s*\*?\s*L\s*\))")


def step_size(key: str, value: float | str, smoothness: Callable[[], float]) -> float:
    """The number behind ``value``: 0.1, "4/L" or "1/(2L)". Raises ConfigError naming ``key``.

    >>> step_size("server.step", "4/L", lambda: 8.0)
    0.5
    >>> step_size("server.step", "1/(2L)", lambda: 8.0)
    0.0625
    """
    if isinstance(value, str):
        match = _MULTIPLE.fullmatch(value.strip())
        if match is None or not float(match["bottom"] or 1):
            raise ConfigError(
                f"{key} = {value!r}: expected a number such as 0.1, or a multiple of 1/L such as '4/L' or '1/(2L)'"
            )
        try:
            constant = smoothness()
        except ConfigError as error:
            raise ConfigError(f"{key} = {value!r}: {error}") from None
        if not constant:
            raise ConfigError(f"{key} = {value!r}: L is 0, because every feature is 0; give a number, for example 0.1")
        value = float(match["top"]) / (float(match["bottom"] or 1) * constant)
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{key} = {value!r}: expected a step size > 0")
    return float(value)


def scheduled(step: float, schedule: Literal["constant", "inverse-sqrt"], round: int) -> float:
    """The step size of round k = ``round`` (counted from 0): gamma, or gamma / sqrt(k + 1)."""
    return step if schedule == "constant" else step / math.sqrt(round + 1)
