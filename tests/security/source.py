"""What in a piece of Python source makes code of data, read from its syntax tree.

Names are followed through ``import x as y``, ``from x import y as z``, ``z = x.y``, ``getattr(x, "y")``,
``import_module("x")``, ``sys.modules["x"]`` and ``vars(x)["y"]``; scopes are not told apart, so a name that is
forbidden anywhere in a file is forbidden in all of it. A name that is only known when the program runs is a finding
as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

MODULES = {
    *(
        "pickle",
        "_pickle",
        "cPickle",
        "pickletools",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "joblib",
        "jsonpickle",
    ),
    *("jsonpickle", "yaml", "xml", "code", "codeop", "runpy", "pty", "zipfile", "tarfile", "shutil.unpack_archive"),
    *("torch.jit", "torch.hub", "torch.package", "torch.serialization", "torch.multiprocessing", "logging.config"),
    *("numpy.lib.npyio", "numpy.lib.format", "pandas", "multiprocessing.pool", "multiprocessing.managers"),
    *("multiprocessing.queues", "multiprocessing.reduction", "concurrent.futures.process", "__builtins__"),
}
"""Not to be imported, nor anything in them."""

NAMES = {
    *("torch.load", "torch.save", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.memmap"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "tempfile.mktemp"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *("multiprocessing.Queue", "multiprocessing.SimpleQueue", "multiprocessing.JoinableQueue", "multiprocessing.Pool"),
    *("multiprocessing.Manager", "concurrent.futures.ProcessPoolExecutor", "numpy.fromregex", "shutil.unpack_archive"),
    *(f"os.{kind}{how}" for kind in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}
"""Not to be called, nor passed on."""

SAFE_WITH = {
    "numpy.load": ("allow_pickle", False),
    **{f"subprocess.{name}": ("shell", False) for name in ("Popen", "run", "call", "check_call", "check_output")},
}
"""To be called only, and with nothing else for a keyword. What a subprocess has no shell for by default."""

REQUIRED = {"numpy.load"}
BUILTINS = {"eval", "exec", "compile", "__import__", "getattr", "vars"}
PIPES = {"send", "recv"}
"""Methods of a multiprocessing connection that pickle; ``send_bytes`` and ``recv_bytes`` do not."""


class Finding(NamedTuple):
    """line: of the source; what: the forbidden name, or what cannot be told from the source; where: the function."""

    line: int
    what: str
    where: str


def findings(source: str) -> list[Finding]:
    """All that is forbidden in a source, in the order of its lines."""
    return sorted(set(_Reader(ast.parse(source)).read()))


class _Reader:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.known: dict[str, str] = {name: f"builtins.{name}" for name in BUILTINS} | {"__builtins__": "builtins"}
        self.where: dict[ast.AST, str] = {}
        self.called: dict[ast.AST, ast.Call] = {}
        self.typed: set[ast.AST] = set()
        self.processes = False

    def read(self) -> Iterator[Finding]:
        self._mark(self.tree, "")
        nodes = list(ast.walk(self.tree))
        for node in nodes:
            self._import(node)
        for _ in range(3):  # z = y after y = x
            for node in nodes:
                if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    for target in targets:
                        if isinstance(target, ast.Name) and (named := self._name(node.value)):
                            self.known[target.id] = named
        self.called = {node.func: node for node in nodes if isinstance(node, ast.Call)}
        types = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
        self.typed = {part for given in types if isinstance(given, ast.AST) for part in ast.walk(given)}
        self.processes = any(name.split(".")[0] == "multiprocessing" for name in self.known.values())
        for node in nodes:
            for what in self._wrong(node):
                yield Finding(getattr(node, "lineno", 0), what, self.where[node])

    def _mark(self, node: ast.AST, where: str) -> None:
        self.where[node] = where
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else where
        for child in ast.iter_child_nodes(node):
            self._mark(child, inner)

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else (alias.name.split(".")[0])
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                self.known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _name(self, node: ast.AST) -> str | None:
        """The dotted name that an expression stands for; None where it stands for nothing imported."""
        match node:
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Attribute(value=value, attr=attr):
                return self._below(value, attr)
            case ast.Subscript(value=ast.Attribute(value=value, attr="__dict__"), slice=ast.Constant(value=str(attr))):
                return self._below(value, attr)
            case ast.Subscript(value=value, slice=ast.Constant(value=str(attr))):
                if self._name(value) == "sys.modules":
                    return attr
                if isinstance(value, ast.Call) and self._name(value.func) == "builtins.vars" and value.args:
                    return self._below(value.args[0], attr)
                return self._below(value, attr) if self._name(value) == "builtins" else None
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if self._name(func) in ("importlib.import_module", "builtins.__import__", "sys.modules.get"):
                    return name
            case ast.Call(func=func, args=[value, ast.Constant(value=str(attr)), *_]):
                if self._name(func) == "builtins.getattr":
                    return self._below(value, attr)
        return None

    def _below(self, value: ast.AST, attr: str) -> str | None:
        name = self._name(value)
        return f"{name}.{attr}" if name else None

    def _wrong(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _forbidden(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if _forbidden(name) or name.endswith(".*"))
        elif name := self._name(node):
            if _forbidden(name):
                yield name
            elif name in SAFE_WITH and node not in self.called and node not in self.typed:
                yield f"{name}, passed on"
        if isinstance(node, ast.Call):
            yield from self._call(node)

    def _call(self, node: ast.Call) -> Iterator[str]:
        name = self._name(node.func)
        if name in SAFE_WITH:
            key, value = SAFE_WITH[name]
            given = [word.value for word in node.keywords if word.arg == key]
            if any(word.arg is None for word in node.keywords):
                yield f"{name} with keywords that are not written out"
            elif name in REQUIRED and not given:
                yield f"{name} without {key}={value}"
            elif any(not isinstance(one, ast.Constant) or one.value is not value for one in given):
                yield f"{name} with another {key} than {value}"
        elif name in ("importlib.import_module", "builtins.getattr"):
            which = 1 if name.endswith("getattr") else 0
            if len(node.args) <= which or not isinstance(node.args[which], ast.Constant):
                yield f"{name} of a name that is not written out"
        elif name == "multiprocessing.get_context" and [getattr(one, "value", None) for one in node.args] != ["fork"]:
            yield f"{name} other than fork, which pickles"
        if self.processes and isinstance(node.func, ast.Attribute) and node.func.attr in PIPES:
            yield f"multiprocessing's {node.func.attr}"


def _forbidden(name: str) -> bool:
    parts = name.split(".")
    heads = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return bool(heads & MODULES) or name in NAMES
