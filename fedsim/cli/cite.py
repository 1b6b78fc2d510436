"""``fedsim cite``: the papers behind an experiment."""

from __future__ import annotations

from fedsim.cli.options import Assignments, ExperimentFile


def cite(experiment: ExperimentFile = None, assignments: Assignments = None) -> None:
    """Print BibTeX entries of the papers behind an experiment: of its method, compressors and local solver."""
    from fedsim.algorithms.recipes import RECIPES
    from fedsim.experiment import load
    from fedsim.papers import cited, entries

    parsed, known = load(experiment, assignments or ()), entries()
    print("\n\n".join(known[key] for key in cited(RECIPES[parsed.algorithm].papers, parsed.table())))
