"""Errors for a person who mistyped a key or a value: where, what was given, what is possible."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.inspect import Field, StructType, Type, UnionType, type_info

from fedsim.errors import ConfigError


def nearest(given: str, possible: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing when no name is close.

    >>> nearest("level", ["levels", "norm"])
    " (did you mean 'levels'?)"
    """
    close = difflib.get_close_matches(given, list(possible), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct], tags: Mapping[str, str]) -> None:
    """Raise ConfigError for the first key that ``kind`` does not know, for a missing one and for an unknown variant.

    tags: table name -> the key that selects the variant of that table.
    """
    top = type_info(kind)
    assert isinstance(top, StructType)
    fields = {field.encode_name: field for field in top.fields}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"unknown key {key!r}{nearest(key, fields)}; keys: {_listed(fields)}")
        variants = _structs(fields[key].type)
        if variants and not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {value!r}: expected a table [{key}], for example --set {key}.name=value")
        if variants:
            _check_table(key, value, fields[key].type, tags.get(key, ""))


def _check_table(name: str, table: Mapping[str, Any], type_: Type, tag: str) -> None:
    shared, chosen = _channel_parts(type_, tag)
    variants = {str(variant.tag): variant for variant in chosen if variant.tag is not None}
    fields: dict[str, Field] = dict(shared)
    possible = list(shared)
    if variants:
        given = table.get(tag)
        if given not in variants:
            raise ConfigError(
                f"{name}.{tag} = {given!r}: unknown{nearest(str(given), variants)}; one of: {', '.join(sorted(variants))}"
            )
        own = {field.encode_name: field for field in variants[given].fields}
        fields, possible = fields | own, [tag, *own, *shared]
    elif chosen:
        fields = {field.encode_name: field for field in chosen[0].fields}
        possible = list(fields)
    for key in table:
        if key not in possible:
            raise ConfigError(
                f"unknown key '{name}.{key}'"
                + (f" (did you mean '{name}.{close}'?)" if (close := _close(key, possible)) else "")
                + f"; keys of [{name}]{f' with {tag} = {table[tag]!r}' if variants else ''}: {_listed(possible)}"
            )
    for key, field in fields.items():
        if field.required and key not in table and key != tag:
            raise ConfigError(
                f"{name}.{key} is missing; [{name}] with {tag} = {table.get(tag)!r} needs it{_meaning(field.type)}"
            )


def unknown_value(message: str, table: Mapping[str, Any]) -> str:
    """A msgspec message ("Expected `int` >= 1 - at `$.uplink.levels`") as our one line with the value that was given."""
    match = re.fullmatch(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", message, flags=re.DOTALL)
    assert match is not None
    path = (match["path"] or "").replace(".compressor.", ".")
    value: Any = table
    for name in (match["path"] or "").split("."):
        value = value.get(name, "") if isinstance(value, Mapping) else value
    what = match["what"].replace("`", "")
    return f"{path} = {value!r}: {what[:1].lower()}{what[1:]}"


def _close(key: str, possible: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(key, list(possible), n=1)), "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _structs(type_: Type) -> list[StructType]:
    inner = type_.types if isinstance(type_, UnionType) else (type_,)
    return [struct for struct in inner if isinstance(struct, StructType)]


def _channel_parts(type_: Type, tag: str) -> tuple[dict[str, Field], list[StructType]]:
    """(fields that every variant has, variants). A channel's variants are those of its field named ``tag``."""
    structs = _structs(type_)
    if len(structs) == 1 and structs[0].tag is None:
        fields = {field.encode_name: field for field in structs[0].fields}
        if tag in fields:
            variants = _structs(fields.pop(tag).type)
            return fields, variants
    return {}, structs


def _meaning(type_: Type) -> str:
    """The description attached to a type, as the end of a sentence."""
    description = getattr(type_, "extra_json_schema", None) or {}
    return f": {description['description']}" if "description" in description else ""
