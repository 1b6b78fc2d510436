"""A checkpoint a round, of tensors that grow, leaves nothing in the process that writes it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from fedsim.checkpoint import Checkpoint, read, write


def test_lengths_leave_no_types(tmp_path: Path) -> None:
    """ctypes keeps each type of array it ever made: some 6 kB for every length."""
    before = len(ctypes.Array.__subclasses__())
    for k in range(1, 30):
        write(tmp_path, Checkpoint(k, {"grows": torch.arange(k), "number": torch.tensor(1.5)}, {}), k)
    assert len(ctypes.Array.__subclasses__()) == before
    found = read(tmp_path)
    assert found is not None
    assert found[0].tensors["grows"].tolist() == list(range(29))
    assert float(found[0].tensors["number"]) == 1.5
