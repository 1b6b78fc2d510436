"""The page: one HTML file that holds its style, its scripts and its data, and asks nothing of any network.

What comes from runs is hostile: it reaches the page as JSON in which no character can end a script, and the scripts
write it as text, never as HTML. Only the scripts whose digests the page's own policy names may run in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from fedsim.errors import ConfigError
from fedsim.reporting.content import Study, Target, content
from fedsim.reporting.detail import SIZES

LARGEST = 6_000_000
"""Bytes of a page."""

SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/plot.umd.min.js",
    *(f"templates/{name}.js" for name in ("base", "export", "curves", "traffic", "page")),
)
"""In the order in which they run."""


def page(study: Study, title: str, target: Target | None = None) -> str:
    """A page that stands alone, as fine as it can be in 6 MB. Raises ConfigError when the runs do not fit at all."""
    for size in SIZES:
        text = render(content(study, title, target, size))
        if len(text.encode()) <= LARGEST:
            return text
    raise ConfigError(f"these runs do not fit into a page of {LARGEST // 10**6} MB; give fewer of them")


def render(report: Mapping[str, Any]) -> str:
    """HTML that shows what ``content`` found."""
    environment = Environment(
        loader=PackageLoader("fedsim.reporting"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    scripts = [_text(name) for name in SCRIPTS]
    return environment.get_template("report.html").render(
        report={**report, "data": report},
        style=Markup(_text("templates/report.css")),  # nosec B704 # the package's own file
        scripts=[Markup(script) for script in scripts],  # nosec B704 # the same
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def to_json(report: Mapping[str, Any]) -> bytes:
    """The same for a page that asks for news."""
    return json.dumps(report, allow_nan=False, separators=(",", ":")).encode()


@cache
def _text(name: str) -> str:
    text = files("fedsim.reporting").joinpath(name).read_text(encoding="utf-8")
    assert "</script" not in text.lower()
    assert "<!--" not in text
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
