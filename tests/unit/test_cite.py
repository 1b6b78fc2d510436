"""Every recipe and every choice that comes from a paper names one, and each is in papers.bib."""

import re

import pytest

from fedsim.algorithms.recipes import RECIPES
from fedsim.cli.cite import cite
from fedsim.cli.keys import described
from fedsim.experiment import Experiment
from fedsim.papers import CHOICES, cited, entries


def test_every_paper_is_there_and_used() -> None:
    named = {key for recipe in RECIPES.values() for key in recipe.papers}
    named |= {key for values in CHOICES.values() for key in values.values()}
    assert named == set(entries())


def test_entries_are_whole() -> None:
    for key, entry in entries().items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, flags=re.MULTILINE))
        assert {"title", "author", "year"} <= set(fields), key
        assert fields.keys() & {"journal", "booktitle"}, key
        assert re.search(r"arXiv:\d{4}\.\d{5}", entry), key
        assert entry.count("{") == entry.count("}")


def test_a_recipes_papers_are_those_of_its_source() -> None:
    for name, recipe in RECIPES.items():
        arxiv = set(re.findall(r"\d{4}\.\d{5}", recipe.source))
        assert arxiv <= set(re.findall(r"\d{4}\.\d{5}", "".join(entries()[key] for key in recipe.papers))), name
        assert bool(recipe.papers) == bool(recipe.source), name


def test_choices_are_values_that_exist() -> None:
    for key, values in CHOICES.items():
        accepted = " ".join(line.accepts + line.meaning for line in described() if line.name.endswith(f".{key}"))
        for value in values:
            assert re.search(rf"(?<![\w-]){value}(?![\w-])", accepted), (key, value)


def test_what_an_experiment_uses(capsys: pytest.CaptureFixture[str]) -> None:
    cite(None, ["algorithm=artemis-rr", "rate.rule=salr", "downlink.compressor=eden"])
    printed = re.findall(r"^@\w+\{([^,]+),", capsys.readouterr().out, flags=re.MULTILINE)
    assert printed == ["artemis", "nastya", "rr", "salr", "qsgd", "eden"]
    assert cited((), Experiment.of(algorithm="sgd").table()) == []
