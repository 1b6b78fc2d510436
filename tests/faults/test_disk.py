"""A disk that is full, a folder that cannot be written: one line, exit status 2, and nothing that was kept is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsim.checkpoint import read
from fedsim.simulation.folder import RunFolder

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(size="40k")``: a small disk in memory; again with other options: the same disk with those."""
    place = tmp_path / "disk"

    def mounted(**options: str) -> Path:
        words = ",".join([key if value == "" else f"{key}={value}" for key, value in options.items()])
        again = os.path.ismount(place)
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ("remount," if again else "") + words, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("needs the mount command, to make a small disk")
        if done.returncode and not again:
            pytest.skip(f"needs to mount a small disk, which root may do: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return place

    yield mounted
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def full(cli: Any, experiment: Path, disk: Path) -> bool:
    """Run until the disk is full, and check what is said and what is left. False: there was room enough."""
    folder = disk / "run"
    done = cli.run(experiment, folder)
    if done.status == 0:
        return False
    assert done.status == 2
    line = done.err
    assert line.count("\n") == 1
    assert line.startswith(f"error: cannot write {folder}")
    assert "No space left on device; " in line
    if folder.exists():
        assert line.endswith(f"; make room, then `fedsim resume {folder}` continues the run\n")
        assert RunFolder(folder).experiment().rounds
        found = read(folder / "checkpoint")
        assert (found is not None) == bool(list(folder.glob("checkpoint/*.safetensors")))
    else:
        assert line.endswith("; make room or give another --folder\n")
    assert not list(disk.rglob("*.new"))
    return True


def test_full_disk(cli: Any, experiment: Path, mount: Mount, tmp_path: Path) -> None:
    """Every size of disk, page by page, from too small for anything to large enough."""
    cli.run(experiment, tmp_path / "whole")
    expected = cli.outcome(tmp_path / "whole")
    begun = unbegun = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pages in range(1, 40):
        disk = mount(size=str(pages * page))
        folder = disk / "run"
        if not full(cli, experiment, disk):
            break
        if folder.exists():
            begun += 1
            mount(size=str(100 * page))
            assert cli.resume(folder).status == 0
            assert cli.outcome(folder) == expected
        else:
            unbegun += 1
        subprocess.run(["umount", str(disk)], check=True)
    assert cli.outcome(folder) == expected
    assert begun >= 3
    assert unbegun >= 1


def test_full_disk_in_the_middle_of_a_large_checkpoint(cli: Any, mount: Mount, tmp_path: Path) -> None:
    """The checkpoint before stays, and the run continues from it."""
    experiment = tmp_path / "large.toml"
    experiment.write_text(
        "rounds = 4\npartition = { clients = 50 }\nparticipation = { k = 50 }\nrun = { checkpoint_every = 1 }"
    )
    cli.run(experiment, tmp_path / "whole")
    large = max(path.stat().st_size for path in (tmp_path / "whole" / "checkpoint").iterdir())
    assert large > 20 * 4096
    disk = mount(size=str(int(2.6 * large)))
    assert full(cli, experiment, disk)
    found = read(disk / "run" / "checkpoint")
    assert found
    assert found[0].round == 2
    mount(size=str(10 * large))
    done = cli.resume(disk / "run")
    assert "continues after round 2\n" in done.out
    assert cli.outcome(disk / "run") == cli.outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "every", [pytest.param(False, id="creation and end"), pytest.param(True, marks=pytest.mark.slow)]
)
def test_no_room_at_any_step(cli: Any, experiment: Path, fast: Path, every: bool) -> None:
    """Complete: whichever step of the run the disk refuses."""
    folder = fast / "run"
    steps = cli.steps("run", experiment, "--folder", folder, root=folder)
    expected = cli.outcome(folder)
    places = range(1, len(steps) + 1) if every else [*range(1, 15), *range(len(steps) - 12, len(steps) + 1)]
    for at in places:
        shutil.rmtree(folder, ignore_errors=True)
        done = cli.run(experiment, folder, fault={"root": str(folder), "at": at, "kind": "full"})
        assert (done.status, done.err.count("\n")) == (2, 1), steps[at - 1]
        assert "No space left on device; make room" in done.err
        assert not list(fast.rglob("*.new"))
        again = cli.resume(folder) if (folder / "experiment.toml").exists() else cli.run(experiment, folder)
        assert again.status == 0
        assert cli.outcome(folder) == expected, steps[at - 1]


def test_read_only_disk(cli: Any, experiment: Path, mount: Mount) -> None:
    disk = mount(size="1m")
    cli.run(experiment, disk / "old")
    mount(ro="", size="1m")
    done = cli.run(experiment, disk / "run")
    assert done.status == 2
    assert done.err == f"error: cannot write {disk / 'run'}: Read-only file system; give another --folder\n"
    done = cli.resume(disk / "old")
    assert done.status == 2
    assert done.err == (
        f"error: cannot write {disk / 'old' / 'metrics.jsonl'}: Read-only file system; make it writable, then "
        f"`fedsim resume {disk / 'old'}` continues the run\n"
    )


@pytest.mark.parametrize("below", ["", "run", "some/run"])
def test_folder_that_is_a_file(cli: Any, experiment: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("precious")
    folder = tmp_path / "file" / below
    done = cli.run(experiment, folder)
    assert done.status == 2
    assert done.err.startswith(f"error: cannot write {tmp_path / 'file'}")
    assert done.err.endswith("; give another --folder\n")
    assert done.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_folder_that_holds_a_run(cli: Any, experiment: Path, tmp_path: Path) -> None:
    cli.run(experiment, tmp_path / "run")
    before = cli.outcome(tmp_path / "run")
    done = cli.run(experiment, tmp_path / "run", "--set", "seed=9")
    assert done.status == 2
    assert done.err == (
        f"error: {tmp_path / 'run'} holds a run already; `fedsim resume {tmp_path / 'run'}` continues it, "
        "--folder names another\n"
    )
    assert cli.outcome(tmp_path / "run") == before


def test_folder_that_holds_something_else_keeps_it(cli: Any, experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("precious")
    assert cli.run(experiment, tmp_path / "run").status == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "precious"


def test_one_process_at_a_time(cli: Any, experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cli.run(experiment, folder)
    before = cli.outcome(folder)
    with RunFolder(folder).alone():
        done = cli.resume(folder)
    assert done.status == 2
    assert done.err == f"error: {folder} is being run by another process; wait for it or stop it\n"
    assert cli.outcome(folder) == before
    assert cli.resume(folder).status == 0
