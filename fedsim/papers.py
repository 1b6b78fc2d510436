"""Whose work an experiment uses: the entries of ``papers.bib`` that belong to its recipe and to its other choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

CHOICES: dict[str, dict[str, str]] = {
    "compressor": {
        "quantize": "qsgd",
        "natural": "natural",
        "natural-dithering": "natural",
        "perm-k": "perm-k",
        "top-k": "sparsified-sgd",
        "rand-k": "sparsified-sgd",
        "stc": "stc",
        "sign": "sign",
        "eden": "eden",
        "low-rank": "powersgd",
    },
    "order": {
        "reshuffle": "rr",
        "shuffle-once": "rr",
        "incremental": "rr",
        "synchronised": "synchronised-shuffling",
    },
    "rule": {"harmonic": "rr", "salr": "salr"},
    "kind": {"sam": "sam", "whitened": "whitening", "momentum": "fednova"},
    "mode": {"shared": "whitening", "mixing": "whitening"},
    "aggregate": {
        "geometric-median": "geometric-median",
        "median": "trimmed-mean",
        "trimmed-mean": "trimmed-mean",
    },
}
"""Key -> its value -> the paper; in whichever table the key stands."""


def entries() -> dict[str, str]:
    """Every entry of ``papers.bib``, by its key, in the order of the file."""
    text = files("fedsim").joinpath("papers.bib").read_text(encoding="utf-8")
    found = re.findall(r"^(@\w+\{([^,]+),\n(?:.*\n)*?\}$)", text, flags=re.MULTILINE)
    return {key: entry for entry, key in found}


def cited(recipe_papers: Iterable[str], table: Mapping[str, Any]) -> list[str]:
    """Keys of the papers behind an experiment, each once: its recipe's, then those of its choices.

    table: the experiment's, as ``Experiment.table`` has it.
    """
    return list(dict.fromkeys((*recipe_papers, *_chosen(table))))


def _chosen(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _chosen(value)
        elif isinstance(value, str) and value in CHOICES.get(key, {}):
            yield CHOICES[key][value]
