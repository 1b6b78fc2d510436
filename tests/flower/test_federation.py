"""The federation of real Flower processes that the tests of deployment stand on: it starts, breaks, heals and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flower.federation import Federation, FlowerError, end, marked
from tests.flower.measure import FEDAVG, play_fedavg, sockets

PARAMETERS = 250_000


def marks(federation: Federation) -> list[str]:
    return [program.mark for program in (federation.link, *federation.nodes)]


@pytest.mark.slow
def test_a_round_of_flower_through_proxies_and_nothing_left(tmp_path: Path) -> None:
    """FedAvg's models pass the proxies both ways, little else does; an app that fails says why; all processes end."""
    with Federation(tmp_path / "f", count=2, proxied=True) as federation:
        rounds = play_fedavg(federation, str(PARAMETERS), 2)
        assert len(rounds) == 2
        seen = sockets(federation, rounds)
        assert 4 * PARAMETERS < seen.up < 4 * PARAMETERS * 1.05
        assert 4 * PARAMETERS < seen.down < 4 * PARAMETERS * 1.05
        failed = federation.run(FEDAVG, {"shapes": "many"})
        with pytest.raises(FlowerError, match=r"finished:failed:(.|\n)*invalid literal for int"):
            failed.completed()
        started = marks(federation)
        assert all(len(marked(mark)) >= 2 for mark in started), "each starts a SuperExec"
    assert [marked(mark) for mark in started] == [[], [], []]


@pytest.mark.slow
def test_a_killed_node_comes_back_as_another_and_a_killed_link_with_its_database(tmp_path: Path) -> None:
    with Federation(tmp_path / "f", count=2, database=True) as federation:
        play_fedavg(federation, "10", 1)
        node = federation.nodes[1]
        before = node.mark
        node.kill()
        assert marked(before) == []
        node.start()
        federation.wait_for_node(node, starts=2)
        federation.link.kill()
        assert not federation.healthy()
        federation.start_link()
        for each in federation.nodes:
            assert each.process is not None
            assert each.process.poll() is None
        assert [run["status"] for run in federation.flwr("list", "here", "--format", "json")["runs"]] == [
            "finished:completed"
        ]
        play_fedavg(federation, "10", 1)


def test_a_federation_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    broken = Federation(tmp_path / "f", count=1, config=lambda node, nodes: "partition-id==")
    with pytest.raises(FlowerError, match=r"supernode-0 ended with status \d+:(.|\n)*configuration string"), broken:
        pass
    assert [marked(mark) for mark in marks(broken)] == [[], []]


def test_ending_what_has_ended() -> None:
    end("nobody")
