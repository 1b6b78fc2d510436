"""``fedsim recipes``: the methods that an experiment can name."""

from __future__ import annotations


def recipes() -> None:
    """List the methods: what each compresses, what it keeps, and its paper."""
    from rich.console import Console
    from rich.table import Table

    from fedsim.algorithms.recipes import RECIPES
    from fedsim.experiment import Experiment

    table = Table("recipe", "up", "down", "memory", "feedback", "what it is", "paper", box=None, pad_edge=False)
    for name, recipe in RECIPES.items():
        experiment = Experiment.of(algorithm=name)
        up, down = experiment.uplink, experiment.downlink
        table.add_row(
            name,
            type(up.compressor).__name__.lower(),
            type(down.compressor).__name__.lower(),
            "yes" if up.memory else "",
            ", ".join(word for word, channel in (("up", up), ("down", down)) if channel.feedback),
            recipe.summary,
            recipe.source,
        )
    Console().print(table)
    print('\nSet one with `algorithm = "artemis"` in the TOML file or `--set algorithm=artemis`; keys override it.')
