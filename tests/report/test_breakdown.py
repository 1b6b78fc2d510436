"""Every byte of a ledger belongs to one part, one round and one client: by hand, and against a loop over the lines."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import CheckpointError
from fedsim.ledger import COLUMNS, read_totals
from fedsim.reporting.breakdown import PARTS, read_traffic
from tests.conftest import Refused

HEADER = ",".join(COLUMNS) + "\n"

BY_HAND = [
    "0,0,down,model,1,640.0,640,120",  # 80 bytes: its first
    "0,0,up,memory,1,640.0,640,120",  # 80 bytes: the memory to begin with
    "1,0,down,updates,1,80.0,80,51",  # 10 bytes: nothing missed
    "1,0,up,upload,1,80.0,80,50",  # 10 bytes up
    "1,1,down,model,1,640.0,640,120",  # 80 bytes: the first of another client
    "4,0,down,updates,3,240.0,240,73",  # 30 bytes: a third is the round's own
    "4,0,up,upload,1,80.0,72,49",
    "9,1,down,model,1,640.0,640,120",  # in place of eight updates
    "9,1,up,refresh,0,0.0,0,40",
]


def ledger(folder: Path, lines: list[str]) -> Path:
    path = folder / "ledger.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return path


def test_parts_by_hand(tmp_path: Path) -> None:
    traffic = read_traffic(ledger(tmp_path, BY_HAND))
    assert (traffic.rounds, traffic.clients) == (10, 2)
    parts = {
        "up": 10 + 9,
        "down": 10 + 10,
        "first": 80 + 80 + 80,
        "catch_up": 20 + 80,
        "overhead": 40 + 40 + 41 + 40 + 40 + 43 + 40 + 40 + 40,
    }
    assert traffic.totals() == pytest.approx(parts)
    of_client = traffic.by_client(10)
    assert of_client.starts.tolist() == [0, 1]
    assert of_client.each[1].tolist() == [0, 0, 80, 80, 120]
    assert traffic.by_round(10).each[4].tolist() == pytest.approx([9, 10, 0, 20, 43 + 40])
    assert traffic.presence(2, 10).share.tolist() == [[1, 1, 0, 0, 1, 0, 0, 0, 0, 0], [0] * 10]  # a refresh is no part


def test_whole_models_for_everybody_are_not_catching_up(tmp_path: Path) -> None:
    lines = [f"{round},0,down,model,1,640.0,640,120" for round in (0, 1, 5)]
    totals = read_traffic(ledger(tmp_path, lines)).totals()
    assert totals == {"up": 0, "down": 160, "first": 80, "catch_up": 0, "overhead": 120}


def test_what_a_run_cost_is_what_its_parts_come_to(runs: Path) -> None:
    for folder in sorted(runs.iterdir()):
        traffic = read_traffic(folder / "ledger.csv", 30, 6)
        cost = sum(cost.frame_bytes for cost in read_totals(folder / "ledger.csv").values())
        assert sum(traffic.totals().values()) == pytest.approx(cost)
        assert sum(kind.frame_bytes for kind in traffic.kinds) == cost
        assert (traffic.totals()["catch_up"] > 0) is folder.name.startswith("a")


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4), st.sampled_from(["up", "down"])), max_size=40),
    st.integers(1, 13),
    st.integers(1, 6),
)
def test_bins_against_a_loop(
    tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[int, int, str]], columns: int, rows: int
) -> None:
    kinds = {"up": "upload", "down": "updates"}
    lines = [f"{r},{c},{way},{kinds[way]},1,8.0,{80 + 8 * r},{60 + c + r}" for r, c, way in sorted(frames)]
    path = ledger(tmp_path_factory.mktemp("loop"), lines)
    traffic = read_traffic(path, 12, 5)
    bytes_of: Counter[int] = Counter()
    there = set()
    for line in csv.DictReader(path.read_text().splitlines()):
        bytes_of[int(line["round"])] += int(line["frame_bytes"])
        if line["direction"] == "up":
            there.add((int(line["client"]), int(line["round"])))
    bins, tall = min(columns, 12), min(rows, 5)
    place = {round: round * bins // 12 for round in range(12)}
    widths = Counter(place.values())
    sums: dict[int, float] = defaultdict(float)
    for round, octets in bytes_of.items():
        sums[place[round]] += octets
    binned = traffic.by_round(columns)
    assert binned.each.sum(axis=1).tolist() == pytest.approx([sums[i] / widths[i] for i in range(bins)])
    assert binned.starts.tolist() == [min(r for r in range(12) if place[r] == i) for i in range(bins)]
    cells, sizes = np.zeros((tall, bins)), np.zeros((tall, bins))
    for client in range(5):
        for round in range(12):
            at = client * tall // 5, place[round]
            sizes[at] += 1
            cells[at] += (client, round) in there
    np.testing.assert_allclose(traffic.presence(rows, columns).share, cells / sizes)


def test_a_ledger_without_frames(tmp_path: Path) -> None:
    traffic = read_traffic(ledger(tmp_path, []))
    assert (traffic.rounds, traffic.clients, traffic.kinds) == (0, 0, ())
    assert set(traffic.totals()) == set(PARTS)
    assert traffic.by_round(5).each.tolist() == [[0.0] * 5]


def test_rounds_that_were_cut_back_do_not_count(tmp_path: Path) -> None:
    assert read_traffic(ledger(tmp_path, BY_HAND), rounds=2).totals()["catch_up"] == 0


@pytest.mark.parametrize(
    ("line", "clients"),
    [
        ("0,7,up,upload,1,8.0,8,41", 7),
        (f"0,{2**40},up,upload,1,8.0,8,41", None),
        (f"{2**50},0,up,upload,1,8.0,8,41", None),
    ],
)
def test_numbers_that_no_run_has(tmp_path: Path, refused: Refused, line: str, clients: int | None) -> None:
    with refused(CheckpointError, "ledger.csv", "number that no run has", "put the file back"):
        read_traffic(ledger(tmp_path, [line]), None, clients)
