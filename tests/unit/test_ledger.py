"""The ledger: sums, lines of CSV, and reading them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim.errors import CheckpointError
from fedsim.ledger import COLUMNS, Cost, Direction, Entry, Ledger, Lines, read_totals


def lines(round: int, way: Direction, kind: Entry, rows: list[tuple[int, int, float, int, int]]) -> Lines:
    """rows: client, messages, formula bits, payload bits, frame bytes."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    clients, messages, payload, frame = (table[:, i].astype(np.int64) for i in (0, 1, 3, 4))
    return Lines(round, way, kind, clients, messages, table[:, 2], payload, frame)


UPLOADS = lines(3, Direction.UP, Entry.UPLOAD, [(4, 1, 10.5, 16, 42), (7, 1, 0.125, 24, 43)])
UPDATES = lines(3, Direction.DOWN, Entry.UPDATES, [(7, 5, 1 / 3, 80, 55)])
MODEL = lines(3, Direction.DOWN, Entry.MODEL, [(4, 1, 320.0, 320, 80)])
NOBODY = lines(4, Direction.UP, Entry.UPLOAD, [])
HEADER = ",".join(COLUMNS) + "\n"


def test_costs_add_up() -> None:
    assert Cost() + Cost(1, 2.5, 3, 4) == Cost(1, 2.5, 3, 4)
    assert Cost(1, 2.5, 3, 4) + Cost(10, 20.0, 30, 40) == Cost(11, 22.5, 33, 44)
    assert UPLOADS.cost() == Cost(2, 10.625, 40, 85)
    assert NOBODY.cost() == Cost()


def test_totals_by_direction_and_kind() -> None:
    ledger = Ledger()
    assert ledger.cost() == Cost()
    for lines in (UPLOADS, MODEL, UPDATES, UPLOADS, NOBODY):
        ledger.add(lines)
    assert ledger.totals == {
        (Direction.UP, Entry.UPLOAD): UPLOADS.cost() + UPLOADS.cost(),
        (Direction.DOWN, Entry.MODEL): MODEL.cost(),
        (Direction.DOWN, Entry.UPDATES): UPDATES.cost(),
    }
    assert ledger.cost(Direction.UP) == Cost(4, 21.25, 80, 170)
    assert ledger.cost(Direction.DOWN) == MODEL.cost() + UPDATES.cost()
    assert ledger.cost() == ledger.cost(Direction.UP) + ledger.cost(Direction.DOWN)


def test_nobody_leaves_no_line() -> None:
    ledger = Ledger()
    ledger.add(NOBODY)
    assert (ledger.totals, ledger.unwritten, ledger.drain()) == ({}, [], "")


def test_lines_are_drained_once_and_totals_stay() -> None:
    ledger = Ledger()
    ledger.add(UPLOADS)
    ledger.add(UPDATES)
    assert ledger.drain() == (
        "3,4,up,upload,1,10.5,16,42\n3,7,up,upload,1,0.125,24,43\n3,7,down,updates,5,0.3333333333333333,80,55\n"
    )
    assert ledger.drain() == ""
    assert ledger.cost() == UPLOADS.cost() + UPDATES.cost()


@pytest.mark.parametrize("some", [[], [MODEL], [UPLOADS], [UPLOADS, MODEL, UPDATES, UPLOADS]])
def test_a_file_holds_the_totals(some: list[Lines], tmp_path: Path) -> None:
    ledger = Ledger()
    for lines in some:
        ledger.add(lines)
    file = tmp_path / "ledger.csv"
    file.write_text(HEADER + ledger.drain())
    assert read_totals(file) == ledger.totals


def test_a_line_that_a_killed_run_left_unfinished_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    file.write_text(HEADER + "3,4,up,upload,1,10.5,16,42\n3,7,up,upload,1,0.1,2")
    assert read_totals(file) == {(Direction.UP, Entry.UPLOAD): Cost(1, 10.5, 16, 42)}


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "3,4,up,upload,1,10.5,16\n",
        HEADER + "3,4,up,upload,1,many,16,42\n",
        "a,b\n1,2\n",
        HEADER.replace("kind", "sort") + "3,4,up,upload,1,10.5,16,42\n",
    ],
)
def test_what_is_not_a_ledger(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    file.write_text(text)
    with pytest.raises(CheckpointError, match="not a ledger") as caught:
        read_totals(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_of_a_run_sums_to_its_result(tmp_path: Path) -> None:
    experiment = fedsim.Experiment.of(
        rounds=12,
        data={"source": "synthetic-linear", "per_client": 5},
        participation={"scheme": "bernoulli", "p": 0.3},
        run={"checkpoint_every": 5},
    )
    result = fedsim.run(experiment, tmp_path / "run")
    written = read_totals(tmp_path / "run" / "ledger.csv")
    assert set(written) == set(result.ledger.totals)
    for key, cost in written.items():
        total = result.ledger.totals[key]
        assert (cost.frames, cost.payload_bits, cost.frame_bytes) == (
            total.frames,
            total.payload_bits,
            total.frame_bytes,
        )
        assert cost.formula_bits == pytest.approx(total.formula_bits, rel=1e-12)
    text = (tmp_path / "run" / "ledger.csv").read_text().splitlines()
    assert text[0] == ",".join(COLUMNS)
    assert len(text) - 1 == result.ledger.cost().frames
