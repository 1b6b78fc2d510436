"""Networks: functions of (input shape, classes) that return a torch module, and the check that one can be a row."""

from __future__ import annotations

from fedsim.models.check import check_module
from fedsim.models.cnn import cnn
from fedsim.models.mlp import mlp

__all__ = ["check_module", "cnn", "mlp"]
