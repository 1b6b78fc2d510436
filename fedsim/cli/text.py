"""Numbers and experiments as short text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fedsim.simulation.setup import Setup

PREFIXES = ("", "k", "M", "G", "T")


def size(count: float, unit: str = "B") -> str:
    """Bytes, or bits, with a decimal unit, three digits.

    >>> size(41_234), size(999), size(1.5e9), size(2e13, "bit")
    ('41.2 kB', '999 B', '1.50 GB', '20.0 Tbit')
    """
    power = 0
    while count >= 999.5 and power < len(PREFIXES) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if power == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, three digits.

    >>> duration(0.0123), duration(41.26), duration(600), duration(86400 * 2.5)
    ('0.0123 s', '41.3 s', '10.0 min', '2.50 d')
    """
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:#.3g} {unit}"
    return f"{seconds:.3g} s"


def headline(setup: Setup) -> str:
    """One line that says what is about to run."""
    experiment = setup.experiment
    share = experiment.participation.probability(setup.clients)
    partition = msgspec.to_builtins(experiment.partition)
    details = " ".join(f"{value:g}" for key, value in partition.items() if key == "alpha")
    return (
        f"{setup.federation.name} · {setup.clients} clients ({partition['scheme']}{' ' + details if details else ''}), "
        f"{100 * share:.3g} % take part · {experiment.algorithm} · {setup.task.dim} parameters · "
        f"step {setup.step:.4g}"
    )


def measures(metrics: Mapping[str, Any], brief: bool = False) -> str:
    """Loss (training, or test where the training data is elsewhere) and, where there is one, accuracy of an evaluation.

    >>> measures({"loss": 0.21, "test_accuracy": 0.941}), measures({"loss": 0.21, "test_accuracy": 0.941}, brief=True)
    ('loss 0.2100  accuracy 94.1 %', 'loss 0.2100  94.1 %')
    """
    name = "loss" if "loss" in metrics else "test loss"
    loss = metrics.get(name.replace(" ", "_"))
    if loss is None:
        return "no loss (the data is elsewhere)"
    text = f"{name} {loss:.4f}" if loss < 1e6 else f"{name} {loss:.4g}"
    if "test_accuracy" in metrics:
        text += f"  {'' if brief else 'accuracy '}{100 * metrics['test_accuracy']:.1f} %"
    return text
