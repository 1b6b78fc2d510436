"""A user's own part of an experiment, by entry point or by dotted path "package.module:name"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, cast, get_args

import msgspec

from fedsim.errors import ConfigError, FedsimError
from fedsim.keys import nearest, shown

NAMES_CODE = {"names code": True}
"""What the type of a key says (``msgspec.Meta.extra``) whose value may name Python code."""


def code_named(part: msgspec.Struct, at: str = "") -> Iterator[str]:
    """The keys of an experiment that name code by dotted path, with their values: ``rate.factory = 'os:system'``.

    An entry point is not among them: it names what the owner of this machine has installed for fedsim.
    """
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, msgspec.Struct):
            yield from code_named(value, f"{at}{field.encode_name}.")
        elif _names_code(field.type) and ":" in value:
            yield f"{at}{field.encode_name} = {shown(value)}"


def named(key: str, name: str, known: Iterable[str], group: str) -> Callable[..., Any]:
    """The function that ``name`` stands for. known: the built-in names; group: of entry points.

    Raises ConfigError naming ``key`` when there is no such name, the module cannot be imported or lacks it, or what it
    names cannot be called.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        found = _offered(key, name, tuple(known), group)
    elif not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise ConfigError(f"{key} = {name!r}: expected 'package.module:name', for example 'my_parts:name'")
    else:
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{key} = {name!r}: {error}; the module must be importable from where fedsim runs"
            ) from None
    if not callable(found):
        raise ConfigError(f"{key} = {name!r} is of type {type(found).__name__}, expected a function; name another")
    return cast(Callable[..., Any], found)


def made(key: str, name: str, options: Mapping[str, Any], group: str, methods: Iterable[str]) -> Any:
    """What the function that ``name`` stands for makes of ``options``, its keywords.

    Raises ConfigError as ``named``, and when the function does not take these keywords or returns something without
    one of the ``methods``.
    """
    function = named(key, name, (), group)
    try:
        signature(function).bind(**options)
    except ValueError:  # some built-in functions have no signature; the call itself decides
        pass
    except TypeError as error:
        raise ConfigError(f"{key} = {name!r} does not take these options ({error}); see its signature") from None
    with blamed(key, name):
        part = function(**options)
    for method in methods:
        if not callable(getattr(part, method, None)):
            raise ConfigError(f"{key} = {name!r} returned {type(part).__name__}, which has no method {method!r}")
    return part


@contextmanager
def blamed(key: str, name: str) -> Iterator[None]:
    """What a user's own part raises inside becomes a ConfigError that names it; fedsim's own errors come through."""
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{key} = {name!r} failed ({reason}); mend it, or see the protocol it must follow") from error


def _offered(key: str, name: str, known: tuple[str, ...], group: str) -> Any:
    """What an installed package offers under a name."""
    offers = _offers(group)
    if name in offers:
        try:
            return offers[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{key} = {name!r}: {error}; repair or remove {offers[name].value!r}") from None
    names = (*known, *offers)
    listed = f"one of: {', '.join(names)}, or your own as " if names else "expected "
    raise ConfigError(f"{key} = {name!r}: unknown{nearest(name, names)}; {listed}'package.module:name'")


def _names_code(kind: Any) -> bool:
    return any(isinstance(meta, msgspec.Meta) and meta.extra == NAMES_CODE for meta in get_args(kind))


@cache
def _offers(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer to fedsim; looked up once, because it reads every package's metadata."""
    return {entry.name: entry for entry in entry_points(group=group)}
