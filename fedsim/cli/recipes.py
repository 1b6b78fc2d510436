"""``fedsim recipes``: the methods that an experiment can name."""

from __future__ import annotations


def recipes() -> None:
    """List the methods: what each compresses, what it keeps, and its paper."""
    from fedsim.algorithms.recipes import RECIPES
    from fedsim.experiment import Experiment

    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        experiment = Experiment.of(algorithm=name)
        up, down = experiment.uplink, experiment.downlink
        parts = [f"{way} {of.compressor.__struct_config__.tag}" for way, of in (("up", up), ("down", down))]
        parts += ["memories"] if up.memory else []
        parts += [f"feedback {way}" for way, channel in (("up", up), ("down", down)) if channel.feedback]
        print(f"{name:{width}}  {recipe.summary}")
        print(f"{'':{width}}  {', '.join(parts)}")
        if recipe.source:
            print(f"{'':{width}}  {recipe.source}")
    print('\nSet one with `algorithm = "artemis"` in the TOML file or `--set algorithm=artemis`; keys override it.')
