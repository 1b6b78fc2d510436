"""Seconds of rounds: closed forms, TCP's windows played one by one, deadlines; and what a run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fedsim
from fedsim.errors import CheckpointError, ConfigError, StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, Direction, Entry, Lines, read_lines
from fedsim.network import PROFILES, DataCentre, Mobile, Speeds, Trace, delays, speeds_of
from fedsim.simulation.network import (
    ANSWER,
    AROUND,
    BESIDE_DOWN,
    BESIDE_UP,
    CARRIED,
    FIRST_WINDOW,
    PACKET,
    QUESTION,
    Clock,
    columns_of,
    frame_seconds,
    round_seconds,
    samples_of,
)
from fedsim.simulation.run import Metrics
from fedsim.simulation.setup import Setup, prepare
from fedsim.solvers.plan import Local
from tests.conftest import Refused


def wire(octets: float) -> float:
    return (octets + AROUND) * PACKET / CARRIED


def played(octets: float, rate: float, trip: float) -> float:
    """TCP, window by window: seconds from the first bit sent until the last has left, waiting for acknowledgements."""
    left, window, now, packet = wire(octets), FIRST_WINDOW, 0.0, 8 * PACKET / rate
    while True:
        began = now
        now += 8 * min(left, window * PACKET) / rate
        left -= window * PACKET
        if left <= 0:
            return now
        now = max(now, began + packet + trip)  # until the first packet of this window is acknowledged
        window *= 2


def columns(*frames: tuple[int, int, str, int]) -> dict[str, np.ndarray]:
    rounds, clients, ways, octets = zip(*frames, strict=True) if frames else ((), (), (), ())
    return {
        "round": np.array(rounds, np.int64),
        "client": np.array(clients, np.int64),
        "direction": np.array(ways, "U4"),
        "frame_bytes": np.array(octets, np.int64),
    }


def clock(speeds: Speeds, samples: float = 0.0, deadline: float = 0.0) -> Clock:
    return Clock(speeds, np.full(len(speeds.up), samples), deadline, 0)


def plain(up: list[float], down: list[float], latency: list[float], sample: float = 0.0) -> Speeds:
    n, no = len(up), np.zeros(len(up))
    return Speeds(np.array(up), np.array(down), np.array(latency), no, np.full(n, sample), no + 1)


@given(
    octets=st.integers(0, 10**9),
    rate=st.floats(1e3, 1e10),
    trip=st.floats(0, 10),
)
def test_slow_start_is_that_of_windows_played_one_by_one(octets: int, rate: float, trip: float) -> None:
    given = [np.array([value], np.float64) for value in (octets, rate, trip, trip)]
    found = float(frame_seconds(given[0], given[1], given[2], given[3], beside=2)[0])
    assert found == pytest.approx(2 * trip + max(2 * trip, trip + played(octets, rate, trip)), rel=1e-9, abs=1e-12)


def test_a_client_alone() -> None:
    """Down and up at different rates, 10 samples, no window shorter than a round trip."""
    speeds = plain([1e5], [2e5], [0.05], sample=0.01)
    exchange = 0.1 + 8 * QUESTION / 1e5 + 8 * ANSWER / 2e5
    expected = 3 * exchange + 8 * wire(50_000) / 2e5 + 0.1 + 2 * exchange + 8 * wire(20_000) / 1e5
    timing = clock(speeds, samples=10).timing(columns((0, 0, "up", 20_000), (0, 0, "down", 50_000)))
    assert (BESIDE_DOWN, BESIDE_UP) == (2, 1)
    assert timing.seconds == pytest.approx([expected], rel=1e-12)
    assert (timing.slowest.tolist(), timing.late.tolist()) == ([0], [0])


def test_frames_of_one_way_follow_one_another() -> None:
    speeds = plain([1e5], [2e5], [0.05])
    one, both = (
        clock(speeds).timing(columns(*frames)).seconds[0]
        for frames in ([(0, 0, "up", 500)], [(0, 0, "up", 500), (0, 0, "up", 500)])
    )
    assert both == pytest.approx(2 * one, rel=1e-12)


def test_a_round_is_as_long_as_its_slowest_client_and_nobodys_is_none() -> None:
    speeds = plain([1e6, 1e5, 1e6], [1e6, 1e5, 1e6], [0.01, 0.01, 0.01])
    frames = [(0, i, way, 10_000) for i in range(3) for way in ("down", "up")]
    frames += [(3, i, way, 10_000) for i in (2, 0) for way in ("down", "up")]
    timing = clock(speeds).timing(columns(*frames), rounds=5)
    alone = clock(speeds).timing(columns(*frames[2:4])).seconds[0]
    assert timing.slowest.tolist() == [1, -1, -1, 0, -1]  # of equals the first
    assert timing.seconds[[1, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    assert timing.seconds[0] == alone > timing.seconds[3] > 0
    assert clock(speeds).timing(columns()).seconds.tolist() == []
    assert clock(speeds).timing(columns(*frames)).seconds.tolist() == timing.seconds[:4].tolist()


def test_a_deadline_cuts_and_who_sent_nothing_was_late() -> None:
    speeds = plain([1e6, 1e6], [1e6, 1e6], [0.01, 0.01])
    frames = columns(
        (0, 0, "down", 100), (0, 0, "up", 100), (0, 1, "down", 100), (1, 0, "down", 100), (1, 0, "up", 100)
    )
    free, cut = clock(speeds).timing(frames), clock(speeds, deadline=5.0).timing(frames)
    assert (free.late.tolist(), cut.late.tolist()) == ([0, 0], [1, 0])
    assert (free.seconds < 1).all()
    assert cut.seconds.tolist() == [5.0, free.seconds[1]]
    assert cut.slowest.tolist() == [1, 0]
    assert clock(speeds, deadline=0.01).timing(frames).seconds.tolist() == [0.01, 0.01]


LEDGERS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from(["down", "up"]), st.integers(0, 10**6)),
    min_size=1,
    max_size=30,
)


@given(frames=LEDGERS, order=st.randoms(use_true_random=False), profile=st.sampled_from(sorted(PROFILES)))
def test_the_order_of_lines_means_nothing(frames: list[Any], order: Any, profile: str) -> None:
    network = PROFILES[profile](deadline_s=0.7)
    shuffled = list(frames)
    order.shuffle(shuffled)
    a, b = (round_seconds(columns(*some), network, 4, 3, samples=20.0) for some in (frames, shuffled))  # type: ignore[arg-type]
    assert a.tolist() == pytest.approx(b.tolist(), rel=1e-12)


@given(frames=LEDGERS, names=st.permutations(range(4)))
def test_the_numbers_of_clients_mean_nothing(frames: list[Any], names: list[int]) -> None:
    speeds = plain([1e5, 2e5, 1e6, 3e4], [4e5, 1e5, 1e6, 9e4], [0.1, 0.0, 0.02, 0.3], sample=0.1)
    places = np.argsort(names)  # client names[i] now has what i had
    moved = Speeds(*(getattr(speeds, name)[places] for name in speeds.__slots__))
    renamed = [(t, names[i], way, octets) for t, i, way, octets in frames]
    a, b = clock(speeds, 2).timing(columns(*frames)), clock(moved, 2).timing(columns(*renamed))
    assert a.seconds.tolist() == pytest.approx(b.seconds.tolist(), rel=1e-12)
    assert a.late.tolist() == b.late.tolist()


@given(
    frames=LEDGERS,
    more=arrays.arrays(np.int64, 30, elements=st.integers(0, 10**5)),
    profile=st.sampled_from(sorted(PROFILES)),
    deadline=st.sampled_from([0.0, 0.5]),
)
def test_more_bytes_never_take_less(frames: list[Any], more: np.ndarray, profile: str, deadline: float) -> None:
    network = PROFILES[profile](deadline_s=deadline)
    fewer, many = columns(*frames), columns(*frames)
    many["frame_bytes"] = many["frame_bytes"] + more[: len(frames)]
    a, b = (round_seconds(some, network, 4, 3, samples=20.0) for some in (fewer, many))  # type: ignore[arg-type]
    assert (a <= b * (1 + 1e-12)).all()


def test_jitter_is_added_each_way() -> None:
    network, none = Mobile(jitter_s=0.5), Mobile(jitter_s=0.0)
    frames = columns((4, 2, "down", 100), (4, 2, "up", 100), (4, 1, "down", 100))
    late = delays(speeds_of(network, 3, 7), 7, np.array([4, 4]), np.array([1, 2]))
    for some, extra in ((frames, late[1].sum()), ({k: v[2:] for k, v in frames.items()}, late[0, 0])):
        a, b = (round_seconds(some, one, 3, 7)[4] for one in (network, none))
        assert a - b == pytest.approx(extra, rel=1e-9)


def test_one_round_of_lines_lasts_what_the_ledger_says() -> None:
    network = Mobile(deadline_s=0.4)
    clocked = Clock.of(network, np.full(6, 30.0), 9)
    clients = np.array([1, 4, 5])

    def lines(way: Direction, of: np.ndarray, octets: int) -> Lines:
        ones = np.ones_like(of)
        return Lines(2, way, Entry.UPLOAD, of, ones, ones.astype(np.float64), 8 * ones, octets * ones)

    some = [lines(Direction.DOWN, clients, 900), lines(Direction.UP, clients[:2], 40_000)]
    timing = clocked.timing(columns_of(some))
    assert clocked.lasted(some) == (timing.seconds[2], timing.slowest[2], timing.late[2])
    assert clocked.lasted([]) == clocked.lasted([lines(Direction.UP, clients[:0], 1)]) == (0.0, -1, 0)


def test_samples_of_a_round() -> None:
    sizes = np.array([3.0, 10.0])
    assert samples_of(Local(), sizes).tolist() == [3, 10]
    assert samples_of(Local(steps=4, batch=5), sizes).tolist() == [12, 20]
    assert samples_of(Local(epochs=2, batch=5, order="reshuffle"), sizes).tolist() == [6, 20]


TABLES: dict[str, Any] = {
    "rounds": 12,
    "seed": 4,
    "data": {"source": "synthetic-linear", "clients": 8, "per_client": 15, "features": 5},
    "participation": {"scheme": "bernoulli", "p": 0.5},
    "run": {"evaluate_every": 3, "checkpoint_every": 4, "executor": "sequential"},
}


def test_a_run_says_what_its_ledger_gives(tmp_path: Path) -> None:
    experiment = Experiment.of(**TABLES, network={"profile": "4g", "sample_s": 0.01})
    result = fedsim.run(experiment, tmp_path / "run")
    ledger = read_lines(tmp_path / "run" / "ledger.csv")
    seconds = round_seconds(ledger, experiment.network, 8, 4, samples=15.0, rounds=12)  # type: ignore[arg-type]
    said = {one["round"]: one["seconds"] for one in result.metrics}
    assert said == {t: pytest.approx(seconds[:t].sum(), rel=1e-12) for t in (0, 3, 6, 9, 12)}
    timing = np.genfromtxt(tmp_path / "run" / "timing.csv", delimiter=",", names=True)
    assert timing["round"].tolist() == list(range(12))
    assert timing["seconds"].tolist() == pytest.approx(seconds.tolist(), rel=1e-12)
    assert timing["late"].tolist() == [0] * 12


def test_a_profile_alone_changes_no_model_and_no_byte(tmp_path: Path) -> None:
    plain = fedsim.run(Experiment.of(**TABLES), tmp_path / "plain")
    timed = fedsim.run(Experiment.of(**TABLES, network={"profile": "iot"}), tmp_path / "timed")
    assert timed.digest == plain.digest
    assert (tmp_path / "timed" / "ledger.csv").read_bytes() == (tmp_path / "plain" / "ledger.csv").read_bytes()
    assert "seconds" not in plain.metrics[-1]
    assert not (tmp_path / "plain" / "timing.csv").exists()


class StopAt:
    def __init__(self, round: int) -> None:
        self.round = round

    def started(self, setup: Setup, metrics: Metrics) -> None: ...

    def played(self, round: int, up: Cost, down: Cost) -> None:
        if round == self.round:
            raise StoppedError("by the test")

    def evaluated(self, metrics: Metrics) -> None: ...


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_a_stopped_run_resumes_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    network = {"profile": "4g", "deadline_s": 0.5, "availability": 0.8}
    experiment = Experiment.of(**TABLES, network=network)
    whole = fedsim.run(experiment, tmp_path / "whole")
    with pytest.raises(StoppedError):
        fedsim.run(experiment, tmp_path / "stopped", StopAt(stop))
    resumed = fedsim.resume(tmp_path / "stopped")
    assert resumed.digest == whole.digest
    for log in ("ledger.csv", "metrics.jsonl", "timing.csv"):
        assert (tmp_path / "stopped" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
    late = [int(line.split(",")[3]) for line in (tmp_path / "whole" / "timing.csv").read_text().splitlines()[1:]]
    assert any(late)
    assert json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"] > 1


def test_a_trace_that_changed_is_not_resumed(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "lines.csv"
    text = "client,up_mbps,down_mbps,latency_s\n" + "".join(f"{i},1,1,0.1\n" for i in range(8))
    file.write_text(text)
    experiment = Experiment.of(**TABLES, network={"profile": "trace", "file": str(file)})
    with pytest.raises(StoppedError):
        fedsim.run(experiment, tmp_path / "run", StopAt(5))
    file.write_text(text.replace("7,1,", "7,2,"))
    with refused(CheckpointError, "network.file is not what this run began with"):
        fedsim.resume(tmp_path / "run")
    file.write_text(text)
    assert fedsim.resume(tmp_path / "run").metrics[-1]["round"] == 12


def test_the_mean_stays_unbiased_when_clients_are_away(tmp_path: Path) -> None:
    """E sum over the cohort of v_i / p_i = 1 for one client and for all, with chances of their own; 4000 rounds."""
    file = tmp_path / "lines.csv"
    chances = [1.0, 0.5, 0.25, 0.9, 0.8, 0.7, 0.6, 0.3]
    rows = "".join(f"{i},1,1,0,{chance}\n" for i, chance in enumerate(chances))
    file.write_text("client,up_mbps,down_mbps,latency_s,availability\n" + rows)
    for network in ({"profile": "trace", "file": str(file)}, {"profile": "fibre", "availability": 0.5}):
        setup = prepare(Experiment.of(**TABLES, network=network))
        count, total = 4_000, np.zeros(8)
        for t in range(count):
            cohort = setup.cohort(t)
            total[cohort.clients.numpy()] += np.broadcast_to(1 / np.asarray(cohort.probability), len(cohort.clients))
        p = 0.5 * setup.clock.speeds.availability  # type: ignore[union-attr]
        deviation = np.sqrt((1 / p - 1) / count)  # of the mean of coins divided by p
        assert (np.abs(total / count - 1) < 6 * deviation).all()


def test_clients_that_are_away_have_no_line_in_the_ledger(tmp_path: Path) -> None:
    experiment = Experiment.of(**TABLES, network={"profile": "fibre", "availability": 0.4})
    fedsim.run(experiment, tmp_path / "run")
    without = fedsim.run(Experiment.of(**TABLES), tmp_path / "without")
    some, all = (read_lines(tmp_path / name / "ledger.csv") for name in ("run", "without"))
    pairs = [set(zip(one["round"].tolist(), one["client"].tolist(), strict=True)) for one in (some, all)]
    assert pairs[0] < pairs[1]
    assert without.metrics[-1]["round"] == 12


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"whitening": {"mode": "shared"}, "server": {"step": 0.1}}, "whitening.mode = 'shared' needs all of them"),
        ({"uplink": {"initial": "gradient"}, "participation": {"scheme": "full"}}, "uplink.initial = 'gradient' needs"),
        ({"algorithm": "mcm"}, "downlink.memory = "),
    ],
)
def test_what_cannot_lose_messages_has_no_deadline(tables: dict[str, Any], said: str, refused: Refused) -> None:
    with refused(ConfigError, "network.deadline_s = 2.0 loses messages, but ", said, "or deadline_s = 0"):
        prepare(Experiment.of(**{**TABLES, **tables}, network={"profile": "4g", "deadline_s": 2.0}))


def test_what_calls_all_clients_finds_them(refused: Refused) -> None:
    network = {"profile": "4g", "availability": 0.5}
    with refused(ConfigError, "uplink.synchronise = ", "some are not there", "use availability = 1"):
        prepare(Experiment.of(**TABLES, algorithm="marina", network=network))
    with refused(ConfigError, "uplink.initial = 'gradient' needs every client in the first round"):
        full = {**TABLES, "participation": {"scheme": "full"}}
        prepare(Experiment.of(**full, uplink={"initial": "gradient"}, network=network))


def test_computing_takes_time_only_where_samples_are_counted() -> None:
    frames = columns((0, 0, "down", 100), (0, 0, "up", 100))
    slow, trace = DataCentre(sample_s=2.0), DataCentre(sample_s=0.0)
    assert round_seconds(frames, slow, 1, 0).tolist() == round_seconds(frames, trace, 1, 0).tolist()
    each = round_seconds(frames, slow, 1, 0, samples=np.array([3.0])) - round_seconds(frames, slow, 1, 0)
    assert each.tolist() == pytest.approx([6.0])
    assert Trace.__struct_config__.tag == "trace"
