"""What a reader does with the page: every figure that a browser shows is compared with what the runs say."""

from __future__ import annotations

import csv
import json
import re
import shutil
import struct
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fedsim.experiment import from_table
from fedsim.reporting.content import EXCESS, Study, study
from fedsim.reporting.live import Watched, serving
from fedsim.reporting.page import page
from fedsim.reporting.runs import find_runs
from fedsim.reporting.statistics import curve
from fedsim.reporting.timed import timed
from tests.browser.conftest import Open
from tests.studied import LABELS, experiment

EXCESS_CHART = f'figure[data-name="{EXCESS}"]'
ACCURACY_CHART = 'figure[data-name="test_accuracy"]'


def saved(tab: Any, figure: str, kind: str) -> Path:
    with tab.expect_download() as waiting:
        tab.click(f'{figure} figcaption button:text-is("{kind}")')
    path: Path = waiting.value.path()
    return path.rename(path.with_name(f"{path.name}-{waiting.value.suggested_filename}"))


def lines(tab: Any, figure: str = EXCESS_CHART) -> list[str]:
    """The outlines of the curves that are drawn."""
    found: list[str] = tab.eval_on_selector_all(
        f'{figure} g[aria-label="line"] path', "all => all.map(one => one.getAttribute('d'))"
    )
    return found


def axis_labels(tab: Any) -> set[str]:
    return set(
        tab.eval_on_selector_all("#charts g[aria-label='x-axis label']", "all => all.map(one => one.textContent)")
    )


def test_switch_the_axis(open_page: Open) -> None:
    tab = open_page()
    assert axis_labels(tab) == {"Bytes"}
    drawn = {tuple(lines(tab))}
    for name in ("Rounds", "Formula bits", "Payload bits"):
        tab.check(f'#toolbar input[name="axis"] + span:text-is("{name}") >> xpath=../input', force=True)
        assert axis_labels(tab) == {name}
        drawn.add(tuple(lines(tab)))
    assert len(drawn) == 4


def test_seconds_over_a_network(open_page: Open, runs: Path, tmp_path: Path) -> None:
    given = study(timed(find_runs([runs]), "iot"), None)
    (tmp_path / "timed.html").write_text(page(given, "Timed"), encoding="utf-8")
    tab = open_page((tmp_path / "timed.html").as_uri())
    before = lines(tab, 'figure[data-name="loss"]')
    tab.check('#toolbar input[name="axis"] + span:text-is("Simulated seconds") >> xpath=../input', force=True)
    assert axis_labels(tab) == {"Simulated seconds"}
    assert lines(tab, 'figure[data-name="loss"]') != before
    rows = list(csv.DictReader(saved(tab, 'figure[data-name="loss"]', "CSV").read_text().splitlines()))
    (seconds,) = {name for name in rows[0] if "econds" in name}
    ends = {float(run.axis("seconds")[-1]) for group in given.groups for run in group.runs}
    assert max(float(row[seconds]) for row in rows) <= max(ends)
    assert max(float(row[seconds]) for row in rows) >= min(ends)


def test_switch_the_scales(open_page: Open) -> None:
    tab = open_page()
    drawn = {tuple(lines(tab))}
    accuracy = lines(tab, ACCURACY_CHART)
    tab.check('input[name="yscale"][value="linear"]', force=True)
    drawn.add(tuple(lines(tab)))
    assert lines(tab, ACCURACY_CHART) == accuracy  # never logarithmic
    tab.check('input[name="xscale"][value="log"]', force=True)
    drawn.add(tuple(lines(tab)))
    assert len(drawn) == 3
    assert len(lines(tab)) == 3


def test_hide_a_series(open_page: Open) -> None:
    tab = open_page()
    before = lines(tab)
    tab.click(f'#legend button:has-text("{LABELS[1]}")')
    assert lines(tab)[0] != before[0] or len(lines(tab)) == 2
    assert len(lines(tab)) == 2
    assert tab.get_attribute(f'#legend button:has-text("{LABELS[1]}")', "aria-pressed") == "false"
    with saved(tab, EXCESS_CHART, "CSV").open(newline="") as file:
        assert {line["series"] for line in csv.DictReader(file)} == {LABELS[0], LABELS[2]}
    for label in (LABELS[0], LABELS[2]):
        tab.click(f'#legend button:has-text("{label}")')
    assert "Every series is hidden" in tab.text_content(EXCESS_CHART)
    tab.click(f'#legend button:has-text("{LABELS[1]}")')
    assert len(lines(tab)) == 1


def test_intervals_and_theory_can_be_left_out(open_page: Open) -> None:
    tab = open_page()
    areas = f'{EXCESS_CHART} g[aria-label="area"] path'
    assert tab.locator(areas).count() == 3
    tab.uncheck("text=95 % intervals")
    assert tab.locator(areas).count() == 0
    tab.check('input[name="axis"][value="rounds"]', force=True)
    assert len(lines(tab)) == 6  # and three predictions
    tab.uncheck("text=Theory")
    assert len(lines(tab)) == 3


@pytest.mark.parametrize("axis", ["rounds", "bytes"])
def test_csv_is_what_the_statistics_say(open_page: Open, studied: Study, axis: str) -> None:
    tab = open_page()
    tab.check(f'input[name="axis"][value="{axis}"]', force=True)
    with saved(tab, EXCESS_CHART, "CSV").open(newline="") as file:
        table = list(csv.DictReader(file))
    for group in studied.groups:
        found = curve(group.runs, axis, EXCESS)
        mine = [line for line in table if line["series"] == group.label]
        digits = 5e-6  # the page has six
        ends = digits * (found.mean + found.half)
        for name, wanted, error in (
            (axis, found.axis, digits * found.axis),
            (EXCESS, found.mean, digits * found.mean),
            ("low_95", found.mean - found.half, ends),
            ("high_95", found.mean + found.half, ends),
        ):
            assert (np.abs(np.array([float(line[name]) for line in mine]) - wanted) <= 1.001 * error).all(), name


def test_every_figure_is_saved(open_page: Open) -> None:
    """An SVG stands alone: no variable of the page, no script, and it can be read as XML."""
    tab = open_page(color_scheme="dark")
    # Chromium begins ten downloads of a page in a row and no eleventh: they are taken where they would begin.
    tab.evaluate("() => { Page.save = async (name, blob) => { window.saved = [name, await blob.text()]; }; }")
    names = tab.eval_on_selector_all("figure", "all => all.map(one => one.dataset.name)")
    assert {"bytes-by-method", "bytes-by-round", "bytes-by-client", "presence", "client-loss"} < set(names)
    for name in names:
        figure = f'figure[data-name="{name}"]'
        tab.click(f'{figure} figcaption button:text-is("SVG")')
        tab.wait_for_function("name => window.saved?.[0] === name", arg=f"{name}.svg")
        text = tab.evaluate("window.saved[1]")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in text
        assert "<script" not in text
        assert "#0f141b" not in text  # of the dark theme


def test_bytes_by_method_as_csv(open_page: Open) -> None:
    tab = open_page()
    with saved(tab, 'figure[data-name="bytes-by-method"]', "CSV").open(newline="") as file:
        assert [line["series"] for line in csv.DictReader(file)] == list(LABELS)


def test_a_png_has_three_pixels_a_unit(open_page: Open) -> None:
    tab = open_page()
    png = saved(tab, EXCESS_CHART, "PNG").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width == 3 * int(tab.get_attribute(f"{EXCESS_CHART} .canvas svg", "width"))
    assert height > 3 * int(tab.get_attribute(f"{EXCESS_CHART} .canvas svg", "height"))


def test_values_under_the_pointer(open_page: Open, studied: Study) -> None:
    tab = open_page()
    tab.check('input[name="axis"][value="rounds"]', force=True)
    chart = tab.locator(f"{EXCESS_CHART} .canvas svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert tab.locator(f"{EXCESS_CHART} .readout").is_hidden()
    tab.mouse.move(box["x"] + box["width"] - 20, box["y"] + 150)
    text = tab.text_content(f"{EXCESS_CHART} .readout")
    assert "rounds: 30" in text
    for group in studied.groups:
        assert group.label in text
        shown = re.search(rf"{group.label}([\d.]+) ±", text)
        assert shown is not None
        assert float(shown.group(1)) == pytest.approx(curve(group.runs, "rounds", EXCESS).mean[-1], rel=1e-3)
    tab.mouse.move(5, 5)
    assert tab.locator(f"{EXCESS_CHART} .readout").is_hidden()


def test_values_by_arrow_keys(open_page: Open) -> None:
    tab = open_page()
    chart = tab.locator(f"{EXCESS_CHART} .canvas svg").first
    chart.focus()
    tab.keyboard.press("Home")
    first = tab.text_content(f'{EXCESS_CHART} [aria-live="polite"]')
    tab.keyboard.press("End")
    last = tab.text_content(f'{EXCESS_CHART} [aria-live="polite"]')
    tab.keyboard.press("ArrowLeft")
    between = tab.text_content(f'{EXCESS_CHART} [aria-live="polite"]')
    assert len({first, last, between}) == 3
    assert all(label in first for label in LABELS)
    tab.keyboard.press("Escape")
    assert tab.locator(f"{EXCESS_CHART} .readout").is_hidden()


FOCUSED = """() => {
    const at = document.activeElement;
    const ring = at.matches("input[type=radio]") ? at.nextElementSibling : at;
    const name = at === document.body ? "body" : at.id || at.getAttribute("aria-label") || at.name || at.textContent;
    return [name, getComputedStyle(ring).outlineStyle];
}"""
COLOUR = """name => {
    const one = document.createElement("i");
    one.style.color = `var(${name})`;
    document.body.append(one);
    const found = getComputedStyle(one).color;
    one.remove();
    return found;
}"""
WIDER = """all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"""
OUTLINE = """g[aria-label="line"] path"""


def test_everything_is_reached_by_tab(open_page: Open) -> None:
    """Each control once, in the order of the page, and one can see where one is."""
    tab = open_page()
    reached, outlines = [], []
    for _ in range(80):
        tab.keyboard.press("Tab")
        name, ring = tab.evaluate(FOCUSED)
        if name == "body":
            break
        reached.append(name)
        outlines.append(ring)
    for name in ("theme", "print", "axis", "xscale", "yscale", *LABELS, "Save Excess loss as CSV", "run"):
        assert name in reached
    assert reached.index("theme") < reached.index("axis") < reached.index(LABELS[0]) < reached.index("run")
    assert "none" not in outlines


def test_every_control_has_a_name(open_page: Open) -> None:
    tab = open_page()
    for role in ("button", "radio", "checkbox", "combobox"):
        for control in tab.get_by_role(role).all():
            assert control.evaluate("one => one.ariaLabel || one.textContent || one.labels?.[0]?.textContent")
    assert tab.locator("html").get_attribute("lang") == "en"
    assert [tab.locator(f"h{level}").count() > 0 for level in (1, 2, 3)] == [True] * 3


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: the ratio of two colours' relative luminances, 1 to 21."""

    def luminance(text: str) -> float:
        parts = [int(x) / 255 for x in re.findall(r"\d+", text)[:3]]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(open_page: Open, scheme: str) -> None:
    """Text 4.5 to 1 against what is behind it, lines and marks 3 to 1; the button changes the theme."""
    tab = open_page(color_scheme=scheme)

    def colour(name: str) -> str:
        found: str = tab.evaluate(COLOUR, name)
        return found

    for text in ("--ink", "--soft", "--accent"):
        for behind in ("--card", "--back"):
            assert contrast(colour(text), colour(behind)) >= 4.5, (text, behind)
    assert contrast(colour("--on-accent"), colour("--accent")) >= 4.5
    for i in range(8):
        assert contrast(colour(f"--s{i}"), colour("--card")) >= 3, i
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert tab.get_attribute("#theme", "aria-pressed") == str(scheme == "light").lower()


@pytest.mark.parametrize("width", [320, 380, 768])
def test_nothing_is_wider_than_the_screen(open_page: Open, width: int) -> None:
    tab = open_page(viewport={"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.eval_on_selector_all("button, select, label, figure, .card, td, th", WIDER) == []


def test_another_run(open_page: Open, runs: Path) -> None:
    tab = open_page()
    options = tab.eval_on_selector_all("#run option", "all => all.map(one => one.textContent)")
    assert options == [f"{label}, seed {seed}" for label in LABELS for seed in (0, 1)]
    tab.select_option("#run", label=f"{LABELS[2]}, seed 1")
    assert "seed 1" in tab.text_content("#run-name")
    tab.click("summary:has-text('experiment.toml')")
    toml = tab.text_content("#one details pre")
    assert from_table(tomllib.loads(toml)) == experiment("sgd", 1)
    with tab.expect_download() as waiting:
        tab.click("#one details button:text-is('Save')")
    assert waiting.value.path().read_text() == toml
    facts = json.loads((runs / "sgd-1" / "manifest.json").read_text())
    assert facts["model_sha256"] in tab.text_content("#one dl")
    with saved(tab, 'figure[data-name="presence"]', "CSV").open(newline="") as file:
        there = {(int(line["client"]), int(line["round"])) for line in csv.DictReader(file) if line["share"] == "1"}
    with (runs / "sgd-1" / "ledger.csv").open() as file:
        assert there == {(int(x["client"]), int(x["round"])) for x in csv.DictReader(file) if x["direction"] == "up"}


def test_copy(open_page: Open) -> None:
    tab = open_page(permissions=["clipboard-read", "clipboard-write"])
    tab.click("#one .heading button:text-is('Copy')")
    tab.wait_for_selector("#one .heading button:text-is('Copied')")
    assert tab.evaluate("navigator.clipboard.readText()") == tab.text_content("#one pre.line")


def test_share_of_the_total(open_page: Open) -> None:
    tab = open_page()
    figure = 'figure[data-name="bytes-by-method"]'
    before = tab.inner_html(f"{figure} .canvas")
    tab.check('input[name="share"][value="share"]', force=True)
    assert tab.inner_html(f"{figure} .canvas") != before
    assert "100%" in tab.text_content(f"{figure} .canvas")


def test_hostile_texts_are_shown_and_do_nothing(open_page: Open, runs: Path, tmp_path: Path) -> None:
    bad = "</script><img src=x onerror='window.hurt=1'><svg onload='window.hurt=1'>"
    shutil.copytree(runs / "sgd-0", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(facts | {"engine": bad, bad: bad}))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 30, "loss": 0.5, bad: 1.0}) + "\n")
    (tmp_path / "x.html").write_text(page(study(find_runs([tmp_path / "run"]), None), bad))
    tab = open_page((tmp_path / "x.html").as_uri())
    assert tab.text_content("h1") == bad
    assert bad in tab.text_content("#one dl")
    assert tab.locator("img").count() == 0
    assert tab.evaluate("window.hurt") is None
    saved(tab, 'figure[data-name="loss"]', "SVG")


def test_a_page_that_is_live(open_page: Open, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with the run, keeps what the reader has chosen, and says when the run has ended."""
    monkeypatch.setattr("fedsim.reporting.live.SHORTEST", 0.0)
    run = tmp_path / "run"
    shutil.copytree(runs / "sgd-0", run)
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    facts = json.loads((run / "manifest.json").read_text())
    (run / "metrics.jsonl").write_text("".join(whole[:3]))
    (run / "manifest.json").write_text(json.dumps(facts | {"status": "running"}))
    with serving(Watched([run], "live")) as address:
        tab = open_page(address, address)
        figure = 'figure[data-name="loss"]'
        assert tab.text_content("#live") == "live"
        tab.check('input[name="axis"][value="rounds"]', force=True)
        before = lines(tab, figure)
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(whole[3:])
        changed = "([at, was]) => document.querySelector(at).getAttribute('d') !== was"
        tab.wait_for_function(changed, arg=[f"{figure} {OUTLINE}", before[0]])
        assert axis_labels(tab) == {"Rounds"}
        (run / "manifest.json").write_text(json.dumps(facts))
        tab.wait_for_selector("#live:has-text('the run has ended')")


def test_in_print(open_page: Open) -> None:
    tab = open_page(color_scheme="dark")
    tab.emulate_media(media="print")
    assert tab.locator("#toolbar").is_hidden()
    assert tab.locator(f"{EXCESS_CHART} figcaption button").first.is_hidden()
    pdf = tab.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type/Page\n") <= 8
