"""An experiment: one typed, frozen value that says everything, and its TOML form.

defaults  <-  what the data source implies  <-  recipe  <-  the user's tables  <-  --set key=value      (later wins)
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomli_w

from fedsim.algorithms.method import Downlink, ServerOptions, Uplink
from fedsim.algorithms.recipes import RECIPES
from fedsim.algorithms.whitening import Off, Whitening
from fedsim.data import Digits, Dirichlet, Scheme, Source
from fedsim.errors import ConfigError, one_line
from fedsim.keys import check_keys, nearest, shown, unknown_value
from fedsim.network import Network, Untimed
from fedsim.participation import KofN, Participation
from fedsim.solvers.direction import Gradient, LocalDirection
from fedsim.solvers.local import Local
from fedsim.solvers.rate import Constant, RateRule
from fedsim.tasks import Softmax, TaskOptions

Table = dict[str, Any]
TAGS = {
    "data": "source",
    "partition": "scheme",
    "task": "kind",
    "participation": "scheme",
    "rate": "rule",
    "direction": "kind",
    "whitening": "mode",
    "uplink": "compressor",
    "downlink": "compressor",
    "network": "profile",
}
"""The key that says which kind of thing a table describes; another kind has other keys."""

CHANNELS: dict[str, type[msgspec.Struct]] = {"uplink": Uplink, "downlink": Downlink}
"""Tables in which the compressor's own keys stand beside the channel's."""

EITHER = {"local": ("steps", "epochs")}
"""Keys of which one replaces the other when it is named alone."""

DEPTH = 16
"""Tables and lists within each other, the experiment included: it has two, the options of own parts a few more."""

LONGEST_KEY = 64
"""Parts of a dotted key: Python's reader takes minutes for one of some ten thousand."""

_DOTTED = re.compile(r"\.\s*[\w\"'-]")

IMPLIED: dict[str, Table] = {
    "breast-cancer": {"task": {"kind": "logistic"}, "partition": {"clients": 10}, "participation": {"scheme": "full"}},
    "libsvm": {"task": {"kind": "logistic"}},
    "own": {"partition": {"scheme": "natural"}, "participation": {"scheme": "full"}},
    "synthetic-linear": {
        "task": {"kind": "least-squares"},
        "partition": {"scheme": "natural"},
        "participation": {"scheme": "full"},
    },
    "synthetic-logistic": {
        "task": {"kind": "logistic"},
        "partition": {"scheme": "natural"},
        "participation": {"scheme": "full"},
    },
}
"""What naming a data source changes in the defaults, so that the source alone is a runnable experiment."""


class RunOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to compute and what to write.

    Args:
        precision: of models, memories and gradients: "float32" or "float64".
        device: "cpu", "cuda", "cuda:1" ..., or "auto" (a GPU where there is one).
        compute: of the products and convolutions in the gradients of networks: "float32", or "bfloat16", with 8 bits of
            mantissa, where the processor is faster with it (matrix units; AVX512-BF16 alone is not). Losses, steps and
            messages stay in ``precision``.
        threads: of torch; part of the experiment because sums over data depend on it in the last bit.
        executor: of the clients' local steps. "sequential", one client after another, is the reference; "stacked"
            computes clients side by side, equal up to rounding; "workers" spreads them over processes, with the same
            bits; "auto" chooses by a rule (``fedsim.simulation.executors``), and the manifest says what.
        chunk: clients computed side by side: 1 is the reference, 0 leaves it to the executor.
        workers: processes; 0: one for each core.
        evaluate_every: rounds between evaluations of the loss.
        checkpoint_every: rounds between checkpoints; a killed run repeats at most so many rounds.
        rows: where clients keep what they remember on a CPU: in "memory" or on "disk".
        wire: "counted": only the lengths of messages are computed; "real": every message is made, sent and read. The
            same model and ledger, the second much slower.
        trackers: tools that are given every evaluation as well: "tensorboard", "mlflow", "wandb". metrics.jsonl has
            them always. Each is an extra: pip install 'fedsim[tensorboard]'.
        baseline: after the run, also run it uncompressed until it reaches the same loss, and compare the bytes.
    """

    precision: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    compute: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    executor: Literal["auto", "sequential", "stacked", "workers"] = "auto"
    chunk: Annotated[int, msgspec.Meta(ge=0)] = 0
    workers: Annotated[int, msgspec.Meta(ge=0)] = 0
    evaluate_every: Annotated[int, msgspec.Meta(ge=1)] = 10
    checkpoint_every: Annotated[int, msgspec.Meta(ge=1)] = 50
    rows: Literal["memory", "disk"] = "memory"
    wire: Literal["counted", "real"] = "counted"
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    baseline: bool = False


class DeployOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a deployed server waits, and what it accepts; nothing to a simulation.

    Args:
        min_replies: with so many replies a round ends at once; 0: all clients that were called are waited for.
        deadline_s: seconds after which a round ends without those that are missing. While nobody at all has replied it
            waits on, 10 times as long; then the run stops, and can be resumed.
        start_s: seconds to wait, before the first round, until every client has a machine.
        start_nodes: begin with so many machines, although clients of others are absent until those come; 0: with all.
        longest: the largest norm of a client's direction; 0: no such bound.
        median: its largest norm, as a multiple of the median of the round's replies.
    """

    min_replies: Annotated[int, msgspec.Meta(ge=0)] = 0
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    start_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    start_nodes: Annotated[int, msgspec.Meta(ge=0)] = 0
    longest: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    median: Annotated[float, msgspec.Meta(ge=1)] = 1e6


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that determines a run. ``Experiment.of(algorithm="diana")`` starts from a recipe.

    Args:
        algorithm: the recipe, whose settings are the defaults of all other keys; `fedsim recipes` lists them.
        seed: of all random numbers.
        rounds: how many are played.

    >>> Experiment.of(algorithm="diana", rounds=10).downlink.compressor
    Identity(values='float32')
    """

    algorithm: str = "artemis"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    rounds: Annotated[int, msgspec.Meta(ge=1, le=2**32 - 2)] = 400
    data: Source = Digits()
    partition: Scheme = Dirichlet(clients=100, alpha=0.3)
    task: TaskOptions = Softmax()
    participation: Participation = KofN(20)
    local: Local = Local()
    rate: RateRule = Constant()
    direction: LocalDirection = Gradient()
    whitening: Whitening = Off()
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    server: ServerOptions = ServerOptions()
    run: RunOptions = RunOptions()
    deploy: DeployOptions = DeployOptions()
    network: Network = Untimed()

    @staticmethod
    def of(**tables: Any) -> Experiment:
        """An experiment from keyword arguments shaped like the TOML file, on top of the named recipe."""
        return from_table(tables)

    def table(self) -> Table:
        """The complete TOML tables, defaults included; ``from_table(x.table()) == x``."""
        raw: Table = msgspec.to_builtins(self)
        for name in CHANNELS:
            raw[name] = raw[name].pop("compressor") | raw[name]
        return raw

    def toml(self) -> str:
        """The complete experiment as TOML text."""
        return tomli_w.dumps(self.table())

    def identifier(self) -> bytes:
        """8 bytes that name the experiment: a hash of its complete form. What only says how to run is left out."""
        table = self.table()
        del table["deploy"]
        for where in ("paths", "test"):  # of ``Own``: where data lies, on each machine elsewhere
            table["data"].pop(where, None)
        for how in HOW:
            del table["run"][how]
        if self.network == DEFAULTS.network:
            del table["network"]
        for part, names in LATER.items():  # as runs were named before there was a choice
            for name in names:
                if getattr(getattr(self, part), name) == getattr(getattr(DEFAULTS, part), name):
                    del table[part][name]
        return hashlib.blake2b(msgspec.json.encode(table, order="deterministic"), digest_size=8).digest()


DEFAULTS = Experiment()

HOW = ("checkpoint_every", "evaluate_every", "workers", "rows", "wire", "trackers", "baseline")
"""Keys of [run] that change neither the model nor the ledger."""

LATER = {
    "run": ("compute",),
    "uplink": ("correction", "synchronise"),
    "downlink": ("memory", "rate", "each"),
    "server": ("aggregate", "trim", "clip"),
}
"""Keys that came later, and name a run only where they are not left alone."""


def default_table() -> Table:
    """What ``fedsim run`` runs when nothing is given: artemis on digits, and the uncompressed run to compare with."""
    return {"run": {"baseline": True}}


def load(path: Path | None, assignments: Sequence[str] = ()) -> Experiment:
    """Read a TOML file (None: the default experiment) and apply ``table.key=value`` assignments.

    Raises ConfigError naming the file and line, the unknown key and its nearest neighbour, or the wrong value.
    """
    table = default_table() if path is None else read_toml(path)
    return from_table(overlay(table, assigned(assignments)))


def assigned(assignments: Sequence[str]) -> Table:
    """``table.key=value`` texts as tables, in whatever order a kind and its keys were given. Raises ConfigError."""
    table: Table = {}
    for assignment in assignments:
        table = merged(table, parse_assignment(assignment))
    return table


def read_toml(path: Path) -> Table:
    """The tables of a TOML file. Raises ConfigError naming the file and the place."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot read the experiment ({reason}); give the path of a TOML file") from None
    return parse_toml(content, f"{path}: not valid TOML")


def parse_toml(content: bytes, wrong: str) -> Table:
    """The tables of a TOML text in UTF-8. wrong: how the ConfigError begins when it is none."""
    try:
        text = content.decode("utf-8")
        if any(_parts_beyond(part) for line in text.splitlines() for part in line.split(",")):
            raise ConfigError(f"{wrong}: a key of more than {LONGEST_KEY} parts")
        return tomllib.loads(text)
    except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits
        raise ConfigError(f"{wrong}: {one_line(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{wrong}: nested too deeply") from None


def _parts_beyond(text: str) -> bool:
    # Matches are counted one by one: a list of them would take thirty times the memory of the text.
    return any(True for _ in islice(_DOTTED.finditer(text), LONGEST_KEY, None))


def from_table(user: Table) -> Experiment:
    """The experiment that a user's tables describe. Raises ConfigError; see ``load``."""
    if _deeper(user, DEPTH):
        raise ConfigError(f"the experiment is nested more than {DEPTH} tables deep; see `fedsim recipes` for examples")
    name = user.get("algorithm", "artemis")
    if not isinstance(name, str) or name not in RECIPES:
        close = nearest(name, RECIPES) if isinstance(name, str) else ""
        raise ConfigError(f"algorithm = {shown(name)}: no such recipe{close}; see `fedsim recipes`")
    data = user.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    table = Experiment().table()
    for layer in (IMPLIED.get(str(source), {}), RECIPES[name].settings, user):
        table = overlay(table, layer)
    check_keys(table, Experiment, TAGS)
    for channel, options in CHANNELS.items():
        table[channel] = _nest(table[channel], options)
    try:
        return msgspec.convert(table, Experiment)
    except msgspec.ValidationError as error:
        raise ConfigError(unknown_value(str(error), table, Experiment)) from None


def overlay(below: Table, above: Table) -> Table:
    """``above`` on top of ``below``, key by key; a table of another kind drops the keys of the kind it replaces."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            result[key] = value
            continue
        tag = TAGS.get(key, "")
        if value.get(tag, old.get(tag)) != old.get(tag):
            own = CHANNELS[key].__struct_fields__ if key in CHANNELS else ()
            old = {name: kept for name, kept in old.items() if name in own}
        either = EITHER.get(key, ())
        if any(name in value for name in either):
            old = {name: kept for name, kept in old.items() if name not in either}
        result[key] = {**old, **value}
    return result


def parse_assignment(text: str) -> Table:
    """``uplink.levels=4`` as nested tables; the value is TOML, or plain text where it is not.

    >>> parse_assignment("uplink.levels=4")
    {'uplink': {'levels': 4}}
    >>> parse_assignment("server.step=4/L")
    {'server': {'step': '4/L'}}
    """
    key, separator, value = text.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names) or len(names) > LONGEST_KEY:
        raise ConfigError(f"--set {one_line(text)}: expected table.key=value, for example --set uplink.levels=4")
    value = re.sub(r"^\s*([+-]?)\.(\d+)\s*$", r"\g<1>0.\2", value)  # TOML has no .5
    try:
        result: Any = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        result = value.strip()
    return nested(names, result)


def merged(below: Table, above: Table) -> Table:
    """Both, key by key; unlike ``overlay`` in whatever order a kind and its keys were given."""
    both = {
        key: merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
    return below | both


def nested(names: Sequence[str], value: Any) -> Table:
    """A value in tables within each other, the outermost named first; there is at least one.

    >>> nested(["uplink", "levels"], 4)
    {'uplink': {'levels': 4}}
    """
    for name in reversed(names):
        value = {name: value}
    table: Table = value
    return table


def _deeper(value: Any, depth: int) -> bool:
    """Whether tables and lists stand in each other more than ``depth`` deep."""
    inside = [value]
    for _ in range(depth):
        groups = [one.values() if isinstance(one, dict) else one for one in inside if isinstance(one, (dict, list))]
        inside = [one for group in groups for one in group]
    return any(isinstance(one, (dict, list)) for one in inside)


def _nest(table: Table, options: type[msgspec.Struct]) -> Table:
    """Flat channel table -> the compressor's keys in a table of their own, as the struct has them."""
    own = {key: value for key, value in table.items() if key in options.__struct_fields__ and key != "compressor"}
    return own | {"compressor": {key: value for key, value in table.items() if key not in own}}
