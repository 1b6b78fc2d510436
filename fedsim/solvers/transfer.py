"""Numbers that the host found, on their way to the device: the one way that does not wait for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(numbers: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array as a tensor of its shape there. On the CPU it shares the memory.

    A GPU is handed pinned memory, from which it copies when its turn comes, while the host goes on.
    """
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, non_blocking=True).to(dtype=dtype or tensor.dtype)  # tests/benchmarks/gpu.py
