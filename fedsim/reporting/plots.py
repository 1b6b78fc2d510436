"""Curves and bytes as SVG and CSV, without a browser: for papers, and for the README.

The same runs give the same files: no date, no random identifiers, letters as outlines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import ConfigError
from fedsim.reporting.breakdown import PARTS
from fedsim.reporting.content import DRAWN, MEASURES, Study, axes_of, measures_of
from fedsim.reporting.statistics import Curve, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b3568a", "#3a3f47", "#c58700", "#2b8cc4", "#7a5bb5")
"""Okabe and Ito's, darkened; those of the page."""

MARKS = ("o", "s", "^", "D", "*", "P", "v", "h")
PART_COLOURS = ("#0072b2", "#6db6e3", "#a3adb8", "#e08a00", "#5a2f6b")
PART_NAMES = ("up", "down", "first models", "catch-up", "overhead")

STYLE: Any = {
    "svg.hashsalt": "fedsim",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def export_all(study: Study, folder: Path) -> list[Path]:
    """Write MEASURE-against-AXIS.svg and .csv of all there is, and bytes.svg; the paths. Raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for measure in measures_of(study):
        for axis in axes_of(study):
            place = folder / f"{measure}-against-{axis}"
            place.with_suffix(".csv").write_text(table(study, axis, measure), encoding="utf-8")
            draw_curves(study, place.with_suffix(".svg"), axis, measure)
            written += [place.with_suffix(".svg"), place.with_suffix(".csv")]
    if any(one.traffic is not None for group in study.examined for one in group):
        draw_bytes(study, folder / "bytes.svg")
        written.append(folder / "bytes.svg")
    return written


def table(study: Study, axis: str, measure: str) -> str:
    """A curve of every group as CSV: series, place on the axis, mean, ends of the 95 % interval, seeds."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["series", axis, measure, "low_95", "high_95", "seeds"])
    for group in study.groups:
        found = curve(group.runs, axis, measure)
        for x, mean, half in zip(found.axis.tolist(), found.mean.tolist(), found.half.tolist(), strict=True):
            ends = ["", ""] if np.isnan(half) else [mean - half, mean + half]
            lines.writerow([group.label, x, mean, *ends, found.n])
    return text.getvalue()


def draw_curves(study: Study, path: Path, axis: str, measure: str, log_x: bool = False) -> None:
    """A measure against an axis, as SVG: means over seeds with their 95 % intervals. A loss has a logarithmic axis."""
    label, unit = next((label, unit) for key, label, _, unit in DRAWN if key == axis)
    log_y = not measure.endswith("accuracy")
    with _figure(path, (5.2, 3.3)) as plot:
        plot.set_yscale("log" if log_y else "linear")
        plot.set_xscale("log" if log_x else "linear")
        found = [curve(group.runs, axis, measure) for group in study.groups]
        positive = np.concatenate([one.mean[one.mean > 0] for one in found])
        if log_y and len(positive):  # an interval may reach zero and below: it is cut where the picture ends
            plot.set_ylim(positive.min() / 1.6, positive.max() * 1.6)
        for i, group in enumerate(study.groups):
            _line(plot, i, group.label, found[i], log_x, log_y)
        plot.set_xlabel(label)
        plot.set_ylabel(MEASURES.get(measure, (measure.replace("_", " "), ""))[0])
        if unit:
            _units(plot, unit)
        plot.legend()


def draw_bytes(study: Study, path: Path) -> None:
    """The bytes of each group's runs by part, means over seeds, as SVG."""
    labels = [group.label for group in study.groups]
    left = np.zeros(len(labels))
    amounts = np.array([_parts(study, i) for i in range(len(labels))])
    with _figure(path, (5.2, 0.9 + 0.36 * len(labels))) as plot:
        for part, (colour, name) in enumerate(zip(PART_COLOURS, PART_NAMES, strict=True)):
            plot.barh(labels, amounts[:, part], left=left, color=colour, label=name, height=0.7)
            left += amounts[:, part]
        plot.invert_yaxis()
        plot.grid(visible=False, axis="y")
        plot.set_xlabel("Bytes of a run")
        _units(plot, "B")
        plot.legend()


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Axes]:
    """Draw inside; then the figure is written, as SVG."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("drawing SVG needs matplotlib: pip install 'fedsim[plots]'") from None
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _line(plot: Axes, i: int, label: str, found: Curve, log_x: bool, positive: bool) -> None:
    kept = (found.mean > 0) | (not positive)
    kept &= (found.axis > 0) | (not log_x)
    x, mean, half = found.axis[kept], found.mean[kept], found.half[kept]
    if not len(x):
        return
    colour, every = COLOURS[i % len(COLOURS)], max(1, len(x) // 8)
    style = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
    plot.plot(x, mean, style, color=colour, marker=MARKS[i % len(MARKS)], markevery=(i % every, every), label=label)
    if found.n > 1:
        low = np.maximum(mean - half, plot.get_ylim()[0] / 10) if positive else mean - half
        plot.fill_between(x, low, mean + half, color=colour, alpha=0.18, linewidth=0)


def _units(plot: Axes, unit: str) -> None:
    from matplotlib.ticker import EngFormatter

    plot.xaxis.set_major_formatter(EngFormatter(unit=unit))


def _parts(study: Study, group: int) -> Sequence[float]:
    found = [one.traffic.totals() for one in study.examined[group] if one.traffic is not None]
    return [float(np.mean([one[part] for one in found])) if found else 0.0 for part in PARTS]
