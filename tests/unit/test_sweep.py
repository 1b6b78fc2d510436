"""Sweeps: which runs a file makes, that they are run side by side, interrupted, resumed, and never repeated."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.simulation import run as simulation
from fedsim.sweep import child, grid, presets
from fedsim.sweep.grid import Point, points, read_sweep
from fedsim.sweep.pool import Told, Work
from fedsim.sweep.work import found, others, work
from tests.conftest import Command, Refused
from tests.replication import experiments

SMALL = """
[base]
data = {source = "synthetic-linear", clients = 4, per_client = 10}
rounds = 20
run.evaluate_every = 5
"""
HERE = Path("here.toml")


def made(text: str, *assignments: str) -> list[Point]:
    return points(grid.parse_toml(text.encode(), ""), assignments, HERE)


def titles(text: str, *assignments: str) -> list[str]:
    return [point.title for point in made(text, *assignments)]


def test_a_grid_is_every_combination_seed_by_seed() -> None:
    text = 'seeds = [3, 1]\n[grid]\nalgorithm = ["artemis", "diana"]\n"uplink.levels" = [1, 4]'
    assert titles(text) == [
        f"{recipe} · levels {levels} · seed {seed}"
        for seed in (3, 1)
        for recipe in ("artemis", "diana")
        for levels in (1, 4)
    ]
    assert [point.experiment.uplink.compressor.levels for point in made(text)] == [1, 4] * 4  # type: ignore[union-attr]


def test_a_key_may_stand_without_quotes_and_a_value_be_a_table() -> None:
    quoted = made(
        '[grid]\n"uplink.levels" = [1, 4]\nparticipation = [{scheme = "full"}, {scheme = "bernoulli", p = 0.5}]'
    )
    bare = made('[grid]\nuplink.levels = [1, 4]\nparticipation = [{scheme = "full"}, {scheme = "bernoulli", p = 0.5}]')
    assert quoted == bare
    assert [point.label for point in quoted] == [
        f"artemis · scheme {scheme} · levels {levels}" for levels in (1, 4) for scheme in ("full", "bernoulli")
    ]


def test_variants_go_with_all_of_the_grid() -> None:
    text = """
    seeds = 2
    [grid]
    "server.step" = ["1/L", 0.5]
    [[variants]]
    algorithm = "sgd"
    [[variants]]
    algorithm = "diana"
    "uplink.levels" = 4
    uplink.norm = "linf"
    """
    found = [point for point in made(text) if point.experiment.seed == 1]
    assert [point.title for point in found] == [
        f"{recipe} · step {step} · seed 1" for recipe in ("sgd", "diana") for step in ("1/L", "0.5")
    ]
    assert found[2].experiment == Experiment.of(
        algorithm="diana", seed=1, uplink={"levels": 4, "norm": "linf"}, server={"step": "1/L"}
    )


def test_bases(tmp_path: Path) -> None:
    """A file beside the sweep's, or tables, or nothing; ``--set`` goes on top of it, the grid on top of that."""
    (tmp_path / "x.toml").write_text('seed = 7\nrounds = 9\nrun.baseline = true\nalgorithm = "qsgd"')
    (tmp_path / "s.toml").write_text('base = "x.toml"\n[grid]\nuplink.levels = [1, 4]')
    found = [point.experiment for point in read_sweep(tmp_path / "s.toml", ["uplink.levels=2", "rounds=8"])]
    assert found == [
        Experiment.of(algorithm="qsgd", seed=7, rounds=8, uplink={"levels": levels}) for levels in (1, 4)
    ]  # of one seed, its base's; without an uncompressed run of its own
    assert [point.experiment for point in made("")] == [Experiment.of()]
    assert [point.experiment for point in made("seeds = 1", "seed=5")] == [Experiment.of()]
    text = '[base]\nalgorithm = "sgd"'
    assert made(text, "uplink.levels=4", "uplink.compressor=quantize")[0].experiment.uplink.compressor == (
        Experiment.of(algorithm="qsgd", uplink={"levels": 4}).uplink.compressor
    )


def test_a_run_is_named_by_what_decides_what_it_leaves() -> None:
    one, coarse, other = (
        made(f"[base]\nrun.evaluate_every = {every}\nrun.rows = '{rows}'")[0].name
        for every, rows in ((10, "memory"), (20, "memory"), (10, "disk"))
    )
    assert one == other == f"artemis-{Experiment.of().identifier().hex()}-every10"
    assert coarse != one


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed = 3", ["here.toml: unknown key 'seed' (did you mean 'seeds'?)", "base, seeds, grid, variants"]),
        ("seeds = 0", ["here.toml: seeds = 0: expected their number"]),
        ("seeds = []", ["seeds = []"]),
        ("seeds = true", ["seeds = true"]),
        ("seeds = [1, true]", ["seeds = [1, True]"]),
        ("seeds = [1, -1]", ["seeds = [1, -1]: expected their number, at most 10000, or a list of whole numbers"]),
        ("seeds = [1, 1]", ["seeds = [1, 1]: a seed occurs twice"]),
        ("seeds = 10001", ["seeds = 10001: expected their number, at most 10000"]),
        ("base = 3", ["base = 3: expected the path of an experiment, or a table [base]"]),
        ('base = "none.toml"', ["none.toml: cannot read the experiment"]),
        ("grid = 3", ["grid = 3: expected a table [grid] of lists"]),
        ("[grid]\nuplink.levels = 3", ["grid uplink.levels = 3: expected a list of values"]),
        ("[grid]\nuplink.levels = []", ["grid uplink.levels = []: expected a list of values"]),
        ("[grid]\nseed = [1, 2]", ["grid seed: seeds are averaged, so give seeds = [1, 2] above [grid]"]),
        (
            "[grid]\nuplink.level = [1]",
            ["uplink.level = 1: unknown key 'uplink.level' (did you mean"],
        ),
        (
            '[grid]\nalgorithm = ["artemis", "sgd"]\nuplink.levels = [1]',
            ["here.toml: algorithm = 'sgd', uplink.levels = 1: unknown key 'uplink.levels'"],
        ),
        ("variants = []", ["variants = []: expected tables [[variants]]"]),
        ("variants = [1]", ["variants = [1]"]),
        ("[[variants]]\nround = 3", ["round = 3: unknown key 'round' (did you mean 'rounds'?)"]),
        ("[grid]\nuplink.levels = [1, 1]", ["two runs are the same experiment (artemis)"]),
        ("[grid]\nrun.workers = [1, 2]", ["two runs are the same experiment", "such as run.workers"]),
        ("[base]\nseed = 1\n[grid]\nrounds = [1]\nlocal.batch = [1.5]", ["local.batch = 1.5: expected a whole number"]),
        (
            "seeds = 101\n[grid]\nrounds = [" + ",".join(map(str, range(1, 101))) + "]",
            ["10100 runs; give at most 10000"],
        ),
    ],
)
def test_files_that_make_no_sweep(text: str, parts: list[str], refused: Refused) -> None:
    with refused(ConfigError, *parts):
        made(text)


def test_a_file_that_is_none(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, "papre: no such file (did you mean 'paper'?)", "built in: paper"):
        read_sweep(Path("papre"))
    Path("bad.toml").write_text("seeds = ")
    with refused(ConfigError, "bad.toml: not valid TOML"):
        read_sweep(Path("bad.toml"))


@pytest.mark.parametrize("name", presets.NAMES)
def test_presets_are_sweeps(name: str) -> None:
    assert len(read_sweep(Path(name))) > 1


def test_the_paper_s_comparison_is_the_replicated_experiment() -> None:
    """Those of ``tests.replication``, whose figures are held against independent ones; five seeds of each."""
    files = ("data.path=/where/a9a.gz", "partition.file=/where/a9a.clusters20.txt")
    found = [point.experiment for point in read_sweep(Path("paper"), files)]
    algorithms = ("sgd", "qsgd", "diana", "bi-qsgd", "artemis")
    assert [one.identifier() for one in found] == [
        msgspec.structs.replace(experiments.a9a_half(Path("/where"), name), seed=seed).identifier()
        for seed in range(5)
        for name in algorithms
    ]


Sweep = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(place: Path, command: Command) -> Sweep:
    """``sweep(arguments)``: the command, in this process."""
    return lambda arguments: command("sweep", *arguments.split())


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes, and when it was last written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


RESULTS = ("model.safetensors", "ledger.csv", "metrics.jsonl")


def same_as_by_itself(folder: Path, point: Point, alone: Path) -> bool:
    """Whether what a run of a sweep left is, to the byte, what ``fedsim run`` leaves, below ``alone``."""
    if not (alone / point.name).exists():
        simulation.run(point.experiment, alone / point.name)
    return all((folder / name).read_bytes() == (alone / point.name / name).read_bytes() for name in RESULTS)


def test_a_sweep_runs_what_is_left_and_nothing_twice(sweep: Sweep, place: Path) -> None:
    """Two processes; a run that diverges stops no other, is told with its reason, and is not run again either."""
    Path("s.toml").write_text(f'seeds = 2\n{SMALL}\n[grid]\nserver.step = ["1/L", "40/L"]')
    status, out, _ = sweep("s.toml --dry-run")
    assert status == 0
    assert out.count("to be run: 20 rounds") == 4
    assert out.endswith("4 runs (experiments: 2, seeds: 2) in runs/s: 4 to be run\n")
    assert not Path("runs").exists()

    status, out, err = sweep("s.toml --jobs 2")
    assert (status, err) == (1, "")
    assert re.search(r"2 of 4 runs are finished, in runs/s\n", out)
    reason = r"artemis · step 40/L · seed [01] *:? *diverged: round \d+: the loss has grown .*; use a smaller step\n"
    assert len(re.findall(reason, out)) == 4  # when it ended, and at the end
    all_points = read_sweep(Path("s.toml"))
    assert sorted(path.name for path in (place / "runs" / "s").iterdir()) == sorted(one.name for one in all_points)
    for point in all_points:
        folder = Path("runs/s") / point.name
        ended = found(folder)
        assert ended is not None
        assert json.loads((folder / "manifest.json").read_text())["run"] == point.experiment.identifier().hex()
        if point.experiment.server.step == "1/L":
            assert (ended.what, ended.round) == ("finished", 20)
            assert same_as_by_itself(folder, point, place / "alone")
        else:
            assert ended.what == "diverged"
            assert "use a smaller step" in ended.reason
            assert not (folder / "model.safetensors").exists()

    before = contents(place / "runs")
    status, again, _ = sweep("s.toml --jobs 2")
    assert status == 1
    assert again.startswith("4 runs (experiments: 2, seeds: 2) in runs/s: 2 finished already, 2 known to diverge\n")
    assert contents(place / "runs") == before


def test_a_sweep_that_changed_runs_what_is_new(sweep: Sweep, place: Path) -> None:
    Path("s.toml").write_text(f"{SMALL}\n[grid]\nuplink.levels = [1, 2]")
    assert sweep("s.toml --folder mine --jobs 1")[0] == 0
    before = contents(place / "mine")
    Path("s.toml").write_text(f"{SMALL}\n[grid]\nuplink.levels = [2, 4]")
    status, out, _ = sweep("s.toml --folder mine --report mine.html")
    assert status == 0
    assert out.endswith(f"mine.html: 3 runs, {Path('mine.html').stat().st_size / 1e6:.1f} MB\n")
    assert "1 finished already, 1 to be run\n" in out
    assert "mine also holds runs that are not of this sweep (1, for example artemis-" in out
    assert len(others(Path("mine"), read_sweep(Path("s.toml")))) == 1
    after = contents(place / "mine")
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith("model.safetensors") for name in after) == 3


def test_a_failure_of_another_kind_is_shown_and_tried_again(sweep: Sweep) -> None:
    """Data that is not there at first; a run folder that was edited, which is left alone."""
    Path("s.toml").write_text(f'{SMALL}\n[[variants]]\n[[variants]]\ndata = {{source = "libsvm", path = "no.svm"}}')
    status, out, _ = sweep("s.toml --jobs 1")
    assert status == 1
    assert out.count("failed: no.svm") == 2
    status, out, _ = sweep("s.toml --dry-run")
    assert "1 finished already, 1 to be run" in out
    toml = Path("runs/s") / read_sweep(Path("s.toml"))[0].name / "experiment.toml"
    toml.write_text(toml.read_text().replace("rounds = 20", "rounds = 21"))
    status, out, _ = sweep("s.toml --jobs 1")
    assert status == 1
    assert "1 unreadable, 1 to be run" in out
    assert "failed: runs/s/" in out
    assert "is not what this run began with" in out


def long_sweep() -> list[Point]:
    """Six runs of some tenths of a second."""
    base = SMALL.replace("rounds = 20", "rounds = 600\nrun.checkpoint_every = 50")
    Path("s.toml").write_text(f"seeds = 3\n{base}\n[grid]\nuplink.levels = [1, 4]")
    return read_sweep(Path("s.toml"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the same runs lie, each run by itself."""
    return tmp_path_factory.mktemp("alone")


def started(jobs: int) -> subprocess.Popen[str]:
    """The command in a process of its own, as in a terminal of its own."""
    code = "from fedsim.cli.main import main; main()"
    command = [sys.executable, "-c", code, "sweep", "s.toml", "--jobs", str(jobs)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def finished() -> list[str]:
    return [path.parent.name for path in Path("runs").glob("s/*/model.safetensors")]


def children_of(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def kill_in_a_run(child: int) -> None:
    """Kill the only child between the beginning and the end of a run."""

    def in_a_run() -> bool:
        os.kill(child, signal.SIGSTOP)
        statuses = [json.loads(path.read_bytes())["status"] for path in Path("runs").glob("s/*/manifest.json")]
        if "running" not in statuses:
            os.kill(child, signal.SIGCONT)
        return "running" in statuses

    until(in_a_run)
    os.kill(child, signal.SIGKILL)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a sweep in /proc")
@pytest.mark.parametrize(
    "how",
    [
        "ctrl-c",
        pytest.param("twice", marks=pytest.mark.slow),
        "killed",
        pytest.param("a child killed", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_sweep_goes_on_without_repeating_a_run(how: str, sweep: Sweep, place: Path, alone: Path) -> None:
    """Stopped while runs are under way: none is left running, finished ones stay as they are, all end up the same."""
    all_points = long_sweep()
    process = started(jobs=1 if how == "a child killed" else 2)
    until(lambda: len(finished()) >= 1 and len(list(Path("runs").glob("s/*/experiment.toml"))) > 1)
    playing = children_of(process.pid)
    assert playing
    if how == "a child killed":
        kill_in_a_run(playing[0])
    else:
        os.kill(process.pid, signal.SIGKILL if how == "killed" else signal.SIGINT)
        if how == "twice":
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    until(lambda: not any(map(alive, playing)))
    done = finished()
    if how == "a child killed":
        assert process.returncode == 1
        assert "failed: its process died with signal 9; if the memory is full, lower --jobs" in out
        assert len(done) == len(all_points) - 1
    else:
        assert process.returncode == {"killed": -9}.get(how, 130)
        assert len(done) < len(all_points)
    if how == "ctrl-c":
        assert err.endswith(f"stopped: {len(done)} of 6 runs are finished; the same command goes on\n")
        assert re.search(r"artemis · levels [14] · seed [012]  to be resumed: round \d+ of 600\n", out)
    before = contents(place / "runs")
    status, out, _ = sweep("s.toml --jobs 2")
    assert status == 0
    assert f"{len(done)} finished already" in out
    assert "6 of 6 runs are finished" in out
    after = contents(place / "runs")
    for name in before:
        if name.split("/")[1] in done:
            assert after[name] == before[name]
    for point in all_points:
        assert same_as_by_itself(Path("runs/s") / point.name, point, alone)


def test_a_bar_for_every_run_in_a_terminal(place: Path) -> None:
    from rich.console import Console

    from fedsim.cli.board import Board, line

    point = made(SMALL)[0]
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Board(console, [point, point], {1: Told("finished", 20, 0.5)}) as board:
        board.tell(0, Told("playing", 3, 0.25, 0.5))
        board.progress.refresh()
        board.tell(0, Told("stopped", 4, 0.125))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "loss 0.2500  50.0 %" in shown
    assert "1/2  artemis · seed 0  to be resumed: round 4 of 20" in shown
    assert line(point, None, 20) == "artemis · seed 0      to be run: 20 rounds"
    assert line(point, Told("finished", 20), 4).endswith("no loss (the data is elsewhere)")


def test_a_child_plays_what_it_is_given(place: Path) -> None:
    """In this process: what it says line by line, for runs that end in every way."""
    point = made(SMALL)[0]
    diverging, impossible = (made(SMALL, setting)[0] for setting in ("server.step=40/L", "downlink.compressor=top-k"))
    works = [work(one, place, 1) for one in (point, point, diverging, impossible)]
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as given, os.fdopen(write, "wb") as parent:
        answers = io.BytesIO()
        # All at once, which a parent never does: the first run takes what is waiting for the end, and stops; the
        # second goes on with it, and stops at the true end.
        parent.write(b"".join(msgspec.json.encode(one) + b"\n" for one in works[:2]))
        parent.close()
        child.serve(given, answers)
    said = [msgspec.json.decode(text, type=Told) for text in answers.getvalue().splitlines()]
    assert [(one.what, one.round) for one in said if one.what != "playing"] == [("stopped", 1), ("stopped", 2)]

    listened: list[Told] = []
    watcher = child.Watcher(listened.append, lambda: False)
    ends = [child.play(one, watcher) for one in works]
    assert [end.what for end in ends] == ["finished", "finished", "diverged", "failed"]
    assert ends[0].round == 20
    assert ends[0].loss == simulation.run(point.experiment).loss
    assert "use a smaller step" in ends[2].reason
    assert listened[0].what == "playing"


def test_what_nobody_expected_is_told_in_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(child, "run", broken)
    end = child.play(work(made(SMALL)[0], place, 1), child.Watcher(lambda told: None, lambda: False))
    assert end.what == "failed"
    assert end.reason.startswith("ZeroDivisionError: two lines; `fedsim resume ")


def test_cores_are_shared() -> None:
    def workers(*settings: str) -> int:
        given = work(made(SMALL, *settings)[0], Path("x"), jobs=10_000).experiment
        return int(re.findall(r"workers = (\d+)", given)[0])

    assert workers() == 1
    assert workers("run.executor=sequential") == 0
    assert workers("run.executor=workers", "run.workers=3") == 3
    assert isinstance(work(made(SMALL)[0], Path("x"), 1), Work)
