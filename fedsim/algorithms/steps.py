"""Step sizes: a number, a multiple of 1/L where L can be computed, or a multiple of what a theorem admits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

from fedsim.errors import ConfigError

_THEORY = re.compile(r"(?:(?P<times>\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?theory")
_MULTIPLE = re.compile(r"(?P<top>\d+(?:\.\d*)?|\.\d+)\s*/\s*(?:L|\(\s*(?P<bottom>\d+(?:\.\d*)?|\.\d+)\s*\*?\s*L\s*\))")


def step_size(key: str, value: float | str, smoothness: Callable[[], float], theory: Callable[[], float]) -> float:
    """The number behind ``value``: 0.1, "4/L", "1/(2L)", "theory" or "8*theory". Raises ConfigError naming ``key``.

    smoothness: L; theory: the largest step that a theorem admits; each is called only where it is needed.

    >>> step_size("server.step", "4/L", lambda: 8.0, lambda: 0.0)
    0.5
    >>> step_size("server.step", "1/(2L)", lambda: 8.0, lambda: 0.0)
    0.0625
    >>> step_size("server.step", "8*theory", lambda: 0.0, lambda: 0.01)
    0.08
    """
    if isinstance(value, str):
        value = _resolved(key, value.strip(), smoothness, theory)
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{key} = {value!r}: expected a step size > 0")
    return float(value)


def _resolved(key: str, text: str, smoothness: Callable[[], float], theory: Callable[[], float]) -> float:
    ruled, multiple = _THEORY.fullmatch(text), _MULTIPLE.fullmatch(text)
    if ruled is None and (multiple is None or not float(multiple["bottom"] or 1)):
        raise ConfigError(
            f"{key} = {text!r}: expected a number such as 0.1, a multiple of 1/L such as '4/L' or '1/(2L)', "
            "or a multiple of the largest step with a theorem such as 'theory' or '8*theory'"
        )
    try:
        if ruled is not None:
            return float(ruled["times"] or 1) * theory()
        constant = smoothness()
    except ConfigError as error:
        raise ConfigError(f"{key} = {text!r}: {error}") from None
    if not constant:
        raise ConfigError(f"{key} = {text!r}: L is 0, because every feature is 0; give a number, for example 0.1")
    assert multiple is not None
    return float(multiple["top"]) / (float(multiple["bottom"] or 1) * constant)


def scheduled(step: float, schedule: Literal["constant", "inverse-sqrt"], round: int) -> float:
    """The step size of round k = ``round`` (counted from 0): gamma, or gamma / sqrt(k + 1)."""
    return step if schedule == "constant" else step / math.sqrt(round + 1)
