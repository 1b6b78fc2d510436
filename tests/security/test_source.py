"""No code from data: nothing in the product unpickles, evaluates or hands text to a shell. See ``source.findings``."""

from __future__ import annotations

import multiprocessing
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import pytest

import fedsim
from fedsim.experiment import Experiment
from tests.security.source import findings

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for name in ("fedsim", "server", "client") for file in (ROOT / name).rglob("*.py"))

DYNAMIC = {
    ("fedsim/__init__.py", "__getattr__", "importlib.import_module"): "a table of fedsim's own modules",
    ("fedsim/__init__.py", "__getattr__", "builtins.getattr"): "the same table",
    ("fedsim/plugins.py", "named", "importlib.import_module"): "a user's own part; fedsim.plugins.code_named tells",
    ("fedsim/plugins.py", "named", "builtins.getattr"): "the same",
    ("fedsim/plugins.py", "made", "builtins.getattr"): "methods that a user's own part must have",
    ("fedsim/plugins.py", "code_named", "builtins.getattr"): "fields of a struct",
    ("fedsim/tasks/classifier.py", "from_factory", "importlib.import_module"): "task.factory; code_named tells",
    ("fedsim/tasks/classifier.py", "from_factory", "builtins.getattr"): "the same",
    ("fedsim/experiment.py", "identifier", "builtins.getattr"): "a table of fedsim's own fields",
    ("fedsim/compression/payload.py", "row", "builtins.getattr"): "fields of a dataclass",
    ("fedsim/compression/payload.py", "parts", "builtins.getattr"): "the same",
    ("fedsim/simulation/messages.py", "_error", "builtins.getattr"): "of exceptions only, by issubclass",
    ("fedsim/worker/relay.py", "_explained", "builtins.getattr"): "of fedsim.errors only, by issubclass",
}
"""Names that are looked up while the program runs: file, function, by what; and why that is none of the above."""


def test_nothing_makes_code_of_data() -> None:
    assert len(FILES) > 100
    found, looked_up = [], set()
    for file in FILES:
        place = str(file.relative_to(ROOT))
        for line, what, where in findings(file.read_text(encoding="utf-8")):
            by = what.removesuffix(" of a name that is not written out")
            if by != what and (place, where, by) in DYNAMIC:
                looked_up.add((place, where, by))
            else:
                found.append(f"{place}:{line}: {what}")
    assert found == []
    assert looked_up == set(DYNAMIC), "an exception that nothing needs any more"


def test_nor_do_the_containers_scripts() -> None:
    """Python within shell, in quotes."""
    snippets = {
        f"{file.name}: {at}": text
        for file in sorted((ROOT / "docker").iterdir())
        if file.is_file()
        for at, text in enumerate(re.findall(r"python3? -c\s*'([^']*)'", file.read_text(encoding="utf-8")))
    }
    assert len(snippets) >= 2
    assert {name: findings(text) for name, text in snippets.items()} == {name: [] for name in snippets}


WRONG = {
    "import": ["import pickle", "import dill as d", "import cloudpickle, os", "import xml.etree.ElementTree as tree"],
    "from": [
        *("from pickle import loads", "from torch import load as read", "from marshal import loads as f"),
        *("from xml.etree import ElementTree", "from os import system", "from tempfile import mktemp"),
        *("from torch.serialization import load", "from numpy import *", "from yaml import load, safe_load"),
    ],
    "alias": [
        *("import torch as t\nt.load(x)", "import torch\nread = torch.load", "import torch\nt = torch\nt.save(a, b)"),
        *("import os\nrun = os\ngo = run\ngo.system('x')", "def f():\n    import torch as q\n    return q.load"),
        *("import torch.nn\ntorch.load(x)", "import torch as t, os\nmap(t.load, paths)", "import shelve as s"),
    ],
    "by name": [
        *("import torch\ngetattr(torch, 'load')(x)", "import torch\ngetattr(torch, name)(x)"),
        *("import torch\nvars(torch)['load'](x)", "import torch\ntorch.__dict__['load'](x)"),
        *("import importlib\nimportlib.import_module('pickle')", "from importlib import import_module as i\ni(name)"),
        *("import sys\nsys.modules['pickle'].loads(x)", "import sys\nsys.modules.get('pickle').loads(x)"),
        *("__import__('pickle')", "import torch\ngetattr(torch, 'lo' + 'ad')(x)", "f = getattr\nf(x, name)"),
        *("import builtins\nbuiltins.eval(x)", "import builtins\ngetattr(builtins, 'exec')", "__builtins__['eval'](x)"),
    ],
    "code": [
        "eval(x)",
        "exec(x)",
        "compile(x, 'f', 'exec')",
        "run = eval",
        "map(eval, x)",
        "import runpy",
        "import code",
    ],
    "yaml": ["import yaml\nyaml.load(x)", "import yaml\nyaml.load(x, Loader=yaml.SafeLoader)"],
    "numpy": [
        *("import numpy as np\nnp.load(x)", "import numpy as np\nnp.load(x, allow_pickle=True)"),
        *("import numpy as np\nnp.load(x, None, flag)", "from numpy import load\nload(x, allow_pickle=flag)"),
        *("import numpy as np\nnp.load(x, **given)", "import numpy as np\nread = np.load"),
    ],
    "shell": [
        *("import subprocess\nsubprocess.run(x, shell=True)", "import subprocess as s\ns.Popen(x, shell=flag)"),
        *("from subprocess import check_output as c\nc(x, shell=1)", "import subprocess\nsubprocess.run(x, **given)"),
        *("import subprocess\nsubprocess.getoutput(x)", "import os\nos.popen(x)", "import os\nos.execvp(x, y)"),
        *("import tempfile\ntempfile.mktemp()", "import asyncio\nasyncio.create_subprocess_shell(x)"),
    ],
    "processes": [
        "import multiprocessing\na, b = multiprocessing.Pipe()\na.send(x)",
        "from multiprocessing import get_context\nget_context('fork').Pipe()[0].recv()",
        "import multiprocessing as m\nm.get_context('spawn')",
        "import multiprocessing as m\nm.get_context()",
        "import multiprocessing as m\nm.Queue()",
        "from concurrent.futures import ProcessPoolExecutor",
    ],
}

RIGHT = [
    "import re\nre.compile(x)",
    "model.eval()",
    "import numpy as np\nnp.load(x, allow_pickle=False)",
    "import subprocess\nsubprocess.run(x, shell=False)\nsubprocess.Popen([x])",
    "import torch\ngetattr(torch, 'float32')",
    "from importlib import import_module\nimport_module('numba')",
    "import multiprocessing as m\na, b = m.get_context('fork').Pipe()\na.send_bytes(x)\nb.recv_bytes()",
    "import json\njson.loads(x)",
    "import tomllib\ntomllib.load(x)",
    "from safetensors.torch import load, save\nload(x)",
]


@pytest.mark.parametrize("kind", WRONG)
def test_what_must_be_found(kind: str) -> None:
    assert [source for source in WRONG[kind] if not findings(source)] == []


def test_what_must_not_be_found() -> None:
    assert [(source, findings(source)) for source in RIGHT if findings(source)] == []


def test_a_pool_of_workers_pickles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pickler that refuses, in this process and in those that are forked from it, a run is the same."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("pickled")

    tables: dict[str, Any] = {
        "data": {"source": "synthetic-linear", "clients": 4, "per_client": 12, "features": 3},
        "local": {"steps": 2, "batch": 4, "step": 0.1},
        "direction": {"kind": "momentum"},
        "rounds": 3,
    }
    alone = fedsim.run(Experiment.of(**tables, run={"executor": "sequential"}))
    monkeypatch.setattr(ForkingPickler, "dumps", refuse)
    monkeypatch.setattr(ForkingPickler, "loads", refuse)
    one, other = multiprocessing.Pipe()
    with one, other, pytest.raises(AssertionError, match="pickled"):
        one.send(1)
    spread = fedsim.run(Experiment.of(**tables, run={"executor": "workers", "workers": 2}))
    assert spread.digest == alone.digest
