"""A run that is killed or cut from power at any instant continues to the bytes of the uninterrupted run.

Complete where it can be: every step by which a run changes its folder is a place to be killed at (``zygote.Disk``
counts them, and a write is done by half). Random for the rest: SIGKILL at a random instant.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedsim import checkpoint
from fedsim.checkpoint import SLOTS
from fedsim.errors import CheckpointError

EVERY = 3
"""Rounds between two checkpoints of the longer run."""

LONGER = """
rounds = ROUNDS
algorithm = "artemis"
partition = { clients = 20 }
participation = { k = 8 }
run = { checkpoint_every = EVERY, evaluate_every = 1 }
"""


def continued(cli: Any, experiment: Path, folder: Path) -> dict[str, bytes]:
    """What a killed run ends with. One that was killed before it had a folder is run again."""
    if (folder / "experiment.toml").exists():
        done = cli.resume(folder)
    else:
        refused = cli.resume(folder)
        assert (refused.status, refused.err) == (
            2,
            f"error: {folder} is not a run folder (no experiment.toml); `fedsim run` makes one\n",
        )
        done = cli.run(experiment, folder)
    assert (done.status, done.err) == (0, "")
    return cli.outcome(folder)


def broken_at(cli: Any, experiment: Path, fast: Path, steps: Iterable[int], kind: str) -> list[int]:
    """The steps at which a run could be broken and did not continue to the same bytes."""
    whole = fast / "whole"
    assert cli.run(experiment, whole).status == 0
    expected, wrong = cli.outcome(whole), []
    for at in steps:
        folder = fast / "run"
        done = cli.run(experiment, folder, fault={"root": str(folder), "at": at, "kind": kind})
        assert done.status == -signal.SIGKILL
        if continued(cli, experiment, folder) != expected:
            wrong.append(at)
        shutil.rmtree(folder)
    return wrong


def within(steps: list[str], first: str, last: str) -> range:
    """Numbers (from 1) of the steps from the first occurrence of one to the next occurrence of another."""
    start = steps.index(first)
    return range(start + 1, steps.index(last, start) + 2)


def test_every_step_of_a_checkpoint_is_a_place_to_be_killed_at(cli: Any, experiment: Path, fast: Path) -> None:
    steps = cli.steps("run", experiment, "--folder", fast / "run", root=fast / "run")
    shutil.rmtree(fast / "run")
    place = within(steps, "open checkpoint/odd.safetensors.new", "fsync checkpoint")
    place = range(place.start - 9, place.stop)
    assert [steps[i - 1] for i in place] == [
        *("open ledger.csv", "write ledger.csv", "close ledger.csv"),
        *("open metrics.jsonl", "fsync metrics.jsonl", "close metrics.jsonl"),
        *("open ledger.csv", "fsync ledger.csv", "close ledger.csv"),
        *("open checkpoint/odd.safetensors.new", "write checkpoint/odd.safetensors.new"),
        *("fsync checkpoint/odd.safetensors.new", "close checkpoint/odd.safetensors.new"),
        *("replace checkpoint/odd.safetensors.new", "fsync checkpoint"),
    ]
    assert broken_at(cli, experiment, fast, place, "kill") == []


@pytest.mark.slow
def test_every_step_of_a_run_is_a_place_to_be_killed_at(cli: Any, experiment: Path, fast: Path) -> None:
    steps = cli.steps("run", experiment, "--folder", fast / "run", root=fast / "run")
    shutil.rmtree(fast / "run")
    assert len(steps) > 90
    assert broken_at(cli, experiment, fast, range(1, len(steps) + 1), "kill") == []


@pytest.mark.parametrize("begun", [False, True])
def test_what_outlives_a_power_cut_continues(cli: Any, experiment: Path, fast: Path, begun: bool) -> None:
    """After each step that forces something to disk, all that was not forced is lost: file contents and names.

    begun: the run had been cut from power before, and of two new names in its folder the later one was kept by chance.
    """
    folder, shadow = fast / "place" / "run", fast / "shadow"
    shadow.mkdir()
    folder.parent.mkdir()
    fault = {"root": str(folder), "shadow": str(shadow)}
    if begun:
        steps = cli.steps("run", experiment, "--folder", fast / "count", root=fast / "count")
        at = steps.index("open checkpoint/even.safetensors.new") + 1
        assert cli.run(experiment, folder, fault={"root": str(folder), "at": at}).status == -signal.SIGKILL
        for log in ("ledger.csv", "metrics.jsonl"):
            (folder / log).unlink()
        assert list((folder / "checkpoint").iterdir()) == []
        done = cli.resume(folder, fault=fault)
    else:
        done = cli.run(experiment, folder, fault=fault)
    assert done.status == 0
    expected = cli.outcome(folder)
    states = sorted(shadow.glob("*.json"), key=lambda path: int(path.stem))
    kept = []
    for state in states:
        shutil.rmtree(folder.parent)
        rebuild(json.loads(state.read_text()), folder.parent)
        kept.append(len(list(folder.parent.rglob("*.safetensors"))))
        assert continued(cli, experiment, folder) == expected, state
    assert len(states) > 12
    assert kept[0] == 0
    assert kept[-1] == len(expected)


def rebuild(state: dict[str, Any], folder: Path) -> None:
    """Lay out what a power cut leaves of ``folder``; a file whose content was never forced is empty."""
    folder.mkdir()
    for name, what in state["names"].get(str(folder), {}).items():
        if what == "folder":
            rebuild(state, folder / name)
        elif str(what) in state["copies"]:
            shutil.copyfile(state["copies"][str(what)], folder / name)
        else:
            (folder / name).touch()


def longer(path: Path, rounds: int) -> Path:
    path.write_text(LONGER.replace("ROUNDS", str(rounds)).replace("EVERY", str(EVERY)))
    return path


@dataclass
class Kills:
    """What killed runs came to. equal: whose resume ended with the same bytes; wrong: what the others were killed at.

    points: names of the steps in a checkpoint's write that were killed at; redone: rounds played once more; torn:
    checkpoints that cannot be read; seconds: of the slowest resume, imports apart.
    """

    equal: int = 0
    wrong: list[str] = field(default_factory=list)
    points: Counter[str] = field(default_factory=Counter)
    redone: Counter[int] = field(default_factory=Counter)
    torn: int = 0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return self.equal + len(self.wrong)

    def found(self, folder: Path) -> None:
        """Note what a kill left: metrics.jsonl has a line for each round that was played."""
        place = folder / "checkpoint"
        for slot in SLOTS:
            if (place / slot).exists():
                try:
                    checkpoint._read_slot(place / slot)
                except CheckpointError:
                    self.torn += 1
        left = checkpoint.read(place)
        lines = folder / "metrics.jsonl"
        whole = lines.read_bytes().count(b"\n") if lines.exists() else 0
        self.redone[max(0, whole - 1 - (0 if left is None else left[0].round))] += 1


def test_killed_at_random_instants(cli: Any, fast: Path) -> None:
    found = campaign(cli, fast, random.Random(1), rounds=40, kills=4, inside=2)
    assert found.equal == 6, found
    assert found.torn == 0
    assert max(found.redone) <= EVERY


@pytest.mark.slow
def test_a_hundred_kills(cli: Any, fast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = campaign(cli, fast, random.Random(2), rounds=150, kills=70, inside=30)
    with capsys.disabled():
        print(f"\n{found.equal} of 100 killed runs ended with the bytes of the uninterrupted run; {found.torn} torn")
        print(f"rounds played again (a checkpoint every {EVERY}): times   {dict(sorted(found.redone.items()))}")
        print(f"slowest resume to the end: {found.seconds:.2f} s; 30 killed at these steps of a checkpoint's write:")
        for name, times in sorted(found.points.items()):
            print(f"{times:5}  {name}")
    assert found.equal == 100, found.wrong
    assert found.torn == 0
    assert max(found.redone) <= EVERY


def campaign(cli: Any, place: Path, draw: random.Random, rounds: int, kills: int, inside: int) -> Kills:
    """Kills at instants, and then at named steps of the writes of checkpoints; each is resumed."""
    experiment, whole, folder = longer(place / "longer.toml", rounds), place / "whole", place / "run"
    done = cli.run(experiment, whole)
    assert done.status == 0, done.err
    expected = cli.outcome(whole)
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    writes = [i for i, step in enumerate(steps, 1) if "safetensors.new" in step or step == "fsync checkpoint"]
    found, latest = Kills(), done.seconds
    while found.count < kills + inside:
        at = draw.choice(writes) if found.count >= kills else 0
        if at:
            fault: dict[str, Any] = {"fault": {"root": str(folder), "at": at}}
        else:
            fault = {"signals": [[draw.uniform(0.02, latest), signal.SIGKILL]]}
        shutil.rmtree(folder, ignore_errors=True)
        killed = cli.run(experiment, folder, **fault)
        if killed.status == 0:  # the kill came after the end, which does not count
            latest = min(latest, killed.seconds)
            continue
        assert killed.status == -signal.SIGKILL, killed.err
        found.points.update([steps[at - 1]] if at else [])
        found.found(folder)
        began = time.monotonic()
        if continued(cli, experiment, folder) == expected:
            found.equal += 1
        else:
            found.wrong.append(str(fault))
        found.seconds = max(found.seconds, time.monotonic() - began)
    return found


def test_killed_again_and_again(cli: Any, tmp_path: Path) -> None:
    """Each process gets a little further than the last, at least to the next checkpoint."""
    experiment, whole, folder = longer(tmp_path / "longer.toml", 60), tmp_path / "whole", tmp_path / "run"
    cli.run(experiment, whole)
    draw, kills = random.Random(3), 0
    killed = cli.run(experiment, folder, fault={"root": str(folder), "at": 50})
    while killed.status == -signal.SIGKILL and kills < 30:
        kills += 1
        killed = cli.resume(folder, fault={"root": str(folder), "at": draw.randint(40, 150)})
    assert kills >= 4
    assert killed.status == 0
    assert cli.outcome(folder) == cli.outcome(whole)


@pytest.fixture
def compared(experiment: Path, tmp_path: Path) -> Path:
    """The small experiment with its uncompressed baseline."""
    path = tmp_path / "compared.toml"
    path.write_text(experiment.read_text().replace("evaluate_every = 1", "evaluate_every = 1, baseline = true"))
    return path


def in_baseline(cli: Any, experiment: Path, fast: Path) -> list[int]:
    folder = fast / "run"
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    assert (folder / "uncompressed" / "model.safetensors").exists()
    shutil.rmtree(folder)
    return [i for i, step in enumerate(steps, 1) if "uncompressed" in step]


def test_killed_in_the_baseline(cli: Any, compared: Path, fast: Path) -> None:
    places = in_baseline(cli, compared, fast)
    assert broken_at(cli, compared, fast, sorted(random.Random(4).sample(places, 8)), "kill") == []


@pytest.mark.slow
def test_every_step_of_the_baseline_is_a_place_to_be_killed_at(cli: Any, compared: Path, fast: Path) -> None:
    assert broken_at(cli, compared, fast, in_baseline(cli, compared, fast), "kill") == []


def test_ctrl_c_stops_after_the_round(cli: Any, experiment: Path, fast: Path) -> None:
    whole, folder = fast / "whole", fast / "run"
    cli.run(experiment, whole)
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    shutil.rmtree(folder)
    at = steps.index("write checkpoint/even.safetensors.new") + 1
    done = cli.run(experiment, folder, fault={"root": str(folder), "at": at, "kind": "interrupt"})
    assert done.status == 130
    assert done.err.splitlines() == [
        "",
        "stopping after this round; Ctrl-C again stops at once",
        f"stopped: after round 2; `fedsim resume {folder}` goes on from there",
    ]
    done = cli.resume(folder)
    assert done.status == 0
    assert "continues after round 2\n" in done.out
    assert cli.outcome(folder) == cli.outcome(whole)


@pytest.mark.slow
def test_ctrl_c_at_every_step(cli: Any, compared: Path, fast: Path) -> None:
    whole, folder = fast / "whole", fast / "run"
    cli.run(compared, whole)
    steps = cli.steps("run", compared, "--folder", folder, root=folder)
    stopped = 0
    for at in range(1, len(steps) + 1):
        shutil.rmtree(folder)
        done = cli.run(compared, folder, fault={"root": str(folder), "at": at, "kind": "interrupt"})
        assert done.status in (0, 130)
        stopped += done.status == 130
        assert continued(cli, compared, folder) == cli.outcome(whole)
    assert stopped > len(steps) / 2


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("mkdir .", "stopped: before the first round"),
        (
            "write checkpoint/odd.safetensors.new",
            "stopped: at once; `fedsim resume FOLDER` goes on from the last checkpoint",
        ),
    ],
)
def test_ctrl_c_twice_stops_at_once(cli: Any, experiment: Path, fast: Path, step: str, message: str) -> None:
    whole, folder = fast / "whole", fast / "run"
    cli.run(experiment, whole)
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    shutil.rmtree(folder)
    done = cli.run(experiment, folder, fault={"root": str(folder), "at": steps.index(step) + 1, "kind": "interrupts"})
    assert done.status == 130
    assert done.err.splitlines()[-1] == message.replace("FOLDER", str(folder))
    assert "Traceback" not in done.err
    assert continued(cli, experiment, folder) == cli.outcome(whole)


def test_without_a_zygote(cli: Any, experiment: Path, tmp_path: Path) -> None:
    """The same with processes that start as a user's do."""
    command = [sys.executable, "-m", "fedsim.cli.main"]
    longer = tmp_path / "longer.toml"
    longer.write_text(experiment.read_text().replace("rounds = 3", "rounds = 400").replace("every = 1", "every = 20"))
    folder = tmp_path / "run"
    with subprocess.Popen([*command, "run", longer, "--folder", folder], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        while "round 60/" not in (line := run.stdout.readline()):
            assert line
        run.kill()
    assert run.returncode == -signal.SIGKILL
    resumed = subprocess.run([*command, "resume", folder], capture_output=True, text=True)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "continues after round " in resumed.stdout
    assert cli.run(longer, tmp_path / "whole").status == 0
    assert cli.outcome(folder) == cli.outcome(tmp_path / "whole")


def test_ctrl_c_in_the_baseline(cli: Any, compared: Path, fast: Path) -> None:
    whole, folder = fast / "whole", fast / "run"
    cli.run(compared, whole)
    at = in_baseline(cli, compared, fast)[20]
    done = cli.run(compared, folder, fault={"root": str(folder), "at": at, "kind": "interrupt"})
    assert done.status == 130
    assert f"`fedsim resume {folder}` goes on from there" in done.err
    assert continued(cli, compared, folder) == cli.outcome(whole)
