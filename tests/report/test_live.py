"""The page of a run that goes: who may ask, what is told, and when it ends."""

from __future__ import annotations

import html
import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import CheckpointError
from fedsim.reporting.live import Watched, serving, wait


def fresh(source: Path, folder: Path, lines: int, status: str = "running") -> Path:
    """A run as it was after so many evaluations."""
    shutil.copytree(source, folder)
    metrics = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(metrics[:lines]))
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts | {"status": status}))
    return folder


def ask(
    address: str, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()


@pytest.fixture
def going(runs: Path, tmp_path: Path) -> Path:
    return fresh(runs / "sgd-0", tmp_path / "run", 4)


@pytest.fixture
def served(going: Path) -> Iterator[tuple[str, Watched]]:
    watched = Watched([going], "live")
    with serving(watched) as address:
        yield address, watched


def test_the_page_and_its_data(served: tuple[str, Watched]) -> None:
    address, watched = served
    status, headers, body = ask(address)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in html.unescape(body.decode())
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, _, body = ask(address, "/data.json")
    data = json.loads(body)
    assert status == 200
    assert data["live"]
    assert data["groups"][0]["curves"]["loss"]["rounds"]["x"] == [0, 3, 6, 9]
    assert not watched.told.is_set()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example:{port}", ""])
def test_another_name_reads_nothing(served: tuple[str, Watched], host: str) -> None:
    """A page from elsewhere, whose name was made to point here, still sends its own name."""
    port = served[0].split(":")[2].strip("/")
    for path in ("/", "/data.json"):
        status, _, body = ask(served[0], path, host=host.format(port=port))
        assert status == 403
        assert len(body) < 100


def test_only_this_machine_is_listened_to(served: tuple[str, Watched]) -> None:
    port = int(served[0].split(":")[2].strip("/"))
    assert ask(served[0], host=f"localhost:{port}")[0] == 200
    with socket.create_server(("127.0.0.2", port)):  # would be taken if every address were
        pass


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_written(served: tuple[str, Watched], method: str) -> None:
    assert ask(served[0], method=method)[0] == 501


@pytest.mark.parametrize("path", ["/experiment.toml", "/../manifest.json", "/data.json?x", "/%2e%2e/"])
def test_nothing_else_can_be_read(served: tuple[str, Watched], path: str) -> None:
    assert ask(served[0], path)[0] == 404


def test_news_are_told(runs: Path, going: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.reporting.live.SHORTEST", 0.0)
    monkeypatch.setattr("fedsim.reporting.live.PATIENCE", 0.0)
    watched = Watched([going], "live")

    def rounds() -> int:
        found: list[int] = watched.report()["groups"][0]["curves"]["loss"]["rounds"]["x"]
        return len(found)

    assert rounds() == 4
    lines = (runs / "sgd-0" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (going / "metrics.jsonl").open("ab") as file:
        file.write(lines[4])
        file.write(lines[5][:-9])  # being written
    assert rounds() == 5
    (going / "experiment.toml").rename(going / "away")  # the folder cannot be read for a moment
    os.utime(going / "metrics.jsonl", ns=(1, 1))
    assert rounds() == 5
    (going / "away").rename(going / "experiment.toml")
    assert not watched.report()["ended"]
    shutil.copy(runs / "sgd-0" / "manifest.json", going)
    assert watched.report()["ended"]


def test_a_large_run_is_not_read_all_the_time(going: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    watched = Watched([going], "live")
    first = watched.report()
    monkeypatch.setattr("fedsim.reporting.live.find_runs", lambda paths: reads.append(paths))
    with (going / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert watched.report() is first
    assert reads == []


def test_what_is_no_run_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        Watched([tmp_path], "live").report()


def test_it_ends_once_the_end_was_told(runs: Path, tmp_path: Path) -> None:
    watched = Watched([fresh(runs / "sgd-0", tmp_path / "run", 11, "finished")], "live")
    with serving(watched) as address:
        waiting = threading.Thread(target=wait, args=(watched, 600.0))
        waiting.start()
        ask(address)
        assert waiting.is_alive()
        ask(address, "/data.json")
        waiting.join(10)
        assert not waiting.is_alive()
    with pytest.raises(OSError, match="refused"):
        ask(address)


def test_it_ends_when_nobody_looks(runs: Path, tmp_path: Path) -> None:
    watched = Watched([fresh(runs / "sgd-0", tmp_path / "run", 11, "finished")], "live")
    began = time.monotonic()
    wait(watched, 0.5)
    assert time.monotonic() - began >= 0.5
    assert not watched.told.is_set()
