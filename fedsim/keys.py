"""Errors for a person who mistyped a key or a value: where, what was given, what is possible."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, time
from functools import cache
from typing import Any

import msgspec
from msgspec.inspect import (
    BoolType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from fedsim.errors import ConfigError

SHOWN = 60
"""Characters of a wrong value that an error repeats."""
MAX_WHOLE = 2**31 - 1


def nearest(given: str, possible: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing when no name is close.

    >>> nearest("level", ["levels", "norm"])
    " (did you mean 'levels'?)"
    """
    close = difflib.get_close_matches(given[:SHOWN], list(possible), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: object) -> str:
    """A value as a user would write it, on one line and not too long.

    >>> shown(True), shown("4/L"), shown("ab" * 100)[-7:]
    ('true', "'4/L'", 'aba ...')
    """
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = value.isoformat() if isinstance(value, (date, time)) else repr(value)
    except ValueError:  # more digits than Python writes
        return "a number with thousands of digits"
    return text if len(text) <= SHOWN else text[: SHOWN - 4] + " ..."


def check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct], tags: Mapping[str, str]) -> None:
    """Raise ConfigError for a key that ``kind`` does not know, a missing one, an unknown variant, an endless number.

    tags: table name -> the key that selects the variant of that table.
    """
    top = _described(kind)
    assert isinstance(top, StructType)
    fields = {field.encode_name: field for field in top.fields}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"unknown key {shown(key)}{nearest(key, fields)}; keys: {_listed(fields)}")
        variants = structs_of(fields[key].type)
        if variants and not isinstance(value, Mapping):
            example = tags.get(key) or variants[0].fields[0].encode_name
            raise ConfigError(
                f"{key} = {shown(value)}: expected a table [{key}], for example --set {key}.{example}=value"
            )
        if variants:
            _check_table(key, value, fields[key].type, tags.get(key, ""))


def _check_table(name: str, table: Mapping[str, Any], type_: Type, tag: str) -> None:
    shared, chosen = _channel_parts(type_, tag)
    variants = {str(variant.tag): variant for variant in chosen if variant.tag is not None}
    fields: dict[str, Field] = dict(shared)
    possible = list(shared)
    if variants:
        given = table.get(tag)
        if not isinstance(given, str) or given not in variants:
            raise ConfigError(
                f"{name}.{tag} = {shown(given)}: unknown{nearest(str(given), variants)}; "
                f"one of: {', '.join(sorted(variants))}"
                + (f", with its keys in [{name}] itself" if isinstance(given, Mapping) else "")
            )
        own = {field.encode_name: field for field in variants[given].fields}
        fields, possible = fields | own, [tag, *own, *shared]
    else:
        fields = {field.encode_name: field for field in chosen[0].fields}
        possible = list(fields)
    for key in table:
        if key not in possible:
            raise ConfigError(
                f"unknown key {shown(f'{name}.{key}')}"
                + (f" (did you mean '{name}.{close}'?)" if (close := _close(key, possible)) else "")
                + f"; keys of [{name}]{f' with {tag} = {table[tag]!r}' if variants else ''}: {_listed(possible)}; "
                f"`fedsim keys {name.split('.')[0]}` explains them"
            )
        _check_size(f"{name}.{key}", table[key])
        if key != tag and isinstance(table[key], Mapping) and (inner := structs_of(fields[key].type)):
            _check_table(f"{name}.{key}", table[key], fields[key].type, str(inner[0].tag_field))
    for key, field in fields.items():
        if field.required and key not in table and key != tag:
            raise ConfigError(
                f"{name}.{key} is missing; [{name}] with {tag} = {table.get(tag)!r} needs it{_aside(field.type)}"
            )


def _check_size(place: str, value: Any) -> None:
    """Refuse NaN, infinity, and whole numbers that no machine counts to: the bounds of a key leave them open."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{place} = {shown(value)}: expected a finite number")
        if isinstance(number, int) and abs(number) > MAX_WHOLE:
            raise ConfigError(f"{place} = {shown(value)}: expected at most {MAX_WHOLE}")


def unknown_value(message: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    """One line for the value that ``kind`` refused: its key, the value, what is expected.

    message: msgspec's, such as "Expected `int` >= 1 - at `$.uplink.compressor.levels`". Only its place is kept; what is
    expected is read off the type, whole and in words.
    """
    match = re.search(r" - at `\$\.?(?P<path>.*)`$", message)
    path = match["path"] if match else ""
    value: Any = table
    type_: Type = _described(kind)
    for name in re.findall(r"[^.\[\]]+", path):
        type_ = _inner(type_, name, value)
        value = value[int(name)] if isinstance(value, (list, tuple)) else value[name]
    return f"{path.replace('.compressor.', '.')} = {shown(value)}: expected {accepted(type_)}"


def _inner(type_: Type, name: str, value: Any) -> Type:
    """The type of what ``value`` holds under a name or an index."""
    if isinstance(type_, Metadata):
        return _inner(type_.type, name, value)
    if isinstance(type_, VarTupleType):
        return type_.item_type
    structs = structs_of(type_)
    chosen = next(struct for struct in structs if len(structs) == 1 or value.get(struct.tag_field) == struct.tag)
    return next(field.type for field in chosen.fields if field.encode_name == name)


def accepted(type_: Type, briefly: bool = False) -> str:
    """What a type accepts, in words. briefly: without its description."""
    match type_:
        case Metadata(type=inner):
            return accepted(inner) + ("" if briefly else _aside(type_))
        case UnionType(types=types):
            return ", or ".join(map(accepted, types))
        case LiteralType(values=values):
            return " or ".join(map(repr, values))
        case IntType():
            return "a whole number" + _bounds(type_)
        case FloatType():
            return "a number" + _bounds(type_)
        case BoolType():
            return "true or false"
        case StrType():
            return "text"
        case VarTupleType(item_type=item, min_length=least):
            return f"a list{f' of at least {least}' if least else ''}, each item {accepted(item)}"
        case StructType(tag_field=str(field), tag=tag):
            return f"a table with {field} = {tag!r}"
        case _:
            return "another kind of value"


def default_of(field: Field) -> str:
    """A field's default as TOML; "" for one that must be given.

    >>> from fedsim.participation import Bernoulli
    >>> [default_of(field) for field in type_info(Bernoulli).fields]
    ['']
    """
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return f'"{value.__struct_config__.tag}"'
    return shown(list(value) if isinstance(value, tuple) else value).replace("'", '"')


def _bounds(type_: IntType | FloatType) -> str:
    """
    >>> _bounds(FloatType(gt=0, le=1)), _bounds(IntType(ge=1, le=9)), _bounds(IntType(ge=1))
    (' > 0 and <= 1', ' from 1 to 9', ' >= 1')
    """
    if type_.ge is not None and type_.le is not None:
        return f" from {type_.ge} to {type_.le}"
    limits = ((">", type_.gt), (">=", type_.ge), ("<", type_.lt), ("<=", type_.le))
    given = [f"{sign} {limit}" for sign, limit in limits if limit is not None]
    return " " + " and ".join(given) if given else ""


@cache
def _described(kind: type[msgspec.Struct]) -> Type:
    return type_info(kind)


def _close(key: str, possible: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(key[:SHOWN], list(possible), n=1)), "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def structs_of(type_: Type) -> list[StructType]:
    """The structs that a type admits."""
    inner = type_.types if isinstance(type_, UnionType) else (type_,)
    return [struct for struct in inner if isinstance(struct, StructType)]


def _channel_parts(type_: Type, tag: str) -> tuple[dict[str, Field], list[StructType]]:
    """(fields that every variant has, variants). A channel's variants are those of its field named ``tag``."""
    structs = structs_of(type_)
    if len(structs) == 1 and structs[0].tag is None:
        fields = {field.encode_name: field for field in structs[0].fields}
        if tag in fields:
            variants = structs_of(fields.pop(tag).type)
            return fields, variants
    return {}, structs


def meaning_of(type_: Type) -> str:
    """The description attached to a type, or nothing."""
    schema = (type_.extra_json_schema if isinstance(type_, Metadata) else None) or {}
    return str(schema.get("description", ""))


def _aside(type_: Type) -> str:
    return f" ({meaning})" if (meaning := meaning_of(type_)) else ""
