"""``fedsim keys``: every key of an experiment file, what it accepts and what it means."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

WIDEST = 100
INDENT = " " * 6


@dataclass(frozen=True, slots=True)
class Line:
    """One key. name: "uplink.levels"; when: 'compressor = "quantize"' where only that has it, else ""."""

    name: str
    when: str
    default: str
    accepts: str
    meaning: str

    @property
    def heading(self) -> str:
        """The table, and which of its kinds."""
        table = self.name.rpartition(".")[0]
        return f"[{table}]{'  with ' + self.when if self.when else ''}" if table else ""


def keys(
    beginning: Annotated[
        str, typer.Argument(metavar="[TABLE]", help="Only keys that begin so, for example uplink.", show_default=False)
    ] = "",
) -> None:
    """List the keys of an experiment file: default, what is accepted, what it means."""
    from fedsim.errors import ConfigError
    from fedsim.keys import nearest

    lines = list(described())
    chosen = [line for line in lines if f"{line.name}.".startswith(f"{beginning.rstrip('.')}." if beginning else "")]
    if not chosen:
        tables = dict.fromkeys(line.name.split(".")[0] for line in lines)
        names = [*tables, *(line.name for line in lines)]
        raise ConfigError(f"{beginning}: no such key{nearest(beginning, names)}; tables and keys: {', '.join(tables)}")
    width, before = min(shutil.get_terminal_size().columns, WIDEST), ""
    for line in chosen:
        if line.heading != before:
            print(f"\n{line.heading}" if before else line.heading)
        before = line.heading
        name = line.name.rpartition(".")[2]
        print(f"  {name} = {line.default}   ({line.accepts})" if line.default else f"  {name}   ({line.accepts})")
        if line.meaning:
            print(textwrap.fill(line.meaning, width, initial_indent=INDENT, subsequent_indent=INDENT))


def described() -> Iterator[Line]:
    """Every key of ``Experiment``, in its order."""
    from msgspec.inspect import type_info

    from fedsim.experiment import CHANNELS, TAGS, Experiment
    from fedsim.keys import accepted, default_of, structs_of

    meanings = _arguments(Experiment)
    for field in type_info(Experiment).fields:  # type: ignore[attr-defined]
        table, variants = field.encode_name, structs_of(field.type)
        if not variants:
            yield Line(table, "", default_of(field), accepted(field.type, briefly=True), meanings.get(table, ""))
            continue
        tag = TAGS.get(table, "")
        if table in CHANNELS:  # the compressor's keys stand beside the channel's
            yield from _fields(table, CHANNELS[table], "", but=(tag,))
            inner = next(inside for inside in variants[0].fields if inside.encode_name == tag)
            variants = structs_of(inner.type)
        if tag:
            names = ", ".join(sorted(str(variant.tag) for variant in variants))
            kinds = " ".join(f'"{variant.tag}": {said}' for variant in variants if (said := _summary(variant.cls)))
            yield Line(f"{table}.{tag}", "", _default_tag(table, tag), f"one of {names}", kinds)
        for variant in variants:
            yield from _fields(table, variant.cls, f'{tag} = "{variant.tag}"' if tag else "")


def _fields(table: str, kind: type, when: str, but: tuple[str, ...] = ()) -> Iterator[Line]:
    from msgspec.inspect import type_info

    from fedsim.keys import accepted, default_of, meaning_of

    meanings = _arguments(kind)
    for field in type_info(kind).fields:  # type: ignore[attr-defined]
        name = field.encode_name
        if name not in but:
            meaning = meanings.get(name) or meaning_of(field.type)
            yield Line(f"{table}.{name}", when, default_of(field), accepted(field.type, briefly=True), meaning)


def _default_tag(table: str, tag: str) -> str:
    from fedsim.experiment import Experiment
    from fedsim.keys import shown

    return shown(Experiment().table()[table][tag]).replace("'", '"')


def _summary(kind: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(kind) or "").partition("Args:")[0].split("\n\n")[0].split())


def _arguments(kind: type) -> dict[str, str]:
    """What a docstring's ``Args:`` says of each name, on one line; and those of the kinds that it is one of."""
    inherited = {} if kind.__base__ is None else _arguments(kind.__base__)
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Args:")
    section = "    " + section.split("\n\n")[0].strip()
    found = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*|\n(?! ).*)*)", section, flags=re.MULTILINE)
    return inherited | {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}
