"""An experiment and its TOML form: recipes, layers, assignments, and the way there and back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.algorithms.method import Downlink, Uplink
from fedsim.algorithms.recipes import RECIPES
from fedsim.compression import Identity, Quantize
from fedsim.data import (
    BreastCancer,
    Clusters,
    Digits,
    Dirichlet,
    FashionMNIST,
    Iid,
    LibSVM,
    Natural,
    Own,
    Quantity,
    Shards,
    SyntheticLinear,
    SyntheticLogistic,
)
from fedsim.errors import ConfigError
from fedsim.experiment import (
    CHANNELS,
    TAGS,
    Experiment,
    default_table,
    from_table,
    load,
    overlay,
    parse_assignment,
    read_toml,
)
from fedsim.participation import Bernoulli, Full, KofN
from fedsim.tasks import CNN, MLP, LeastSquares, Logistic, Module, Softmax

Refused = Callable[..., AbstractContextManager[None]]


def there_and_back(experiment: Experiment) -> None:
    assert from_table(experiment.table()) == experiment
    assert from_table(tomllib.loads(experiment.toml())) == experiment
    assert from_table(tomllib.loads(experiment.toml())).identifier() == experiment.identifier()


# ----------------------------------------------------------------------------------------------- the way there and back


def test_keys_that_came_later_name_a_run_only_where_they_are_used() -> None:
    """The default run is named as before there was ``server.aggregate``; every value of a new key is another run."""
    assert Experiment().identifier().hex() == "6118077fa345ddeb"
    changes = [{}, {"aggregate": "median"}, {"aggregate": "trimmed-mean"}, {"trim": 0.1}, {"clip": 1.0}]
    assert len({Experiment.of(server=change).identifier() for change in changes}) == len(changes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_there_and_back(recipe: str) -> None:
    experiment = Experiment.of(algorithm=recipe)
    assert experiment.algorithm == recipe
    there_and_back(experiment)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_presets_what_it_says(recipe: str) -> None:
    table = Experiment.of(algorithm=recipe).table()
    for name, settings in RECIPES[recipe].settings.items():
        for key, value in settings.items():
            assert table[name][key] == value


TABLES: list[tuple[str, Any]] = [
    *(("data", source) for source in (Digits(), BreastCancer(bias=False), FashionMNIST(), LibSVM("a9a"))),
    ("data", Own((1, 8, 8), 2, (3, 4), names=("no", "yes"), scale=(255.0,), paths=("a.csv", ""))),
    *(("data", source) for source in (SyntheticLinear(noise=0.0), SyntheticLogistic(points="independent"))),
    *(("partition", scheme) for scheme in (Iid(3), Dirichlet(4, 0.1), Shards(5), Quantity(6, 2.0), Natural())),
    ("partition", Clusters(clients=7)),
    *(
        ("task", task)
        for task in (LeastSquares(0.1), Logistic(), Softmax(), MLP((3, 4)), MLP(()), CNN(8), Module("a:b"))
    ),
    *(("participation", scheme) for scheme in (Full(), Bernoulli(0.25), KofN(7))),
    *(
        ("uplink", Uplink(compressor, True, 0.5, 3, "gradient", "step"))
        for compressor in (Identity("float64"), Quantize(9))
    ),
    *(("downlink", Downlink(compressor, 0.25)) for compressor in (Identity(), Quantize(2, "linf", 64))),
]


@pytest.mark.parametrize(
    ("name", "options"), TABLES, ids=lambda part: part if isinstance(part, str) else repr(part)[:40]
)
def test_every_table_there_and_back(name: str, options: Any) -> None:
    for recipe in ("artemis", "sgd", "fedpaq"):
        there_and_back(msgspec.structs.replace(Experiment.of(algorithm=recipe), **{name: options}))


numbers = st.floats(1e-6, 1.0)
experiments = st.builds(
    Experiment,
    algorithm=st.sampled_from(list(RECIPES)),
    seed=st.integers(0, 2**63 - 1),
    rounds=st.integers(1, 2**31 - 1),
    data=st.builds(SyntheticLinear, clients=st.integers(1, 100), noise=numbers),
    partition=st.builds(Dirichlet, clients=st.integers(1, 100), alpha=numbers) | st.just(Natural()),
    participation=st.builds(Bernoulli, p=numbers) | st.builds(KofN, k=st.integers(1, 100)) | st.just(Full()),
    uplink=st.builds(
        Uplink,
        compressor=st.builds(Quantize, levels=st.integers(1, 32767)) | st.just(Identity()),
        memory=st.booleans(),
        rate=numbers | st.just("auto"),
        feedback=numbers | st.just("step"),
    ),
    downlink=st.builds(Downlink, compressor=st.just(Identity("float64")) | st.just(Quantize(3, "linf", 7))),
)


@given(experiments)
def test_any_experiment_there_and_back(experiment: Experiment) -> None:
    there_and_back(experiment)


# --------------------------------------------------------------------------------------------------------------- layers


def test_the_last_layer_wins() -> None:
    """defaults <- data source <- recipe <- the user's tables."""
    default = Experiment.of()
    assert (default.algorithm, default.task, default.local.steps) == ("artemis", Softmax(), 1)
    implied = Experiment.of(data={"source": "synthetic-linear"})
    assert (implied.task, implied.partition, implied.participation) == (LeastSquares(), Natural(), Full())
    assert Experiment.of(algorithm="fedavg").local.steps == 10
    over = Experiment.of(
        algorithm="fedavg",
        data={"source": "synthetic-linear"},
        local={"steps": 3},
        participation={"scheme": "k-of-n", "k": 2},
        partition={"scheme": "iid", "clients": 4},
    )
    assert (over.local.steps, over.local.send, over.participation, over.partition) == (3, "difference", KofN(2), Iid(4))
    assert over.task == LeastSquares()


def test_a_number_may_begin_with_its_point() -> None:
    assert parse_assignment("a.b=.5") == {"a": {"b": 0.5}}
    assert parse_assignment("a=-.25") == {"a": -0.25}
    assert parse_assignment("a=.5*theory") == {"a": ".5*theory"}


def test_a_length_in_steps_replaces_one_in_epochs_and_the_other_way_round() -> None:
    epochs = Experiment.of(algorithm="fedavg", local={"epochs": 2, "order": "reshuffle"}).local
    assert (epochs.steps, epochs.epochs) == (1, 2)
    steps = Experiment.of(algorithm="fed-rr", local={"steps": 7}).local
    assert (steps.steps, steps.epochs) == (7, 0)


def test_another_kind_drops_the_keys_of_the_old_one_but_not_the_channels() -> None:
    below = {"uplink": {"compressor": "quantize", "levels": 4, "memory": True}, "seed": 1}
    above = {"uplink": {"compressor": "identity", "values": "float64"}}
    assert overlay(below, above) == {
        "uplink": {"compressor": "identity", "values": "float64", "memory": True},
        "seed": 1,
    }
    assert below["uplink"] == {"compressor": "quantize", "levels": 4, "memory": True}
    partition = {"partition": {"scheme": "dirichlet", "clients": 9, "alpha": 1.0}}
    assert overlay(partition, {"partition": {"scheme": "iid"}}) == {"partition": {"scheme": "iid"}}
    assert overlay(partition, {"partition": {"alpha": 2.0}})["partition"] == {
        "scheme": "dirichlet",
        "clients": 9,
        "alpha": 2.0,
    }
    assert overlay(partition, {"partition": {"scheme": "dirichlet"}}) == partition
    assert overlay({"run": {"chunk": 3}}, {"run": {"threads": 2}}) == {"run": {"chunk": 3, "threads": 2}}
    assert overlay({"run": {"chunk": 3}}, {"run": 5}) == {"run": 5}


def test_every_tag_names_a_kind() -> None:
    table = Experiment().table()
    assert all(TAGS[name] in table[name] for name in TAGS)
    assert set(CHANNELS) == {"uplink", "downlink"}


@pytest.mark.parametrize("name", [3, "", "artmis", None, ["artemis"]])
def test_unknown_recipes(name: Any, refused: Refused) -> None:
    with refused(ConfigError, f"algorithm = {name!r}", "no such recipe", "see `fedsim recipes`"):
        from_table({"algorithm": name})
    with refused(ConfigError, "did you mean 'artemis'?"):
        from_table({"algorithm": "artmis"})


# ---------------------------------------------------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=4", {"seed": 4}),
        ("uplink.levels=4", {"uplink": {"levels": 4}}),
        ("server.step=0.5", {"server": {"step": 0.5}}),
        ("server.step=4/L", {"server": {"step": "4/L"}}),
        ("server.step='4/L'", {"server": {"step": "4/L"}}),
        ('run.device="cpu"', {"run": {"device": "cpu"}}),
        (" run.device = cpu ", {"run": {"device": "cpu"}}),
        ("run.baseline=true", {"run": {"baseline": True}}),
        ("run.baseline=True", {"run": {"baseline": "True"}}),
        ("task.hidden=[3, 4]", {"task": {"hidden": [3, 4]}}),
        ("data.path=a=b", {"data": {"path": "a=b"}}),
        ("data.path=", {"data": {"path": ""}}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        ("local={steps = 2}", {"local": {"steps": 2}}),
    ],
)
def test_assignments(text: str, expected: dict[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["", "seed", "=4", ".=4", "uplink.=4", ".levels=4", "a..b=1"])
def test_what_is_no_assignment(text: str, refused: Refused) -> None:
    with refused(ConfigError, f"--set {text}", "expected table.key=value", "--set uplink.levels=4"):
        parse_assignment(text)


def test_assignments_are_laid_over_the_file_in_order(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('algorithm = "diana"\nrounds = 7\n[uplink]\nlevels = 3\n')
    assert load(file).uplink == Uplink(Quantize(3), memory=True)
    found = load(file, ["uplink.levels=5", "rounds=9", "uplink.levels=6", "downlink.compressor=quantize"])
    assert (found.rounds, found.uplink.compressor, found.downlink.compressor) == (9, Quantize(6), Quantize())


# ---------------------------------------------------------------------------------------------------------------- files


def test_the_default_experiment_compares_with_the_uncompressed_run() -> None:
    assert default_table() == {"run": {"baseline": True}}
    assert load(None).run.baseline
    assert not Experiment.of().run.baseline


def test_files_that_cannot_be_read(tmp_path: Path, refused: Refused) -> None:
    missing = tmp_path / "missing.toml"
    with refused(ConfigError, str(missing), "No such file", "TOML file"):
        read_toml(missing)
    with refused(ConfigError, str(tmp_path), "cannot read"):
        read_toml(tmp_path)
    for content in (b"seed = = 3", b"\xff\xfe", b"seed = 1\nseed = 2", b"[uplink\n"):
        broken = tmp_path / "broken.toml"
        broken.write_bytes(content)
        with refused(ConfigError, str(broken), "not valid TOML"):
            load(broken)


# ----------------------------------------------------------------------------------------------------------- identifier


def test_the_identifier_leaves_out_what_does_not_change_the_rounds() -> None:
    base = Experiment.of()
    assert len(base.identifier()) == 8
    for same in ({"baseline": True}, {"evaluate_every": 3}, {"checkpoint_every": 7}):
        assert Experiment.of(run=same).identifier() == base.identifier()
    others = [
        Experiment.of(seed=1),
        Experiment.of(rounds=3),
        Experiment.of(run={"chunk": 2}),
        Experiment.of(run={"threads": 2}),
        Experiment.of(run={"precision": "float64"}),
        Experiment.of(uplink={"levels": 2}),
        Experiment.of(algorithm="diana"),
        Experiment.of(local={"batch": 1}),
    ]
    assert len({one.identifier() for one in (base, *others)}) == 1 + len(others)


def test_the_package_names_what_it_offers() -> None:
    assert set(fedsim.__all__) == set(fedsim._HOME)
    for name in fedsim.__all__:
        assert getattr(fedsim, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedsim.nothing  # noqa: B018
