"""A headless Chromium, and the report opened in it from disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedsim.reporting.content import Study
from fedsim.reporting.page import page
from tests.studied import runs, studied

__all__ = ["runs", "studied"]

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's browser, driven by playwright, whose event loop no other module's tests may find running."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'fedsim[dev]'")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt install chromium")
    with driver.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def report(studied: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page on disk."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(studied, "Three methods"), encoding="utf-8")
    return path.as_uri()


Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, report: str) -> Iterator[Open]:
    """``open_page()``; how a browser is set up may be given. At the end: no error, no request to any network."""
    contexts, wrong = [], []

    def open_it(address: str = report, allowed: str = "file://", **options: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1200, "height": 900}, "accept_downloads": True} | options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}"))
        own = (allowed, "data:", "blob:")
        tab.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(f"asked: {asked.url}"))
        tab.goto(address)
        tab.wait_for_selector("#charts svg")
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []
