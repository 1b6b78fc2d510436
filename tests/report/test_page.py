"""The page as a file: it holds all it needs, it is small, and nothing that a run says becomes part of its code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment, from_table
from fedsim.reporting import page as pages
from fedsim.reporting.content import EXCESS, Study, Target, content, study
from fedsim.reporting.detail import SIZES
from fedsim.reporting.final import Examiner
from fedsim.reporting.page import LARGEST, page
from fedsim.reporting.runs import find_runs, read_run
from fedsim.reporting.statistics import curve, reached
from tests.conftest import Refused
from tests.studied import LABELS

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028 {{ 7*7 }}"


class Reader(HTMLParser):
    """The elements that a browser would make of the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_page_is_small_and_whole(studied: Study) -> None:
    text = page(studied, "A title")
    assert len(text.encode()) < LARGEST
    read = Reader(text)
    links = [value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,", "#curves"]
    assert "@import" not in text
    policy = next(given["content"] for tag, given in read.tags if tag == "meta" and "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src 'none'" in policy
    assert policy.count("sha256-") == len(pages.SCRIPTS)


def test_what_is_drawn_is_what_the_statistics_say(studied: Study) -> None:
    data = data_of(page(studied, "t"))
    assert [group["label"] for group in data["groups"]] == list(LABELS)
    for group, drawn in zip(studied.groups, data["groups"], strict=True):
        for measure in (EXCESS, "loss", "test_accuracy"):
            for axis in ("rounds", "bytes", "payload_bits", "formula_bits"):
                found, there = curve(group.runs, axis, measure), drawn["curves"][measure][axis]
                np.testing.assert_allclose(there["x"], found.axis, rtol=1e-5)
                np.testing.assert_allclose(there["mean"], found.mean, rtol=1e-5)
                np.testing.assert_allclose(there["half"], found.half, rtol=1e-5)
                assert there["n"] == 2
        goal = reached(group.runs, data["target"]["measure"], data["target"]["value"])
        assert drawn["reached"] == [goal.n, goal.of] == [2, 2]
        assert drawn["reach"]["bytes"][0] == pytest.approx(goal.costs["bytes"].mean, rel=1e-5)


def test_the_excess_is_the_loss_above_its_minimum(studied: Study) -> None:
    """Gradient descent comes to F* from above, and as near as rounding lets it."""
    for run in studied.groups[2].runs:
        np.testing.assert_allclose(run.values(EXCESS), run.values("loss") - Examiner().smallest(run.experiment))
        assert run.values(EXCESS).min() > 0
    table = studied.groups[2].runs[0].experiment.table()
    longer = Experiment.of(
        **table | {"rounds": 400, "participation": {"scheme": "full"}, "run": {"precision": "float64"}}
    )
    assert -1e-15 < fedsim.run(longer).loss - Examiner().smallest(longer) < 1e-9


def test_the_final_model_at_each_client(studied: Study) -> None:
    """Weighted by samples, the clients' losses are the loss of all: the task's penalty is in each of them."""
    data = data_of(page(studied, "t"))
    for drawn, run in zip(data["runs"], (run for group in studied.groups for run in group.runs), strict=True):
        final = drawn["final"]
        assert final["client"] == list(range(6))
        assert np.average(final["loss"], weights=final["size"]) == pytest.approx(run.metrics[-1]["loss"], rel=1e-4)
        assert all(0 <= share <= 1 for share in final["accuracy"])


def test_a_run_can_be_repeated_from_the_page(studied: Study, runs: Path) -> None:
    drawn = data_of(page(studied, "t"))["runs"][0]
    assert from_table(tomllib.loads(drawn["toml"])) == read_run(runs / "a1-0").experiment
    assert drawn["command"] == "fedsim run experiment.toml --folder runs/a1-0-again"
    assert ["model_sha256", read_run(runs / "a1-0").manifest["model_sha256"]] in drawn["manifest"]


def test_theory_is_drawn_where_it_says_something(studied: Study) -> None:
    bare = replace(studied, theory=tuple(said and replace(said, course=()) for said in studied.theory))
    plain, expected = (data_of(page(given, "t"))["groups"] for given in (bare, studied))
    for group, said, one, other in zip(studied.groups, studied.theory, plain, expected, strict=True):
        assert said is not None
        assert said.rate is not None
        first = np.mean([run.values(EXCESS)[0] for run in group.runs])
        floor = said.floor_loss or 0.0
        course = dict(zip(one["theory"]["curve"]["x"], one["theory"]["curve"]["y"], strict=True))
        assert course[0] == pytest.approx(first + floor, rel=1e-4)
        assert course[30] == pytest.approx(first * (1 - said.rate) ** 30 + floor, rel=1e-4)
        assert one["theory"]["covered"] is not bool(one["theory"]["reasons"])
        if said.course:
            assert said.optimum is not None
            above = [loss - said.optimum for _, loss in said.course]
            assert other["theory"]["curve"]["x"] == [k for k, _ in said.course]
            np.testing.assert_allclose(other["theory"]["curve"]["y"], above, rtol=1e-5, atol=1e-12)
        else:
            assert other == one
    assert any(said and said.course for said in studied.theory)


def test_what_runs_say_stays_text(studied: Study, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x<b>&\"'"
    shutil.copytree(runs / "sgd-0", folder)
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts | {"engine": HOSTILE, HOSTILE: HOSTILE}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 30, "loss": 1.0, HOSTILE: 3}) + "\n")
    text = page(study(find_runs([folder]), None), HOSTILE)
    read, plain = Reader(text), Reader(page(studied, "t"))
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert text.lower().count("</script") == 1 + len(pages.SCRIPTS)
    assert "onerror" not in str(read.tags)
    data = data_of(text)
    assert data["title"] == HOSTILE
    assert any(HOSTILE[:20] in key for key, _ in data["runs"][0]["manifest"])
    assert data["runs"][0]["command"].startswith("fedsim run experiment.toml --engine '</script>")


def many(studied: Study, runs: int) -> Study:
    """With so many runs of a thousand rounds and clients in its first group."""
    run, random, n = studied.examined[0][0], np.random.default_rng(0), 20_000
    assert run.traffic is not None
    big = replace(
        run.traffic,
        rounds=1000,
        clients=1000,
        round=np.sort(random.integers(0, 1000, n)),
        client=random.integers(0, 1000, n),
        took_part=np.ones(n, np.bool_),
        bytes=random.random((n, 5)) * 1e6,
    )
    return replace(studied, examined=(tuple(replace(run, traffic=big) for _ in range(runs)), *studied.examined[1:]))


def test_a_hundred_runs_fit(studied: Study) -> None:
    assert len(page(many(studied, 100), "t").encode()) < LARGEST


def test_coarser_where_it_would_be_too_large(studied: Study, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    given = many(studied, 3)
    sizes = [len(pages.render(content(given, "t", None, size)).encode()) for size in SIZES]
    assert sizes == sorted(sizes, reverse=True)
    assert len(page(given, "t").encode()) == sizes[0]
    monkeypatch.setattr(pages, "LARGEST", sizes[0] - 1)
    assert len(page(given, "t").encode()) == sizes[1] < sizes[0]
    monkeypatch.setattr(pages, "LARGEST", sizes[-1] - 1)
    with refused(ConfigError, "do not fit", "give fewer"):
        page(given, "t")


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda run: (run / "ledger.csv").unlink(), "there is no ledger.csv"),
        (lambda run: (run / "ledger.csv").write_text("x\n"), "not a ledger"),
        (lambda run: (run / "model.safetensors").write_bytes(b"no"), "unreadable"),
        (lambda run: (run / "model.safetensors").unlink(), "unreadable"),
    ],
)
def test_what_is_missing_is_said(runs: Path, tmp_path: Path, spoil: Spoil, note: str) -> None:
    shutil.copytree(runs / "sgd-0", tmp_path / "run")
    spoil(tmp_path / "run")
    data = data_of(page(study(find_runs([tmp_path / "run"]), Examiner()), "t"))
    assert any(note in said for said in data["runs"][0]["notes"])


def test_a_run_of_rounds_to_come(runs: Path, tmp_path: Path) -> None:
    """Before its first evaluation there is nothing to draw, and nothing to reach."""
    shutil.copytree(runs / "sgd-0", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(facts | {"status": "running"}))
    for name in ("metrics.jsonl", "ledger.csv"):
        (tmp_path / "run" / name).unlink()
    data = data_of(page(study(find_runs([tmp_path / "run"]), Examiner()), "t"))
    assert (data["axes"], data["measures"], data["target"], data["ended"]) == ([], [], None, False)


def test_code_in_an_experiment_is_not_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``this`` prints when it is imported."""
    run = replace(read_run(runs / "sgd-0"), experiment=Experiment.of(algorithm="sgd", local={"order": "this:s"}))
    data = content(study([run], Examiner()), "t", None, SIZES[0])
    assert len([note for note in data["notes"] if "names code" in note]) == 2
    assert any("names code" in note for note in data["runs"][0]["notes"])
    assert capsys.readouterr().out == ""


def test_a_target_of_ones_own(studied: Study) -> None:
    data = content(studied, "t", Target("test_accuracy", 0.8), SIZES[0])
    assert "test accuracy at least 0.8" in data["hint"]
    missed = content(studied, "t", Target("loss", 1e-9), SIZES[0])
    assert [group["reached"] for group in missed["groups"]] == [[0, 2]] * 3
    assert [group["reach"] for group in missed["groups"]] == [{}] * 3


def test_one_experiment_is_shown_as_one(runs: Path) -> None:
    data = content(study([read_run(runs / "sgd-0")], Examiner()), "t", None, SIZES[0])
    assert data["cards"][-1] == {"value": "1", "text": "run of 1 method, all finished"}
    assert "half" not in data["groups"][0]["curves"]["loss"]["rounds"]
    assert "breast-cancer · dirichlet clients = 6 alpha = 0.5 · bernoulli p = 0.5 · logistic" in data["lead"]


def test_the_clients_are_a_sample_where_they_are_many(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.reporting.final.MOST_CLIENTS", 3)
    run = read_run(runs / "sgd-0")
    assert Examiner().at_clients(run).clients.tolist() == [0, 2, 4]


def test_the_vendored_files_are_those_of_their_table() -> None:
    vendor = files("fedsim.reporting") / "vendor"
    line = r"^\| (\S+\.js) \| .*? \| (\S+) \| ISC, (\S+) \| (\w{64}) \|$"
    table = re.findall(line, (vendor / "README.md").read_text(), re.MULTILINE)
    assert {name for name, *_ in table} == {name.split("/")[1] for name in pages.SCRIPTS if "vendor" in name}
    for name, version, licence, digest in table:
        script = (vendor / name).read_bytes()
        assert hashlib.sha256(script).hexdigest() == digest
        assert version.encode() in script[:200]
        assert "Permission to use, copy, modify" in (vendor / licence).read_text()
