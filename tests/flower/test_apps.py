"""The two apps by themselves: what is in their messages, what they import, and what Flower makes of their folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from client import records
from client.records import Hello
from fedsim.cli.flower import QUIET
from fedsim.errors import WireError, one_line
from server.inprocess import InProcessGrid
from server.post import octets_of
from tests.flower.driven import ARTEMIS, assert_same, experiment

ROOT = Path(__file__).resolve().parents[2]

client_numbers = st.integers(0, 2**31)
replies = st.lists(st.tuples(client_numbers, st.lists(st.binary(max_size=40), max_size=3).map(tuple)), max_size=5)
troubles = st.lists(st.tuples(client_numbers, st.text(max_size=20)), max_size=3)


def sent(content: RecordDict) -> RecordDict:
    """What arrives of a content, through the bytes of Flower's own objects."""
    found = {name: ConfigRecord.inflate(record.deflate()) for name, record in content.items()}
    return RecordDict(found)


@given(st.lists(st.binary(max_size=40), max_size=5), replies, troubles)
def test_records_arrive_as_they_left(
    frames: list[bytes], answers: list[records.Reply], excuses: list[records.Trouble]
) -> None:
    assert records.call_of(sent(records.of_call(frames))) == frames
    lines = [(client, one_line(why)) for client, why in excuses]
    assert records.answer_of(sent(records.of_answer(answers, excuses))) == (answers, lines)


def test_a_hello_arrives_as_it_left() -> None:
    hello = Hello(2, 3, "0.1.0", "")
    assert records.hello_of(sent(records.of_hello(hello))) == hello


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"clients": [1], "counts": [2], "frames": [b"x"]}, "an answer with 1 clients, 1 counts and 1 frames"),
        ({"clients": [1], "counts": [1, 0], "frames": [b"x"]}, "an answer with 1 clients, 2 counts and 1 frames"),
        ({"clients": [1, 2], "counts": [2, -1], "frames": [b"x"]}, "an answer with 2 clients"),
        ({"clients": [1.0], "counts": [0]}, "'clients' is not a list of int"),
        ({"clients": [True], "counts": [0]}, "'clients' is not a list of int"),
        ({"clients": 3}, "'clients' is not a list of int"),
        ({"clients": [1], "counts": [1], "frames": ["text"]}, "'frames' is not a list of bytes"),
        ({"troubles": ["no number"]}, "a trouble 'no number' that names no client"),
        ({"troubles": ["-1: below"]}, "a trouble '-1: below' that names no client"),
    ],
)
def test_an_answer_that_is_none(record: dict[str, object], expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        records.answer_of(RecordDict({"answer": ConfigRecord(record)}))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="without the record 'call'"):
        records.call_of(RecordDict({"answer": ConfigRecord({})}))
    with pytest.raises(WireError, match="a hello with nothing"):
        records.hello_of(RecordDict({"hello": ConfigRecord({})}))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_size_of_a_message_is_that_of_flowers_objects(count: int) -> None:
    """The quick way to measure it uses private names of Flower; this one asks each object by itself."""
    InProcessGrid(lambda message, context: message, {}, 0)  # type: ignore[arg-type]
    message = Message(records.of_call([b"a frame"] * count), 5, "train", ttl=60.0, group_id="1")
    reply = Message(records.of_answer([(3, (b"x" * 1000,))], []), reply_to=message)
    for one in (message, reply):
        parts = get_all_nested_objects(one)
        assert len(parts) == 3
        assert octets_of(one) == sum(len(part.deflate()) for part in parts.values())
    assert 1000 < octets_of(reply) < 1600


SCRIPT = """
import json, sys
from flwr.app import Context, Message, RecordDict
from client import records
from client.app import app
from server.inprocess import InProcessGrid

address, text, frames = json.loads(sys.stdin.read())
config = {"partition-id": 0, "num-partitions": 1, "worker": address}
grid = InProcessGrid(app, {"experiment": text}, 1, config=[config])
query = Message(records.of_call(()), 1000, "query")
train = Message(records.of_call([bytes.fromhex(frame) for frame in frames]), 1000, "train")
hello, answer = grid.pull_messages(grid.push_messages([query, train]))
print(json.dumps([
    records.hello_of(hello.content).trouble,
    answer.error.reason if answer.has_error() else [len(f) for _, f in records.answer_of(answer.content)[0]],
    [name for name in ("torch", "numpy", "sklearn", "ray") if name in sys.modules],
]))
"""


def relayed(address: str, text: str, frames: list[str]) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([address, text, frames]),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_client_app_with_a_worker_never_imports_torch(tmp_path: Path) -> None:
    """With nobody there, and with a real worker that plays the first round of a client."""
    from fedsim.ends.host import alone
    from fedsim.ends.server import ServerEnd

    given = experiment(ARTEMIS)
    address = f"unix:{tmp_path / 'w.sock'}"
    trouble, failed, imported = relayed(address, given.toml(), [])
    assert str(trouble) == str(failed)
    assert str(trouble).startswith(f"no worker at {address}")
    assert "torch" not in imported  # type: ignore[operator]
    (frame,) = ServerEnd(alone(given)).call(2)
    command = [sys.executable, "-m", "fedsim.cli.main", "worker", "--socket", str(tmp_path / "w.sock")]
    worker = subprocess.Popen(
        [*command, "--folder", str(tmp_path / "state")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        trouble, frames, imported = relayed(address, given.toml(), [frame.hex()])
    finally:
        worker.terminate()
        worker.communicate()
    assert (trouble, frames) == ("", [1])
    assert "torch" not in imported  # type: ignore[operator]


def flwr(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [str(Path(sys.executable).with_name("flwr")), *arguments],
        cwd=cwd,
        env=os.environ | QUIET | {"FLWR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def check_bundle(app: Path, folder: Path) -> None:
    """Flower's bundle of an app folder has the two apps and nothing else."""
    done = flwr("build", "--app", str(app), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = folder.glob("*.fab")
    with zipfile.ZipFile(bundle) as content:
        names = {name for name in content.namelist() if not name.startswith(".info/")}
    sources = {f"{part}/{file.name}" for part in ("client", "server") for file in (ROOT / part).glob("*.py")}
    # What starts a SuperLink or plays without one is no node's business.
    assert names == {"pyproject.toml", *sources} - {"server/gate.py", "server/inprocess.py"}
    assert bundle.stat().st_size < 40_000


def test_the_bundle_is_the_two_apps(tmp_path: Path) -> None:
    """Whatever else the checkout holds. A copy, as the checkout may have a name that ``flwr build`` refuses."""
    app = tmp_path / "app"
    copy(app, "pyproject.toml", "server", "client", "fedsim", "README.md", "LICENSE")
    check_bundle(app, tmp_path)


@pytest.mark.slow
def test_an_installed_wheel_has_the_app(tmp_path: Path) -> None:
    """Not as packages: ``import server`` fails there, and ``fedsim run --engine flower-in-process`` finds it."""
    source, place = tmp_path / "source", tmp_path / "venv"
    copy(source, "pyproject.toml", "README.md", "LICENSE", "fedsim", "server", "client")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("fedsim-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = str(place / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", str(wheel)], check=True)
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def say(code: str) -> str:
        return subprocess.run(
            [python, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert Path(say("import fedsim; print(fedsim.__file__)")).is_relative_to(packages)
    assert say("import importlib.util as u; print(u.find_spec('server'), u.find_spec('client'))") == "None None"
    app = Path(say("import fedsim.cli.flower as f; print(f.app_folder())"))
    assert app == place / "share" / "fedsim" / "app"
    check_bundle(app, tmp_path)
    (tmp_path / "x.toml").write_text(experiment(ARTEMIS).toml())
    command = [python, "-P", "-m", "fedsim.cli.main", "run", "x.toml", "--folder", "served"]
    done = subprocess.run(
        [*command, "--engine", "flower-in-process", "--nodes", "2"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    fedsim.run(experiment(ARTEMIS), tmp_path / "simulated")
    assert_same(tmp_path / "served", tmp_path / "simulated")


def copy(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
