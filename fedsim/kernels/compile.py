"""The one way in which kernels are compiled. Importing this module imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Machine code on the first call, kept on disk; the GIL is released while it runs.

    No fast-math: every operation is the IEEE one that torch does, and the results have the same bits. A division by
    zero gives what IEEE says, because a check would keep loops from using vector instructions. Bounds are not checked.

    numba compiles a kernel anew when its own file has changed, not when that of a kernel which it calls has: while
    working on kernels, delete ``__pycache__`` here.
    """
    compiler: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
    machine_code: Function = compiler(function)
    return machine_code


def reassociated(function: Function) -> Function:
    """``compiled``, but sums may be reordered so that they use vector instructions: for what rounding may change.

    The order is fixed in the machine code, so it depends on the processor and the length of a sum and on nothing else.
    """
    compiler: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
    machine_code: Function = compiler(function)
    return machine_code
