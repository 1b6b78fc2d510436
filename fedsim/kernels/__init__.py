"""Compiled loops over plain arrays: the same bits as the torch forms that call them, without their temporaries.

``epoch`` alone agrees with its torch form only up to rounding, as executors do. The torch forms stay: they define the
result, run on other devices, and run where numba is not installed. This package imports numba only when a kernel is
first used; a kernel is compiled once and kept beside this file (or, where that cannot be written, in the user's cache;
the environment variable NUMBA_CACHE_DIR names another place).
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from torch import Tensor


def available(tensor: Tensor) -> bool:
    """Whether kernels can work on ``tensor``: it is in the CPU's memory (not faked), and numba can be imported."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and installed()


@cache
def installed() -> bool:
    """Whether numba can be imported."""
    try:
        import_module("numba")
    except ImportError:
        return False
    return True
