"""A user's own part of an experiment, by entry point or by dotted path "package.module:name"."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedsim.errors import ConfigError
from fedsim.keys import nearest


def named(key: str, name: str, known: Iterable[str], group: str) -> Any:
    """What ``name`` stands for. known: the built-in names; group: of entry points.

    Raises ConfigError naming ``key`` when there is no such name, or the module cannot be imported or lacks it.
    """
    known = tuple(known)
    for entry in entry_points(group=group, name=name):
        return entry.load()
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ConfigError(
            f"{key} = {name!r}: unknown{nearest(name, known)}; one of: {', '.join(known)}, or your own as "
            "'package.module:name'"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} = {name!r}: {error}; the module must be importable from where fedsim runs") from None
