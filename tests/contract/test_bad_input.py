"""Every mistake of a user is one line that names the place and the way out, exit status 2, and nothing written.

The table holds the exact text for each kind of mistake; below it, every key of the schema gets every kind of strange
value and nothing but that one line may come of it.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from msgspec.inspect import StructType, Type, UnionType, type_info

from fedsim.algorithms.method import AnyCompressor
from fedsim.cli.main import main
from fedsim.errors import FedsimError
from fedsim.experiment import TAGS, Experiment, load
from fedsim.simulation.run import run

COMPRESSORS = ", ".join(sorted(str(kind.__struct_config__.tag) for kind in get_args(AnyCompressor)))


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: data files, good and bad, and nothing else."""
    monkeypatch.chdir(tmp_path)
    files = {
        "good.txt": "+1 1:0.5 2:1\n-1 1:3\n" * 10,
        "word.txt": "+1 1:0.5 2:1\n-1 1:x\n",
        "nan.txt": "+1 1:0.5 2:1\n-1 1:nan\n",
        "infinite.txt": "+1 1:0.5\n\n# a comment\n-1 1:1e999\n",
        "falling.txt": "+1 2:0.5 1:1\n",
        "empty.txt": "",
        "one-class.txt": "+1 1:0.5 2:1\n+1 1:3\n",
        "labels.txt": "0.5 1:1\n1 1:2\n",
        "gap.clusters": "0\n2\n" * 10,
        "short.clusters": "0\n1\n",
        "own.clusters": "0\n1\n" * 10,
        "broken.toml": 'algorithm = "artemis"\n[uplink]\nlevels = = 2\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"+1 1:0.5\n" * 100)[:-12])
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> Outcome:
    """``fedsim ...`` in this process."""
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    status = 0
    try:
        main()
    except SystemExit as left:
        status = int(left.code or 0)
    return Outcome(status, *capsys.readouterr())


def named(keys: str, key: str) -> str:
    return f"unknown key '{key}' (did you mean '{keys}'?); keys"


GOOD = "data.source=libsvm data.path=good.txt partition.clients=2 participation.k=2"
CLUSTERS = f"{GOOD} partition.scheme=clusters"
OWN = "data.source=own data.shape=[2] data.classes=2 data.samples=[20,20]"
LIBSVM = "data.source=libsvm data.path="
BERNOULLI = "participation.scheme=bernoulli"
MEMORY = "needs memories, but uplink.memory = false; set it to true or drop"

ASSIGNMENTS = {
    # an unknown key at each level
    "roundz=3": named("rounds", "roundz") + ": algorithm, seed, rounds, data, ",
    "datas.source=digits": named("data", "datas") + ": algorithm, seed, ",
    "uplink.level=4": named("uplink.levels", "uplink.level")
    + " of [uplink] with compressor = 'quantize': compressor, ",
    "data.biass=true": named("data.bias", "data.biass")
    + " of [data] with source = 'digits': source, standardise, bias",
    "partition.alfa=1": named("partition.alpha", "partition.alfa") + " of [partition] with scheme = 'dirichlet': ",
    "participation.kk=2": named("participation.k", "participation.kk") + " of [participation] with scheme = ",
    "local.batsh=1": named("local.batch", "local.batsh") + " of [local]: steps, epochs, batch, order, step, send",
    "downlink.feedbak=1": named("downlink.feedback", "downlink.feedbak") + " of [downlink] with compressor = ",
    "server.stepp=2": named("server.step", "server.stepp") + " of [server]: step, schedule, ",
    "run.chunks=2": named("run.chunk", "run.chunks") + " of [run]: precision, device, compute, threads, ",
    "task.zzz=3": "unknown key 'task.zzz'; keys of [task] with kind = 'softmax': kind, l2",
    # an unknown recipe or variant
    "algorithm=artemiss": "algorithm = 'artemiss': no such recipe (did you mean 'artemis'?); see `fedsim recipes`",
    "algorithm=3": "algorithm = 3: no such recipe; see `fedsim recipes`",
    "data.source=digit": "data.source = 'digit': unknown (did you mean 'digits'?); one of: breast-cancer, digits, ",
    "partition.scheme=dirichlett": "partition.scheme = 'dirichlett': unknown (did you mean 'dirichlet'?); one of: ",
    "task.kind=softmx": "task.kind = 'softmx': unknown (did you mean 'softmax'?); one of: cnn, least-squares, ",
    "participation.scheme=all": "participation.scheme = 'all': unknown; one of: bernoulli, full, k-of-n",
    "uplink.compressor=quantise": "uplink.compressor = 'quantise': unknown (did you mean 'quantize'?); one of: ",
    "downlink.compressor=3": f"downlink.compressor = 3: unknown; one of: {COMPRESSORS}",
    "uplink.compressor.levels=3": f"uplink.compressor = {{'levels': 3}}: unknown; one of: {COMPRESSORS}, "
    "with its keys in [uplink] itself",
    # a missing key
    BERNOULLI: "participation.p is missing; [participation] with scheme = 'bernoulli' needs it (the probability that ",
    "data.source=libsvm": "data.path is missing; [data] with source = 'libsvm' needs it (the training file, ",
    "data.source=own data.shape=[2] data.classes=2": "data.samples is missing; [data] with source = 'own' needs it (of "
    "each client)",
    # a wrong type
    "data=3": "data = 3: expected a table [data], for example --set data.source=value",
    "local=[]": "local = []: expected a table [local], for example --set local.steps=value",
    "uplink.levels=many": "uplink.levels = 'many': expected a whole number from 1 to 32767",
    "uplink.levels=1979-05-27": "uplink.levels = 1979-05-27: expected a whole number from 1 to 32767",
    "uplink.levels.x=3": "uplink.levels = {'x': 3}: expected a whole number from 1 to 32767",
    "uplink.memory=1": "uplink.memory = 1: expected true or false",
    "rounds=1.5": "rounds = 1.5: expected a whole number from 1 to 4294967294",
    "server.step=true": "server.step = true: expected a number, or text",
    "run.device=0": "run.device = 0: expected text",
    "task.kind=mlp task.hidden=3": "task.hidden = 3: expected a list, each item a whole number >= 1",
    # a value out of range
    f"{BERNOULLI} participation.p=0": "participation.p = 0: expected a number > 0 and <= 1 (the probability that a ",
    f"{BERNOULLI} participation.p=1.1": "participation.p = 1.1: expected a number > 0 and <= 1 (the probability that ",
    "uplink.levels=0": "uplink.levels = 0: expected a whole number from 1 to 32767",
    "uplink.norm=l3": "uplink.norm = 'l3': expected 'l2' or 'linf'",
    "uplink.rate=2": "uplink.rate = 2: expected a number > 0 and <= 1, or 'auto'",
    "uplink.feedback=step2": "uplink.feedback = 'step2': expected a number from 0 to 1, or 'step'",
    "seed=-1": "seed = -1: expected a whole number from 0 to 9223372036854775807",
    "rounds=0": "rounds = 0: expected a whole number from 1 to 4294967294",
    "data.test_fraction=1.0": "data.test_fraction = 1.0: expected a number >= 0 and < 1",
    "task.kind=mlp task.hidden=[3,0]": "task.hidden[1] = 0: expected a whole number >= 1",
    "task.l2=nan": "task.l2 = nan: expected a finite number",
    "server.step=inf": "server.step = inf: expected a finite number",
    "server.step=0": "server.step = 0.0: expected a step size > 0",
    "server.step=4L": "server.step = '4L': expected a number such as 0.1, a multiple of 1/L such as '4/L'",
    "local.batch=99999999999999999999": "local.batch = 99999999999999999999: expected at most 2147483647",
    # what contradicts something else
    "algorithm=qsgd uplink.rate=0.1": f"uplink.rate = 0.1 {MEMORY} uplink.rate",
    "algorithm=sgd server.paper_compat=true": f"server.paper_compat = True {MEMORY} server.paper_compat",
    "algorithm=sgd uplink.initial=gradient": f"uplink.initial = 'gradient' {MEMORY} uplink.initial",
    "uplink.initial=gradient": "uplink.initial = 'gradient' needs every client in the first round, but participation "
    "is partial; use initial = 'zero' or participation.scheme = 'full'",
    "server.memory=pp1 server.paper_compat=true": "server.paper_compat changes the pp2 update only, but server.memory "
    "= 'pp1'; drop one of them",
    "uplink.feedback=0.5": "uplink.feedback is 0.5 with a compressor of omega = 25.5 at d = 650: the error would "
    "grow (c^2 omega >= 1); use feedback = 'step' with a smaller step, or a finer compressor",
    "partition.clients=100 participation.k=1000": "participation.k = 1000, but there are 100 clients; lower k ",
    "partition.scheme=natural": "scheme 'natural', but digits has no clients of its own; use another scheme",
    "task.kind=logistic": "task.kind = 'logistic' needs data with 2 classes, but the data has 10 classes; use "
    "task.kind = 'softmax'",
    "data.source=synthetic-linear task.kind=mlp": "task.kind = 'mlp' needs classes, but the data has numbers to ",
    "task.kind=mlp server.step=4/L": "server.step = '4/L': a step such as '4/L' or 'theory' needs a convex task, and a "
    "network has no L; give a number such as 0.1",
    "task.kind=mlp server.step=1 local.steps=2": "local.step = '1/L': a step such as '4/L' or 'theory' needs a convex ",
    "task.kind=cnn": "task.kind = 'cnn' needs images [channels, height, width] of at least 4 x 4 pixels, but a sample ",
    "run.device=gpu": "run.device = 'gpu': expected 'cpu', 'cuda', 'cuda:1' ... or 'auto'",
    "run.device=meta": "run.device = 'meta': expected 'cpu', 'cuda', 'cuda:1' ... or 'auto'",
    "run.device=cuda:63": "run.device = 'cuda:63', but torch sees \\d GPUs; use 'cpu' or 'auto'",
    "task.kind=module task.factory=math:sin": "task.factory = 'math:sin' failed for shape [64] (TypeError: ",
    "task.kind=module task.factory=nowhere:net": "task.factory = 'nowhere:net': cannot import 'nowhere' (No module ",
    # data
    "partition.clients=100 partition.min_samples=50": "100 clients with at least 50 rows each need "
    "5000 rows, but digits has 1438; lower clients or min_samples",
    "partition.clients=2000": "2000 clients for the 1438 training rows of digits, expected 1 to 1438; set clients to ",
    "partition.clients=100 partition.alpha=1e-300": "none of 10000 Dirichlet draws with alpha = 1e-300 gives ",
    f"{LIBSVM}absent.txt": "absent.txt: no such file; give the path of an existing file",
    f"{LIBSVM}.": ".: cannot be read (Is a directory); give the path of a readable file",
    f'{LIBSVM}"a\\u0000b"': "'a\\x00b' is not a path; give the path of an existing file",
    f"{LIBSVM}cut.gz": "cut.gz: damaged gzip file (",
    f"{LIBSVM}word.txt": "word.txt:2: value 'x' of index 1, expected one finite number; mend the line",
    f"{LIBSVM}nan.txt": "nan.txt:2: value 'nan' of index 1, expected one finite number; mend the line",
    f"{LIBSVM}infinite.txt": "infinite.txt:4: value '1e999' of index 1, expected one finite number; mend the line",
    f"{LIBSVM}falling.txt": "falling.txt:1: index 1 after index 2, expected ascending indices; sort the line",
    f"{LIBSVM}labels.txt": 'labels.txt:1: label 0.5 is not a whole class number; set target = "regression" or mend',
    f"{LIBSVM}empty.txt": "empty.txt: no line with data, expected lines such as '+1 3:0.5 7:1'; give another file",
    f"{LIBSVM}one-class.txt": "one-class.txt: all 2 training rows have class 0, expected at least two classes; use ",
    f"{GOOD} data.features=1": "good.txt:1: index 2, expected 1 to 1, the number of features; set features = 2 ",
    f"{GOOD} data.test_path=good.txt data.test_fraction=0.5": "test_path and test_fraction = 0.5 are both given; ",
    f"{CLUSTERS} partition.clients=3 partition.file=gap.clusters": "gap.clusters: no row has cluster 1, expected every "
    "number from 0 to 2; lower clients or number the clusters without gaps",
    f"{CLUSTERS} partition.file=short.clusters": "short.clusters: 2 lines for 20 training rows, expected one line a ",
    f"{CLUSTERS} partition.clients=2 partition.file=own.clusters partition.single_class=refuse": "good.txt: client 0 "
    'has only class 1 (10 rows) and single_class = "refuse"; use fewer clients or a more even scheme, or set '
    'single_class = "allow"',
    # clients' own data
    "data.source=own data.classes=2 data.samples=[20] data.shape=[0]": "data.shape[0] = 0: expected a whole number ",
    "data.source=own data.classes=2 data.samples=[20] data.shape=[]": "data.shape = []: expected a list of at least 1",
    f"{OWN} data.paths=['good.txt','good.txt']": "good.txt:2: label '-1.0', expected one of 0 to 1; mend it or ",
    f"{OWN} data.names=['-1','1'] data.paths=['good.txt',''] server.step=1": "client 1's data is not here, and this ",
    f"{OWN} data.names=['-1','1'] data.paths=['good.txt','absent.csv']": "absent.csv: no such file; give the path ",
    f"{OWN} partition.scheme=iid partition.clients=2": "partition.scheme = 'iid', but clients bring their own data; ",
    f"{OWN}": "server.step = '1/L': constants of all clients' data are not known here; give a number such as 0.1",
    # the assignment itself
    "rounds": "--set rounds: expected table.key=value, for example --set uplink.levels=4",
    "=3": "--set =3: expected table.key=value, for example --set uplink.levels=4",
}

COMMANDS = {
    "run absent.toml": "absent.toml: cannot read the experiment (No such file or directory); give the path of ",
    "run .": ".: cannot read the experiment (Is a directory); give the path of a TOML file",
    "run broken.toml": "broken.toml: not valid TOML: Invalid value (at line 3, column 10)",
    "run latin.toml": "latin.toml: not valid TOML: 'utf-8' codec can't decode byte 0xe9 in position 5: ",
    "resume absent": "absent is not a run folder (no experiment.toml); `fedsim run` makes one",
    "cost absent.toml": "absent.toml: cannot read the experiment (No such file or directory); give the path of ",
    "cost .": ". is not a run folder (no ledger.csv); give a run folder or a TOML file",
    "cost --set uplink.levels=0": "uplink.levels = 0: expected a whole number from 1 to 32767",
    "data --set partition.scheme=natural": "scheme 'natural', but digits has no clients of its own; use another scheme",
    "run --zzz 3": "No such option",
    "run a.toml b.toml": "Got unexpected extra argument (b.toml); see `fedsim run --help`",
    "resume": "Missing argument 'RUN'; see `fedsim resume --help`",
    "runn": "No such command 'runn'",
}


def check(outcome: Outcome, message: str, folder: Path, before: list[str]) -> None:
    pattern = re.escape(message).replace(r"\\d", r"\d+")
    assert re.match("error: " + pattern, outcome.err), outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert outcome.status == 2
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("assignments", ASSIGNMENTS)
def test_experiment_that_cannot_be(
    assignments: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    argv = ["run", *(word for assignment in assignments.split(" ") for word in ("--set", assignment))]
    check(command(capsys, monkeypatch, *argv), ASSIGNMENTS[assignments], folder, before)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_that_cannot_be(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    check(command(capsys, monkeypatch, *line.split(" ")), COMMANDS[line], folder, before)


def test_the_same_in_a_process_of_its_own(folder: Path) -> None:
    """As a user calls it: nothing of Python on the terminal, neither traceback nor warning."""
    before = sorted(path.name for path in folder.rglob("*"))
    argv = [sys.executable, "-m", "fedsim.cli.main", "run", "--set", "uplink.levels=0"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
    check(Outcome(done.returncode, done.stdout, done.stderr), ASSIGNMENTS["uplink.levels=0"], folder, before)


def test_toml_file_names_the_same_places(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.toml").write_text("[uplink]\nlevel = 4\n")
    before = sorted(path.name for path in folder.rglob("*"))
    check(command(capsys, monkeypatch, "run", "mine.toml"), ASSIGNMENTS["uplink.level=4"], folder, before)


@pytest.mark.parametrize("key", ["a\nb", "zzz\u2028zzz"])
def test_one_line_whatever_the_file_holds(
    key: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.toml").write_text(f"[uplink]\n{key!r} = 4\n".replace("'", '"'))
    outcome = command(capsys, monkeypatch, "run", "mine.toml")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1


DIVERGING = {
    ("task.kind=mlp", "run.evaluate_every=20"): "the model is not finite",
    ("task.kind=mlp", "run.evaluate_every=1"): r"the loss has grown from 2\.\d+ to \d\.\d+e\+\d+",
    ("data.source=synthetic-linear", "run.evaluate_every=1"): "the loss is not finite",
}


@pytest.mark.parametrize("tasks", DIVERGING)
def test_a_step_that_is_too_large(
    tasks: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the round and the way out; the folder holds what was before and says the same when resumed."""
    options = ["server.step=1e30", "run.checkpoint_every=1", "rounds=20", *tasks]
    argv = ["run", "--folder", "runaway", *(word for option in options for word in ("--set", option))]
    for line in (argv, ["resume", "runaway"]):
        outcome = command(capsys, monkeypatch, *line)
        assert outcome.status == 2
        says = rf"error: round 1: {DIVERGING[tasks]} with server\.step = 1e\+30; use a smaller step\n"
        assert re.fullmatch(says, outcome.err), outcome.err
        assert not (folder / "runaway" / "model.safetensors").exists()
        assert not list(folder.rglob("*.new"))
    rounds = [line.split(",")[0] for line in (folder / "runaway" / "ledger.csv").read_text().splitlines()]
    assert set(rounds) <= {"round", "0"}


STRANGE = [
    *("-1", "0", "1", "2147483648", "100000000000000000000000000", "0.5", "-0.5", "1e-308", "1e308", "nan", "-inf"),
    *("true", "''", "'x'", "'1/(0L)'", "[]", "[0]", "{}", "{a=1}", "1979-05-27", '"\\u0000"', "'..:x'"),
]
"""What may stand behind a key by mistake."""

BASE: dict[str, list[str]] = {
    "data.source=own": [
        *("data.shape=[2]", "data.classes=2", "data.samples=[20,20]", "data.names=['-1','1']"),
        "data.paths=['good.txt','good.txt']",
    ],
    "data.source=libsvm": ["data.path=good.txt", "partition.clients=2", "participation.k=1"],
    "participation.scheme=bernoulli": ["participation.p=0.5"],
    "participation.scheme=k-of-n": ["participation.k=2"],
    "partition.scheme=natural": ["data.source=synthetic-logistic"],
    "partition.scheme=clusters": ["data.source=libsvm", "data.path=good.txt", "partition.file=own.clusters"],
    "task.kind=module": ["task.factory='torch.nn:Flatten'"],
    "task.kind=least-squares": ["data.source=synthetic-linear"],
    "task.kind=logistic": ["data.source=synthetic-logistic"],
    "task.kind=mlp": ["server.step=0.1"],
    "task.kind=cnn": ["server.step=0.1"],
}
"""What an experiment of a kind needs besides its name."""


def structs(type_: Type) -> list[StructType]:
    types = type_.types if isinstance(type_, UnionType) else (type_,)
    return [found for found in types if isinstance(found, StructType)]


def keys() -> Iterator[tuple[str, str]]:
    """(the assignment that chooses the variant or "", key) of every key in the schema."""
    top: Any = type_info(Experiment)
    for table in top.fields:
        if not structs(table.type):
            yield "", table.encode_name
        for variant in structs(table.type):
            for field in variant.fields:
                for inner in structs(field.type) or [variant]:
                    own = inner.fields if structs(field.type) else [field]
                    tag = f"{table.encode_name}.{inner.tag_field}={inner.tag}" if inner.tag else ""
                    yield from ((tag, f"{table.encode_name}.{one.encode_name}") for one in own)


def test_the_schema_is_walked_to_its_leaves() -> None:
    found = list(keys())
    assert len(found) > 70
    assert {("", "seed"), ("", "uplink.rate"), ("uplink.compressor=quantize", "uplink.levels")} < set(found)
    assert {tag.split("=")[0] for tag, _ in found if tag} == {f"{table}.{tag}" for table, tag in TAGS.items()}


@pytest.mark.parametrize("table", list(Experiment.__struct_fields__))
@pytest.mark.usefixtures("folder")
def test_strange_values(table: str) -> None:
    """Each key of a table with each strange value: the run works, or one line says why not."""
    small = ["data.source=synthetic-logistic", "data.clients=4", "data.per_client=5", "participation.scheme=full"]
    refused: list[str] = []
    accepted = 0
    for tag, key in keys():
        if key.split(".")[0] != table or tag == "data.source=fashion-mnist":
            continue  # that data set may not be here
        base = [] if tag.startswith(("data", "partition")) or tag in BASE else small
        for value in STRANGE:
            if key == "rounds" and value == "2147483648":
                continue  # so many are allowed
            try:
                run(load(None, ["rounds=1", *base, *[tag][: bool(tag)], *BASE.get(tag, []), f"{key}={value}"]))
                accepted += 1
            except FedsimError as error:
                refused.append(str(error))
    assert not [message for message in refused if "\n" in message]
    assert len(refused) > accepted
