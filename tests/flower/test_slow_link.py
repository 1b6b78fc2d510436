"""Machines behind a link of 1 Mbit/s, 200 ms each way, 5 % loss, and one that is cut for 30 s; each and all together.

Two SuperNodes in a network namespace: ``pytest -m slow tests/flower/test_slow_link.py -s`` prints, for each case,
seconds a round and, each way, what crossed. Of the narrow link's goodput two figures: frames against what the link
could carry while its queue held any, which must be 90 %, and while a model was crossing, when the link may also await
SuperNode and SuperLink: printed, not asserted. All runs are the simulator's, to the byte. Root is needed.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedsim.experiment import Experiment
from fedsim.simulation.run import run
from tests.flower.deployed import Deployment, deployment, instants_of, watched
from tests.flower.driven import rows
from tests.flower.slow_link import Fault, Link, Packet

RATE, DELAY, LOSS, CUT = 1e6, 0.2, 0.05, 30.0
STILL = 1.0
"""Seconds without a byte that end a burst: longer than a round trip."""
BULK = 100_000
"""Bytes of a burst that carries a model, and not what idle SuperNodes say."""

LINEAR: dict[str, Any] = {"data": {"source": "synthetic-linear", "clients": 4, "per_client": 20, "features": 20}}
SMALL = {**LINEAR, "participation": {"scheme": "bernoulli", "p": 0.5}, "rounds": 4}
LARGE = {
    "algorithm": "sgd",
    "rounds": 3,
    "data": {"source": "digits"},
    "partition": {"scheme": "iid", "clients": 2},
    "task": {"kind": "mlp", "hidden": [3_333]},
    "participation": {"scheme": "full"},
    "server": {"step": 0.1},
}
"""1 MB each way, each round and each client."""
CASES: dict[str, tuple[dict[str, Any], Fault, bool]] = {
    "none": (SMALL, Fault(), False),
    "1 Mbit/s": (LARGE, Fault(rate=RATE), False),
    "200 ms": (SMALL, Fault(delay=DELAY), False),
    "5 % loss": (SMALL, Fault(loss=LOSS), False),
    "cut for 30 s": (SMALL, Fault(), True),
    "together": (SMALL, Fault(RATE, DELAY, LOSS), True),
}


@pytest.fixture(scope="module")
def two(link: Link, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("two") / "f", machines=2, links=[link]) as made:
        yield made


@dataclass(frozen=True)
class Crossed:
    """One way. octets: of IP packets; data: of TCP's streams; again: of these, sent before; bursts: seconds of bulk."""

    octets: int
    data: int
    again: int
    busy: float
    bursts: float

    @staticmethod
    def of(packets: Sequence[Packet]) -> Crossed:
        """What crossed; the last bit of a burst's last packet ends it."""
        bursts: list[list[Packet]] = []
        for one in packets:
            if not bursts or one.start - bursts[-1][-1].end > STILL:
                bursts.append([])
            bursts[-1].append(one)
        return Crossed(
            sum(one.octets for one in packets),
            data := sum(one.data for one in packets),
            data - sum(one.fresh for one in packets),
            sum(one.end - one.start for one in packets),
            sum(b[-1].end - b[0].start for b in bursts if sum(one.octets for one in b) > BULK),
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_over_a_slow_link_is_the_simulation(
    case: str, two: Deployment, link: Link, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, fault, cut = CASES[case]
    given = Experiment.of(**tables, seed=11, run={"executor": "sequential", "evaluate_every": 1})
    simulated, folder = tmp_path / "simulated", tmp_path / "deployed"
    run(given, simulated)
    number = two.submit(given, folder)
    link.fault, (since_up, since_down) = fault, (len(link.up.packets), len(link.down.packets))
    try:
        with watched(folder / "ledger.csv") as instants:
            if cut:
                instants_of(instants, 2, seconds=300)
                time.sleep(1.0)
                link.fault = Fault(cut=True)
                time.sleep(CUT)
                link.fault = fault
            two.federation.wait(number, 600).completed()
        ways = [Crossed.of(way.packets[since:]) for way, since in ((link.up, since_up), (link.down, since_down))]
    finally:
        link.fault = Fault()
    assert (folder / "model.safetensors").read_bytes() == (simulated / "model.safetensors").read_bytes()
    assert (folder / "ledger.csv").read_bytes() == (simulated / "ledger.csv").read_bytes()
    assert [one for one in rows(folder / "incidents.csv") if one["what"] in ("absent", "rejected")] == []
    keys = Counter((one["round"], one["client"], one["direction"], one["kind"]) for one in rows(folder / "ledger.csv"))
    assert set(keys.values()) == {1}
    lasted = [b - a for a, b in pairwise(instants)]
    goodput: list[float] = []
    with capsys.disabled():
        print(f"\n{case}: rounds of {', '.join(f'{one:.1f}' for one in lasted)} s", end="")
        print(f", median {statistics.median(lasted):.1f}; incidents {len(rows(folder / 'incidents.csv'))}")
        for name, way in zip(("up", "down"), ways, strict=True):
            frames = sum(int(one["frame_bytes"]) for one in rows(folder / "messages.csv") if one["direction"] == name)
            print(f"  {name}: {frames} bytes of frames, {way.data} of TCP's streams", end="")
            print(f" ({way.again / max(1, way.data):.2%} again), {way.octets} of packets", end="")
            if fault.rate and not cut:
                bulk, busy = (8 * frames / max(seconds, 1e-9) / RATE for seconds in (way.bursts, way.busy))
                goodput.append(busy)
                print(f"; busy {way.busy:.1f} s, bulk {way.bursts:.1f} s: frames are {bulk:.1%} of the rate", end="")
                print(f" in bulk, {busy:.1%} when busy", end="")
            print()
    if case == "1 Mbit/s":
        assert min(goodput) >= 0.9


def test_a_link_has_its_rate_and_its_delay_and_cuts(link: Link) -> None:
    """From the packets: 100 kB take 0.8 s at least at 1 Mbit/s, arrive whole through loss, and not through a cut."""
    code = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).sendall(bytes(100_000))"
    for fault in (Fault(rate=RATE), Fault(delay=0.05, loss=LOSS)):
        link.fault, since = fault, len(link.up.packets)
        with socket.create_server((link.here, 0)) as server:
            server.settimeout(60)
            words = [sys.executable, "-c", code, link.here, str(server.getsockname()[1])]
            with subprocess.Popen([*link.inside, *words]) as process, server.accept()[0] as stream:
                assert len(b"".join(iter(lambda s=stream: s.recv(65536), b""))) == 100_000  # type: ignore[misc]
            assert process.returncode == 0
        sent = link.up.packets[since:]
        assert sum(one.fresh for one in sent) == 100_000
        assert all(one.arrived for one in sent) == (not fault.loss)
        if fault.rate:
            assert sent[-1].end - sent[0].start >= 8 * sum(one.octets for one in sent) / RATE - 0.001
    link.fault = Fault(cut=True)
    with socket.create_server((link.here, 0)) as server:
        server.settimeout(0.5)
        with subprocess.Popen([*link.inside, *words[:-1], str(server.getsockname()[1])]) as process:
            with pytest.raises(TimeoutError):
                server.accept()
            process.kill()
    link.fault = Fault()
