"""fedsim: federated learning with bidirectional compression, where every byte is counted.

>>> import fedsim
>>> experiment = fedsim.Experiment.of(algorithm="artemis", rounds=20, data={"source": "synthetic-linear"})
>>> result = fedsim.run(experiment)
>>> result.loss < result.metrics[0]["loss"]
True
>>> result.ledger.cost().frame_bytes > 0
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.errors import FedsimError
    from fedsim.experiment import Experiment, load
    from fedsim.simulation.comparison import Comparison, compare
    from fedsim.simulation.run import Observer, Result, resume, run

_HOME = {
    "Comparison": "fedsim.simulation.comparison",
    "Experiment": "fedsim.experiment",
    "FedsimError": "fedsim.errors",
    "Observer": "fedsim.simulation.run",
    "Result": "fedsim.simulation.run",
    "compare": "fedsim.simulation.comparison",
    "load": "fedsim.experiment",
    "resume": "fedsim.simulation.run",
    "run": "fedsim.simulation.run",
}

__all__ = ["Comparison", "Experiment", "FedsimError", "Observer", "Result", "compare", "load", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``fedsim --help`` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
