"""Run folders read back, put into groups, and their statistics over seeds against numbers found by hand."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.errors import CheckpointError, ConfigError
from fedsim.experiment import Experiment
from fedsim.reporting.runs import AXES, Group, Run, find_runs, groups, read_run
from fedsim.reporting.statistics import Interval, curve, final, interval, reach, reached
from fedsim.simulation.run import run
from tests.conftest import Refused

TINY: dict[str, Any] = {
    "data": {"source": "synthetic-linear", "clients": 4, "per_client": 10},
    "rounds": 3,
    "run": {"evaluate_every": 1},
}


def tiny(**changes: Any) -> Experiment:
    return Experiment.of(**{**TINY, **changes})


def made(losses: list[float], experiment: Experiment | None = None, engine: str = "simulator", **more: Any) -> Run:
    """A run of so many evaluations, one a round, that each cost 10 bytes up and 30 down."""
    lines = [
        {"round": i, "loss": loss, "up_bytes": 10 * i, "down_bytes": 30 * i, "payload_bits": 8 * i, "gradients": i}
        | {name: values[i] for name, values in more.items()}
        for i, loss in enumerate(losses)
    ]
    return Run(Path("made"), experiment or tiny(), {"status": "finished", "engine": engine}, lines)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one experiment, one of another, each in a folder of its own."""
    place = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        run(tiny(seed=seed), place / "artemis" / f"{seed}")
    run(tiny(algorithm="sgd"), place / "sgd")
    run(tiny(algorithm="sgd", rounds=2), place / "sgd" / "uncompressed")
    return place


def test_a_run_is_what_its_folder_says(sweep: Path) -> None:
    found = read_run(sweep / "sgd")
    told = [json.loads(line) for line in (sweep / "sgd" / "metrics.jsonl").read_text().splitlines()]
    assert found.metrics == told
    assert found.experiment == tiny(algorithm="sgd")
    assert (found.status, found.finished, found.manifest["seed"]) == ("finished", True, 0)
    assert found.axis("rounds").tolist() == [0, 1, 2, 3]
    assert found.axis("bytes").tolist() == [line["up_bytes"] + line["down_bytes"] for line in told]
    assert found.axis("bytes")[-1] > found.axis("payload_bits")[-1] / 8 > 0
    for name in ("formula_bits", "payload_bits", "up_bytes", "down_bytes", "gradients"):
        assert found.axis(name).tolist() == [line[name] for line in told]
    assert found.values("loss").tolist() == [line["loss"] for line in told]
    assert np.isnan(found.axis("seconds")).all()
    assert np.isnan(found.values("test_accuracy")).all()
    assert found.axis("seconds").dtype == found.values("loss").dtype == np.float64


def test_an_axis_that_is_none(sweep: Path, refused: Refused) -> None:
    with refused(ConfigError, "axis 'byte': unknown (did you mean 'bytes'?)", "seconds"):
        read_run(sweep / "sgd").axis("byte")


def test_folders_are_searched(sweep: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies within a run counts only where it is named; a run that is named twice counts once."""
    monkeypatch.chdir(sweep)
    names = [run.path.as_posix() for run in find_runs([Path("sgd"), Path(), sweep / "artemis"])]
    assert names == ["sgd", "artemis/0", "artemis/1"]
    assert [run.experiment.rounds for run in find_runs([Path("sgd/uncompressed")])] == [2]
    with refused(CheckpointError, "nowhere is not a run folder", "nor is there one below", "fedsim run"):
        find_runs([Path("sgd"), Path("nowhere")])


def test_a_run_that_goes_on(sweep: Path, tmp_path: Path, refused: Refused) -> None:
    """A line that is being written does not count; a damaged one is named."""
    folder = tmp_path / "run"
    shutil.copytree(sweep / "sgd", folder)
    logged = folder / "metrics.jsonl"
    whole = logged.read_text()
    logged.write_text(whole[:-5])
    assert len(read_run(folder).metrics) == 3
    logged.write_text("")
    assert read_run(folder).metrics == []
    logged.unlink()
    assert read_run(folder).axis("bytes").tolist() == []
    logged.write_text("[1]\n")
    with refused(CheckpointError, "metrics.jsonl:1: damaged line"):
        read_run(folder)
    logged.write_text('{"round": 2, "loss": "small"}\n')
    with refused(CheckpointError, "metrics.jsonl: loss = 'small' in round 2 is no number"):
        read_run(folder).values("loss")
    logged.unlink()
    logged.symlink_to(sweep / "sgd" / "metrics.jsonl")
    with refused(CheckpointError, "metrics.jsonl: unreadable (not a plain file"):
        read_run(folder)


def test_groups_are_experiments_but_for_the_seed(sweep: Path) -> None:
    found = groups(find_runs([sweep]))
    assert [(group.label, len(group.runs)) for group in found] == [("artemis", 2), ("sgd", 1)]
    assert [run.experiment.seed for run in found[0].runs] == [0, 1]
    assert found[0].finished == found[0].runs


def labels(*experiments: Experiment) -> list[str]:
    return [group.label for group in groups(made([1.0], one) for one in experiments)]


def test_labels_name_what_differs() -> None:
    assert labels(tiny(seed=3), tiny()) == ["artemis"]
    assert labels(tiny(algorithm="sgd"), tiny(), tiny(uplink={"levels": 4})) == [
        *("sgd", "artemis · levels 1", "artemis · levels 4")
    ]
    both = {"uplink": {"levels": 4}, "downlink": {"levels": 8}}
    assert labels(tiny(server={"step": "1/L"}), tiny(**both, server={"step": 0.25})) == [
        "artemis · uplink.levels 1 · downlink.levels 1 · step 1/L",
        "artemis · uplink.levels 4 · downlink.levels 8 · step 0.25",
    ]
    top = {"compressor": "top-k", "fraction": 0.1, "feedback": 1.0, "memory": False}
    kinds = [tiny(uplink=up, server={"step": 0.1}) for up in ({"memory": False}, top)]
    assert labels(*kinds) == [
        "artemis · compressor quantize · feedback 0",
        "artemis · compressor top-k · feedback 1",
    ]
    more = labels(*kinds, tiny(uplink={"memory": False, "levels": 2}, server={"step": 0.1}))
    assert len(set(more)) == 3
    assert all("levels" in label for label in (more[0], more[2]))


def test_an_engine_makes_a_group_of_its_own() -> None:
    found = groups([made([1.0]), made([1.0], engine="flower")])
    assert [group.label for group in found] == ["artemis · engine simulator", "artemis · engine flower"]


def test_what_only_says_how_to_run_makes_no_group() -> None:
    other = tiny(run={"evaluate_every": 2, "rows": "disk", "checkpoint_every": 7}, deploy={"deadline_s": 9.0}, seed=1)
    assert [len(group.runs) for group in groups([made([1.0]), made([1.0], other)])] == [2]


def test_one_run_of_a_seed_counts() -> None:
    """A finished one before one that is not; the first of two that are alike."""
    short, long, again = (made(losses) for losses in ([3.0, 2.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]))
    stopped = replace(long, manifest={"status": "running"})
    assert groups([stopped, short])[0].runs == (short,)
    assert groups([stopped, short])[0].finished == (short,)
    assert groups([stopped])[0].finished == ()
    (group,) = groups([long, again])
    assert group.runs[0] is long
    assert isinstance(group, Group)


def test_student_by_hand() -> None:
    """t(0.975, 4) = 2.776445 and t(0.975, 1) = 12.706205, as tables have them; s^2 of 2 4 4 5 10 is 36 / 4."""
    found = interval([2, 4, 4, 5, 10])
    assert (found.mean, found.n) == (5.0, 5)
    assert found.half == pytest.approx(2.776445 * 3 / math.sqrt(5), rel=1e-6)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)
    assert interval([1.0, 3.0]).half == pytest.approx(12.706205 * math.sqrt(2) / math.sqrt(2), rel=1e-6)
    alone, none = interval([7.0]), interval([])
    assert (alone.mean, alone.n, math.isnan(alone.half)) == (7.0, 1, True)
    assert (none.n, math.isnan(none.mean), math.isnan(none.half)) == (0, True, True)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """20 000 samples of 5 normal values: the mean lies within in 95 %; 0.9 % away is six standard errors."""
    rows = np.random.default_rng(0).normal(3.0, 2.0, (20_000, 5))
    covered = np.mean([abs(found.mean - 3.0) <= found.half for found in map(interval, rows)])
    assert abs(covered - 0.95) < 0.0093


def test_final_values() -> None:
    runs = [made([4.0, 1.0]), made([4.0, 3.0]), made([])]
    found = final(runs, "loss")
    assert (found.mean, found.n) == (2.0, 2)
    assert final(runs, "test_accuracy").n == 0


def test_curves_meet_on_one_axis() -> None:
    """Means of linear interpolations, on the places of the densest run, where both have been."""
    fine, coarse = made([8.0, 4.0, 2.0, 1.0]), made([6.0, 2.0])
    coarse = replace(coarse, metrics=[coarse.metrics[0], {**coarse.metrics[1], "round": 2}])
    found = curve([fine, coarse], "rounds", "loss")
    assert found.axis.tolist() == [0, 1, 2]
    assert found.mean.tolist() == [7.0, 4.0, 2.0]
    t = 12.706205
    assert found.half == pytest.approx([t * 1.0, t * 0.0, t * 0.0], rel=1e-6, abs=1e-12)
    assert found.n == 2


def test_curves_on_bytes_begin_and_end_where_all_have_been() -> None:
    one = made([4.0, 2.0, 0.0])
    lines = [{"round": i, "loss": 4.0 - i, "up_bytes": 0, "down_bytes": 30 + 20 * i} for i in range(3)]
    other = replace(one, metrics=lines)
    found = curve([one, other], "bytes", "loss")
    assert found.axis.tolist() == [30, 40, 70]  # one: 0 40 80, other: 30 50 70
    assert found.mean.tolist() == [(2.5 + 4.0) / 2, (2.0 + 3.5) / 2, (0.5 + 2.0) / 2]
    apart = replace(one, metrics=[{**line, "down_bytes": 1000 + i} for i, line in enumerate(lines)])
    assert curve([one, apart], "bytes", "loss").axis.tolist() == []


def test_a_single_seed_has_no_interval() -> None:
    found = curve([made([2.0, 1.0])], "rounds", "loss")
    assert found.mean.tolist() == [2.0, 1.0]
    assert np.isnan(found.half).all()
    nothing = curve([made([2.0, 1.0])], "rounds", "test_accuracy")
    assert (nothing.n, nothing.axis.tolist()) == (0, [])


def test_reaching_a_loss_and_an_accuracy() -> None:
    """The first evaluation that is there, though a later one may have left again."""
    one = made([4.0, 2.0, 3.0, 1.0], test_accuracy=[0.1, 0.5, 0.9, 0.7])
    at = reach(one, "loss", 2.0)
    assert at is not None
    assert set(at) == set(AXES)
    assert (at["rounds"], at["bytes"], at["up_bytes"], at["payload_bits"]) == (1, 40, 10, 8)
    assert math.isnan(at["seconds"])
    assert reach(one, "loss", 0.5) is None
    assert [found and found["rounds"] for found in (reach(one, "test_accuracy", at) for at in (0.5, 0.8, 0.95))] == [
        *(1, 2, None)
    ]
    assert reach(made([]), "loss", 9.0) is None
    assert reach(one, "no such measure", 0.0) is None


def test_reaching_over_seeds() -> None:
    seconds = {"seconds": [0.0, 0.5, 1.0]}
    runs = [made([4.0, 2.0, 1.0], **seconds), made([4.0, 3.0, 2.0], **seconds), made([4.0, 3.5, 3.0], **seconds)]
    found = reached(runs, "loss", 2.0)
    assert (found.n, found.of) == (2, 3)
    assert found.costs["rounds"] == Interval(1.5, pytest.approx(12.706205 * 0.5, rel=1e-6), 2)
    assert found.costs["bytes"].mean == 60.0
    assert found.costs["seconds"].mean == 0.75
    never = reached(runs, "loss", 0.0)
    assert (never.n, never.of, never.costs["bytes"].n) == (0, 3, 0)
    assert reached([made([1.0])], "loss", 2.0).costs["seconds"].n == 0
