"""A run goes on only with the data it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim
from fedsim.cli.main import main
from fedsim.simulation.run import resume, run


def test_a_changed_data_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    lines = [f"{1 if i % 3 else -1} 1:{i % 7} 2:{i % 5}" for i in range(40)]
    path.write_text("\n".join(lines) + "\n")
    experiment = fedsim.Experiment.of(
        rounds=4,
        data={"source": "libsvm", "path": str(path)},
        partition={"scheme": "iid", "clients": 4},
        participation={"scheme": "full"},
    )
    first = run(experiment, tmp_path / "run")
    assert resume(tmp_path / "run").digest == first.digest
    path.write_text("\n".join(["1 1:3 2:4", *lines[1:]]) + "\n")
    with pytest.raises(fedsim.FedsimError, match=r"run: the data is not what this run began with; restore the files"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("folder", ["", "."])
def test_a_run_does_not_scatter_its_files(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedsim", "run", "--folder", folder])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert not list(tmp_path.iterdir())
