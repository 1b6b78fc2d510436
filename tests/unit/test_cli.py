"""The command line: what it prints, where it leaves runs, how long it takes to start."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import runpy
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from fedsim.cli import doctor, main, play, text, view
from fedsim.errors import StoppedError
from fedsim.experiment import Experiment
from fedsim.ledger import Cost, read_totals
from fedsim.simulation.comparison import Comparison
from fedsim.simulation.forecast import forecast
from fedsim.simulation.run import Result, run


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[[str], Outcome]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``cli("run --set rounds=3")`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(line: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fedsim", *line.split()])
        status = 0
        try:
            main.main()
        except SystemExit as left:
            status = int(left.code or 0)
        return Outcome(status, *capsys.readouterr())

    return command


SMALL = "--set data.source=synthetic-linear --set data.clients=6 --set data.per_client=10 --set run.baseline=false"
TINY = f"{SMALL} --set participation.scheme=k-of-n --set participation.k=2 --set rounds=6 --set run.evaluate_every=1"


HEAVY = ("torch", "numpy", "scipy", "sklearn", "safetensors", "numba", "constriction", "flwr", "fedsim.simulation")
"""What --help does without: torch alone takes longer than the half second that it may."""


def imported(code: str, modules: tuple[str, ...], *arguments: str) -> tuple[str, str]:
    """(what code printed, which of the modules it imported) in a process of its own."""
    found = f"print([name for name in {modules} if name in sys.modules], file=sys.stderr)"
    code = f"import sys\ntry: {code}\nfinally: {found}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("argument", ["--help", "--version", ""])
def test_help_and_version_do_not_wait_for_torch(argument: str) -> None:
    run = "sys.argv[0] = 'fedsim'; from fedsim.cli.main import main; main()"
    out, found = imported(run, HEAVY, *argument.split())
    assert ("fedsim 0.1.0" if argument == "--version" else "Usage: fedsim") in out
    assert found == "[]\n"


def test_the_package_imports_nothing_before_it_is_used() -> None:
    assert imported("import fedsim", HEAVY) == ("", "[]\n")


@pytest.mark.parametrize(("kind", "chunk"), [("softmax", 2), ("mlp", 2), ("mlp", 1)])
def test_a_run_imports_no_library_that_it_does_not_use(kind: str, chunk: int) -> None:
    """scipy.signal takes half a second, sympy one, which torch imports for a gradient that starts at a tensor."""
    code = (
        "import fedsim; fedsim.run(fedsim.Experiment.of(algorithm='artemis', rounds=2, server={'step': 0.1}, "
        "data={'source': 'synthetic-logistic', 'clients': 4, 'per_client': 4}, local={'step': 0.1}, "
        f"task={{'kind': {kind!r}}}, run={{'chunk': {chunk}}}))"
    )
    unused = ("sympy", "scipy.signal", "scipy.stats", "sklearn", "torch._dynamo", "matplotlib")
    assert imported(code, unused) == ("", "[]\n")


def test_help_names_every_command(cli: Cli) -> None:
    out = cli("--help").out
    assert cli("").out == out
    for name in ("run", "resume", "cost", "recipes", "data", "doctor", "messages", "worker"):
        assert re.search(rf"\b{name} ", out)
        assert "Usage: fedsim " + name in cli(f"{name} --help").out


def test_run_prints_what_runs_and_what_it_cost(cli: Cli) -> None:
    outcome = cli(f"run {TINY} --folder mine")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert re.fullmatch(
        r"  synthetic-linear · 6 clients \(natural\), 33\.3 % take part · artemis · 20 parameters · step [\d.e-]+",
        lines[0],
    )
    assert [re.match(r"  round (\d)/6  ", line)[1] for line in lines[1:4]] == ["1", "2", "3"]  # type: ignore[index]
    assert all(re.search(r"  loss \d+\.\d{4}  up \d+ B  down [\d.]+ k?B", line) for line in lines[1:4])
    ledger = read_totals(Path("mine/ledger.csv"))
    up = sum((cost for (way, _), cost in ledger.items() if way.value == "up"), Cost())
    assert f"  up {text.size(up.frame_bytes)}, down " in lines[-2]
    sha = json.loads(Path("mine/manifest.json").read_text())["model_sha256"]
    assert lines[-1] == f"  model {sha[:16]}  in mine"
    assert sorted(path.name for path in Path("mine").iterdir()) == [
        *("checkpoint", "experiment.toml", "ledger.csv", "manifest.json", "metrics.jsonl", "model.safetensors")
    ]


def test_device_is_found(cli: Cli) -> None:
    assert cli(f"run {TINY} --set run.device=auto").status == 0


def test_runs_get_folders_of_their_own(cli: Cli) -> None:
    for _ in range(3):
        assert cli(f"run {TINY}").status == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 3
    assert re.fullmatch(r"artemis-[0-9a-f]{6}", names[0])
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


@pytest.mark.parametrize(("rounds", "every"), [(400, 10), (37, 1), (21, 3), (400, 1000), (1, 1)])
def test_plain_lines_are_few(cli: Cli, rounds: int, every: int) -> None:
    """About every twentieth of the rounds and the last; the round of the measures where it is another."""
    out = cli(f"run {SMALL} --set rounds={rounds} --set run.evaluate_every={every} --set algorithm=sgd").out
    lines = re.findall(r"^  round (\d+)/\d+  (.*)$", out, flags=re.MULTILINE)
    assert len(lines) <= 21
    assert int(lines[-1][0]) == rounds
    assert len(lines) >= min(rounds, 10)
    for number, words in lines:
        stale = re.search(r"\(round (\d+)\)", words)
        assert (stale is None) == (int(number) % every == 0 or int(number) == rounds)
        assert stale is None or int(stale[1]) == int(number) // every * every


def test_uncompressed_runs_do_not_boast(cli: Cli) -> None:
    out = cli(f"run {TINY} --set algorithm=sgd --set run.baseline=true").out
    assert "fewer" not in out
    assert "without compression" not in out
    assert not Path("runs").glob("*/uncompressed") or not list(Path("runs").glob("*/uncompressed"))
    compressed = cli(f"run {TINY} --set rounds=20").out
    assert re.search(r"1\.\dx fewer bytes a round than uncompressed", compressed)


def test_baseline_says_what_compression_saves(cli: Cli) -> None:
    options = "--set rounds=60 --set partition.clients=20 --set participation.k=10 --set run.baseline=true"
    out = cli(f"run {options} --folder b").out
    assert "\nthe same without compression, until it reaches the same loss:\n" in out
    found = re.search(
        r"loss \S+ was reached after (\d+) rounds and (\S+) kB with compression, after (\d+) rounds "
        r"and (\S+) MB without:\n"
        r"  (\S+)x fewer bytes to the same loss \(frames both ways; both were run, at the same step size\)\n",
        out,
    )
    assert found
    assert float(found[5]) == pytest.approx(1000 * float(found[4]) / float(found[2]), rel=0.02)
    assert float(found[5]) > 1
    assert Path("b/uncompressed/model.safetensors").exists()
    again = cli("resume b").out
    assert "  this run was finished already\n" in again
    assert again.splitlines()[-2:] == out.splitlines()[-2:]


def result(loss: float, rounds: int) -> Result:
    experiment = Experiment.of(data={"source": "synthetic-linear", "clients": 2, "per_client": 3}, rounds=1)
    metrics = [{"round": rounds, "loss": loss, "up_bytes": 1, "down_bytes": 1}]
    real = run(experiment)
    return Result(experiment, real.model, None, metrics, real.ledger)


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (Comparison(0.5, 9, 100, None, None), "not reached: loss 0.7000 after 18 rounds, the same step size"),
        (Comparison(0.5, 0, 0, 0, 0), "nothing to compare: loss 0.5000 is not below that of the first model"),
        (Comparison(0.5, 9, 100, 3, 1500), "15.0x fewer bytes to the same loss"),
        (Comparison(0.5, 9, 100, 3, 50), "2.0x more bytes to the same loss"),
    ],
)
def test_verdicts(comparison: Comparison, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    play.verdict(Console(), comparison, result(0.7, 18))
    assert said in capsys.readouterr().out


def test_names_are_printed_as_they_are(cli: Cli, tmp_path: Path) -> None:
    """Brackets and colons in names are neither markup nor pictures."""
    (tmp_path / "[b]:cat:[-b].txt").write_text("+1 1:0.5 2:1\n-1 1:3\n" * 10)
    options = "--set data.source=libsvm --set data.path=[b]:cat:[-b].txt --set partition.clients=2 --set rounds=2"
    outcome = cli(f"run {options} --set participation.scheme=full --folder [red]:dog:")
    assert outcome.status == 0
    assert "  [b]:cat:[-b].txt · 2 clients" in outcome.out
    assert "in [red]:dog:\n" in outcome.out


def test_warnings_stay_off_the_terminal(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where, as in these tests, a warning would otherwise be an error."""
    (tmp_path / "noisy_models.py").write_text(
        "import warnings\nfrom torch import nn\n"
        "def net(shape, classes):\n    warnings.warn('LOUD')\n    return nn.Linear(shape[0], classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = cli(
        "run --set task.kind=module --set task.factory=noisy_models:net --set server.step=0.1 --set rounds=1 "
        "--set partition.clients=20 --set participation.k=2"
    )
    assert (outcome.status, outcome.err) == (0, "")
    assert "LOUD" not in outcome.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("width", "bar", "saving"), [(60, False, False), (80, True, False), (140, True, True)])
def test_bar_fits_the_terminal(width: int, bar: bool, saving: bool, tmp_path: Path) -> None:
    """Round, loss, bytes and the time left are there at every width; the bar and the saving where there is room."""
    console = Console(file=Terminal(), width=width, force_terminal=True, color_system=None)
    experiment = Experiment.of(rounds=12, run={"evaluate_every": 3}, partition={"clients": 20}, participation={"k": 5})
    with view.View(console, view.Stop(), tmp_path) as watching:
        run(experiment, observer=watching)
    assert isinstance(console.file, Terminal)
    last = [line for line in console.file.getvalue().splitlines() if "round 12/12" in line][-1]
    last = last[last.rindex("  round") :]
    assert "loss " in last
    if width >= 80:
        assert re.search(r"round 12/12 .*loss \d\.\d{4}  .*\d %  up [\d.]+ kB  down [\d.]+ kB .*\d:\d\d", last)
        assert len(last) <= width
    assert ("━━━━━" in last) == bar
    assert ("x fewer bytes" in last) == saving


def test_in_a_terminal(tmp_path: Path) -> None:
    """A real process on a (pseudo) terminal: the bar lives, Ctrl-C from the keyboard stops the run."""
    main_end, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv[0] = 'fedsim'\n"
        "from fedsim.cli.main import main; main()"
    )
    options = ["rounds=100000", "run.checkpoint_every=1000", "partition.clients=20", "participation.k=5"]
    argv = [sys.executable, "-c", code, "run", "--folder", "run", *(w for o in options for w in ("--set", o))]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        argv,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
        start_new_session=True,
        env=environment | {"TERM": "xterm"},
    )
    os.close(terminal)
    screen, stopped = "", False
    while select.select([main_end], [], [], 60)[0]:
        try:
            screen += os.read(main_end, 65536).decode()
        except OSError:  # the terminal's other end is closed
            break
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
        if not stopped and re.search(
            r"round \d\d+/100000 ━.* loss \d\.\d{4}.*  up \S+ [kM]?B  down \S+ [kM]B \d", plain
        ):
            os.write(main_end, b"\x03")
            stopped = True
    os.close(main_end)
    assert process.wait(timeout=30) == 130
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert "stopping after this round; Ctrl-C again stops at once" in plain
    assert re.search(r"stopped: after round \d+; `fedsim resume run` goes on from there\r\n$", plain)
    assert re.search(r" \d+:\d\d:\d\d| \d+:\d\d", plain), "time left"
    assert "Traceback" not in plain


def test_ctrl_c_before_the_command_has_begun(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(play, "play", interrupted)
    outcome = cli("run")
    assert outcome.status == 130
    assert outcome.err.strip() == "stopped"


def test_ctrl_c_asks_then_insists(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, stopping = signal.getsignal(signal.SIGINT), partial(play.stopping, partial(play.left_of, tmp_path))
    with stopping() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(StoppedError, match="before the first round"), stopping():
        raise KeyboardInterrupt
    (tmp_path / "experiment.toml").touch()
    with (
        pytest.raises(StoppedError, match=r"at once; `fedsim resume .*` goes on"),
        stopping(),
    ):
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == "\nstopping after this round; Ctrl-C again stops at once\n"


def test_stop_and_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a round, with exit status 130; resumed, it says where it was and ends as it would have."""
    whole = cli(f"run {TINY} --folder whole").out
    with monkeypatch.context() as patched:
        patched.setattr(view.Stop, "asked", True)
        outcome = cli(f"run {TINY} --folder run")
    assert outcome.status == 130
    assert outcome.err == "stopped: after round 1; `fedsim resume run` goes on from there\n"
    resumed = cli("resume run")
    assert resumed.status == 0
    assert "\n  continues after round 1\n" in resumed.out
    assert resumed.out.splitlines()[-2] == whole.splitlines()[-2]
    for name in ("model.safetensors", "ledger.csv", "metrics.jsonl"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    shutil.rmtree("run/checkpoint")
    assert "\n  starts again from its first round: it has no checkpoint yet\n" in cli("resume run").out


EXACT = {
    "all": "",
    "some": "--set participation.scheme=k-of-n --set participation.k=2",
    "by chance": "--set participation.scheme=bernoulli --set participation.p=0.1",
    "float64": "--set run.precision=float64 --set uplink.values=float64 --set downlink.values=float64",
}


def table(out: str) -> list[list[str]]:
    """The rows of a printed cost table, numbers without commas."""
    rows = [line.replace(",", "").split() for line in out.splitlines()]
    return [row for row in rows if row and row[0] in ("up", "down", "both")]


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_cost_of_an_uncompressed_run_is_known_in_advance(cli: Cli, options: str) -> None:
    arguments = f"{SMALL} --set algorithm=sgd --set rounds=15 {options}"
    ahead = cli(f"cost {arguments}")
    assert ahead.status == 0
    assert cli(f"run {arguments} --folder run").status == 0
    measured = cli("cost run")
    assert measured.status == 0
    assert "\nmeasured, from run/ledger.csv\n" in measured.out
    assert "\nin advance, not measured; " in ahead.out
    assert "fewer" not in ahead.out
    assert table(ahead.out) == table(measured.out) != []


def test_cost_of_first_memories_is_known_in_advance(cli: Cli) -> None:
    arguments = f"{SMALL} --set algorithm=sgd-mem --set uplink.initial=gradient --set rounds=5"
    ahead = cli(f"cost {arguments}").out
    cli(f"run {arguments} --folder run")
    assert table(ahead) == table(cli("cost run").out)
    assert ["up", "memory", "6"] in [row[:3] for row in table(ahead)]


def test_cost_of_artemis_is_known_nearly(cli: Cli) -> None:
    arguments = "--set rounds=60 --set partition.clients=30 --set participation.k=10"
    ahead = cli(f"cost {arguments}").out
    cli(f"run {arguments} --folder run")
    measured = table(cli("cost run").out)
    assert [row[:4] for row in table(ahead)] == [row[:4] for row in measured]
    assert table(ahead)[0] == measured[0], "whole models"
    assert int(table(ahead)[-1][-1]) == pytest.approx(int(measured[-1][-1]), rel=0.1)
    times = re.search(r"the same frames uncompressed: \S+ MB, (\S+)x as many bytes\n", ahead)
    assert times
    assert 3 < float(times[1]) < 30
    assert "formula bits of a round with all 30 clients: " in ahead


def test_cost_of_nothing(cli: Cli) -> None:
    """A run in which nobody took part, and a run killed before its first checkpoint."""
    nobody = f"{SMALL} --set participation.scheme=bernoulli --set participation.p=1e-9 --set rounds=2"
    assert table(cli(f"cost {nobody}").out) == [["both", "total", "0", "0", "0", "0"]]
    assert cli(f"run {nobody} --folder run").status == 0
    assert table(cli("cost run").out) == [["both", "total", "0", "0", "0", "0"]]
    Path("run/ledger.csv").write_text("")
    assert table(cli("cost run").out) == [["both", "total", "0", "0", "0", "0"]]


def test_cost_of_a_killed_run(cli: Cli) -> None:
    """The last line, half written, does not count; another file is refused."""
    cli(f"run {TINY} --folder run")
    whole = table(cli("cost run").out)
    path = Path("run/ledger.csv")
    path.write_text(path.read_text() + "6,3,up,upl")
    assert table(cli("cost run").out) == whole
    for other in ("round,client\n1,2\n", path.read_text() + "\n", "a,b\n1\n2,3\n", ledger_with("many")):
        path.write_text(other)
        outcome = cli("cost run")
        assert outcome.status == 2
        assert re.fullmatch(r"error: run/ledger.csv: not a ledger \(.*\); restore the file\n", outcome.err)


def ledger_with(cost: str) -> str:
    return f"round,client,direction,kind,messages,formula_bits,payload_bits,frame_bytes\n1,2,up,upload,1,3.0,4,{cost}\n"


def test_cost_of_a_run_cannot_be_set(cli: Cli) -> None:
    cli(f"run {TINY} --folder run")
    outcome = cli("cost run --set rounds=5")
    assert outcome.status == 2
    assert outcome.err == "error: --set rounds=5 cannot change what a run has cost; leave it out\n"


def test_forecast_bounds_what_uncompressed_frames_weigh() -> None:
    experiment = Experiment.of(algorithm="sgd", rounds=7, partition={"clients": 20}, participation={"k": 5})
    ahead = forecast(experiment)
    assert ahead.clients == 20
    assert ahead.uncompressed_bytes == sum(cost.frame_bytes for cost in ahead.totals.values())
    assert ahead.round_formula_bits == 20 * 2 * 32 * 650


def test_recipes_lists_every_recipe(cli: Cli) -> None:
    out = cli("recipes").out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name in ("sgd", "sgd-mem", "qsgd", "diana", "bi-qsgd", "artemis", "dore", "double-squeeze", "fedavg"):
        assert name in rows
    assert re.search(r"^artemis +quantized both ways, memories\n +up quantize, down quantize, memories\n", out, re.M)
    assert re.search(r"^double-squeeze .*\n +up quantize, down quantize, feedback up, feedback down\n", out, re.M)
    assert "--set algorithm=artemis" in out


def test_data_shows_what_clients_hold(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = cli("data --set partition.clients=4 --set partition.scheme=shards --set partition.per_client=1").out
    lines = out.splitlines()
    assert lines[0] == "digits: 1438 samples of shape (64,)"
    assert lines[1] == "4 clients, 359 to 360 samples each"
    assert lines[2] == "359 test samples"
    rows = [line.split() for line in lines[4:]]
    assert [row[:2] for row in rows] == [["0", "360"], ["1", "359"], ["2", "360"], ["3", "359"]] or len(rows) == 4
    for row in rows:
        assert sum(int(count) for count in row[2:] if count != ".") == int(row[1])
    regression = cli(f"data {SMALL}").out.splitlines()
    assert regression[:2] == ["synthetic-linear: 60 samples of shape (20,)", "6 clients, 10 to 10 samples each"]
    assert [line.split() for line in regression[3:]] == [[str(i), "10"] for i in range(6)]


def test_sizes() -> None:
    assert [text.size(count) for count in (0, 999, 1000, 9994, 99_940, 999_499, 999_500, 1.25e12, 5e15)] == [
        *("0 B", "999 B", "1.00 kB", "9.99 kB", "99.9 kB", "999 kB", "1.00 MB", "1.25 TB", "5000 TB")
    ]
    assert text.measures({"loss": 2.5e30}) == "loss 2.5e+30"


def test_doctor(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("doctor")
    assert outcome.status == 0
    assert "BAD" not in outcome.out
    for what in ("python", "torch", "cores", "memory", "disk free here", "GPUs", "fashion-mnist"):
        assert re.search(rf"^ok   {what} ", outcome.out, flags=re.MULTILINE)
    assert "ok   random numbers  equal to the golden vector" in outcome.out
    monkeypatch.setattr(doctor, "GOLDEN", 1)
    outcome = cli("doctor")
    assert outcome.status == 1
    assert re.search(r"^BAD  random numbers  \d+ instead of 1$", outcome.out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_no_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(play, "play", full)
    outcome = cli("run")
    assert outcome.status == 2
    assert outcome.err == "error: not enough memory; lower run.chunk, partition.clients or the size of the model\n"


def test_a_defect_of_fedsim_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(play, "play", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        cli("run")


@pytest.mark.parametrize(("target", "status"), [("/dev/full", 2), ("closed pipe", 1)])
def test_output_that_nobody_takes(target: str, status: int) -> None:
    """One line at most, and no complaint of Python's at exit."""
    if target == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif Path(target).exists():
        writer = os.open(target, os.O_WRONLY)
    else:
        pytest.skip(f"needs {target}")
    argv = [sys.executable, "-m", "fedsim.cli.main", "--version"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == status
    assert done.stderr == ("error: output: No space left on device\n" if status == 2 else "")


@pytest.mark.parametrize(("target", "status"), [("/dev/full", 2), ("closed pipe", 1)])
def test_output_that_nobody_takes_in_this_process(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, target: str, status: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(target if status == 2 else writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        outcome = cli("--version")
        assert output.write("goes nowhere now") > 0
    if status == 2:
        os.close(writer)
    assert (outcome.status, outcome.err) == (status, "error: output: No space left on device\n" if status == 2 else "")


def test_warnings_on_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(*_: object, **__: object) -> None:
        warnings.warn("LOUD", stacklevel=1)

    monkeypatch.setattr(play, "play", warning)
    assert cli("run").status == 0
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with pytest.raises(UserWarning, match="LOUD"):
        cli("run")


def test_module_runs_as_a_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fedsim", "--version"])
    monkeypatch.delitem(sys.modules, "fedsim.cli.main")
    runpy.run_module("fedsim.cli.main", run_name="__main__")
    assert capsys.readouterr().out.startswith("fedsim ")
