"""Draws the plots of a result in the look of the reports: a PNG and an SVG each. Knows panels and labels, no experiment."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from loadgen.report.canvas import FAINT, INK, RUN_COLOURS, figure, look
from loadgen.reproduce.values import Bars, Heat, Line, Lines, Panel, Plot

LEADING = {"JTOM": RUN_COLOURS["jtom"], "ONTO": RUN_COLOURS["static"], "ours": "#1f8a5b", "the paper": "#8a93a0"}
OTHERS = ("#a24bb8", "#c9423f", "#b58a00", "#0f8fa8", "#7a5c3a", "#e377c2", "#6b7684")  # unlike those that lead
MARKERS = "osD^vPX*<>hp"
WIDTH_IN, LINES_IN, BAR_IN, CELL_IN = 10.4, 2.75, 0.27, 0.46
MANY_CELLS = 12  # more columns than this are a picture, not a table
FEW_POINTS = 10  # of a line
MOST_MARKERS = 25  # of a line; those of lines that lie on each other stand in different places


@dataclass(frozen=True, slots=True)
class Drawn:
    name: str
    png: bytes
    svg: str


def drawn(plot: Plot) -> Drawn:
    with look():
        made = _figure(plot)
        png, svg = io.BytesIO(), io.BytesIO()
        made.savefig(png, format="png", dpi=130, facecolor="white")
        made.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Drawn(plot.name, png.getvalue(), svg.getvalue().decode())


def _figure(plot: Plot) -> Figure:
    across = min(plot.across, len(plot.panels))
    down = math.ceil(len(plot.panels) / across)
    height_in = down * max(_height_in(panel, WIDTH_IN / across) for panel in plot.panels)
    labels = list(dict.fromkeys(line.label for panel in plot.panels if isinstance(panel, Lines) for line in panel.lines))
    made = figure(WIDTH_IN, height_in + (0.35 if len(labels) > 1 else 0.0))
    for n, axes in enumerate(made.subplots(down, across, squeeze=False).flat):
        if n < len(plot.panels):
            _panel(axes, plot.panels[n], labels)
        else:
            axes.set_visible(False)
    _legend(made, labels)
    return made


def _height_in(panel: Panel, width_in: float) -> float:
    match panel:
        case Bars():
            return 0.95 + BAR_IN * len(panel.labels)
        case Heat():
            return 1.05 + min(CELL_IN * len(panel.rows), 0.62 * width_in)
    return LINES_IN


def _panel(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    match panel:
        case Lines():
            for line in panel.lines:
                _line(axes, line, labels.index(line.label))
            axes.set_ylabel(panel.y_label)
            _limits(axes, panel)
            if panel.log_y:
                axes.set_yscale("log")
                _in_figures(axes.yaxis)
            if panel.log_x:
                axes.set_xscale("log")
                _in_figures(axes.xaxis)
            _few_ticks(axes, panel)
        case Bars():
            _bars(axes, panel)
        case Heat():
            _heat(axes, panel)


def _line(axes: Axes, line: Line, position: int) -> None:
    colour = LEADING.get(line.label, OTHERS[position % len(OTHERS)])
    x, y = np.array(line.x), np.array(line.y)
    marker, apart = MARKERS[position % len(MARKERS)], math.ceil(max(len(x), 1) / MOST_MARKERS)
    width, order = (1.0, 2) if line.faint else (2.1, 3)
    axes.plot(
        x, y, color=colour, marker=marker, markevery=(position % apart, apart), markersize=3.5 if line.faint else 4.5, linewidth=width,
        zorder=order, label=line.label,
    )  # fmt: skip
    if line.ci95:
        widths = np.array(line.ci95)
        axes.fill_between(x, y - widths, y + widths, color=colour, alpha=0.08 if line.faint else 0.16, linewidth=0, zorder=order - 1)


def _limits(axes: Axes, panel: Lines) -> None:
    """By the means: an interval of few runs may be wide, and must not squeeze the lines."""
    ys = [y for line in panel.lines for y in line.y]
    low, high = min(ys), max(ys)
    if panel.log_y and low > 0.0:
        axes.set_ylim(low / 1.35, high * 1.35)
    elif high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))


def _few_ticks(axes: Axes, panel: Lines) -> None:
    """Few points are ticks."""
    xs = sorted({x for line in panel.lines for x in line.x})
    if len(xs) <= FEW_POINTS:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])


def _in_figures(axis: Axis) -> None:
    """10 on a logarithmic axis, not a power of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _bars(axes: Axes, panel: Bars) -> None:
    positions = np.arange(len(panel.labels))[::-1]
    colours = [LEADING["JTOM"] if label in panel.strong else "#9db4d8" for label in panel.labels]
    axes.barh(positions, panel.values, xerr=panel.ci95 or None, color=colours, height=0.66, error_kw={"ecolor": FAINT, "elinewidth": 1.1})
    axes.set_yticks(positions, panel.labels, fontsize=8.4)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(False, axis="y")
    axes.axvline(0.0, color=FAINT, linewidth=0.9)
    axes.set_xlim(min(0.0, 1.12 * min(panel.values)), max(0.0, 1.12 * max(panel.values)))  # as of lines: a wide interval squeezes nothing


def _heat(axes: Axes, panel: Heat) -> None:
    values = np.array(panel.values)
    axes.imshow(values, cmap="viridis" if not panel.numbers else "Blues", vmin=0.0, vmax=_top(values, panel.numbers), aspect="auto")
    axes.grid(False)
    axes.set_ylabel(panel.y_label)
    axes.tick_params(length=0)
    if len(panel.columns) <= MANY_CELLS:
        axes.set_xticks(range(len(panel.columns)), panel.columns, fontsize=8)
        axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if panel.numbers:
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.6 * _top(values, True)
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color="#ffffff" if dark else "#16202b")


def _top(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], numbers: bool) -> float:
    """A few hot experts must not make all others look alike."""
    return max(1.0 if numbers else float(np.quantile(values, 0.99)), 1e-9)


def _legend(made: Figure, labels: Sequence[str]) -> None:
    if len(labels) < 2:
        return
    handles: dict[str, Artist] = {}
    for axes in made.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    made.legend([handles[label] for label in labels], labels, loc="outside upper left", ncols=min(len(labels), 6), fontsize=8.4)
