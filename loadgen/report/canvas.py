"""Figures in the report's one look, saved as PNG and as inline SVG whose ink follows the page's light or dark theme. Draws no data."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2a37", "#6b7684", "#dfe4ea"  # each is one CSS variable in SVG
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"}
RUN_COLOURS = {"portfolio": "#2a9d6f", "jtom": "#2f6fde", "static": "#e0812b"}
SPARE_COLOURS = ("#2f6fde", "#e0812b", "#2a9d6f", "#a24bb8", "#c9423f")
EDGE_MARKERS = ("^", "s", "o", "D", "v", "P")
_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moedge",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One finished figure: `svg` for the page, `png` for beside it."""

    name: str
    svg: str
    png: bytes

    def save(self, directory: Path) -> Path:
        path = directory / f"{self.name}.png"
        path.write_bytes(self.png)
        return path


@contextmanager
def look() -> Iterator[None]:
    """The report's style, for the figures made within and for nothing else."""
    with mpl.rc_context(_LOOK):
        yield


def figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in))


def finish(name: str, drawn: Figure) -> Plot:
    """Save a figure in both forms."""
    png, svg = io.BytesIO(), io.BytesIO()
    drawn.savefig(png, format="png", dpi=144, facecolor="white")
    drawn.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(name, inline(svg.getvalue().decode(), name), png.getvalue())


def inline(svg: str, name: str) -> str:
    """An SVG document as a fragment of a page: no prolog, metadata or addresses; ids of its own; theme colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: (bold |)([\d.]+px) [^;\"]*", lambda m: f"font-size: {m[2]};" + (" font-weight: 700" if m[1] else ""), svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", '<svg role="img"', 1)


def colour_of(run: str, position: int) -> str:
    return RUN_COLOURS.get(run, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def mark_drifts(axes: Axes, drifts_at_s: tuple[float, ...]) -> None:
    """Dashed lines where the task mix changed."""
    for n, at_s in enumerate(drifts_at_s):
        axes.axvline(at_s, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.1, label="mix changes" if n == 0 else None, zorder=1)


def mark_updates(axes: Axes, runs: Sequence[tuple[str, Mapping[str, list[float]]]]) -> None:
    """Marks above the time axis where an edge took a new version, a shape and a height an edge. `runs`: a colour and instants by edge for
    each."""
    style: dict[str, Any] = {"markersize": 7, "linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.7}
    for n, edge_id in enumerate(sorted({edge_id for _, updates in runs for edge_id in updates})):
        marker = EDGE_MARKERS[n % len(EDGE_MARKERS)]
        axes.plot([], [], marker=marker, color=FAINT, label=f"update of {edge_id}", **style)
        for colour, at_s in ((colour, updates[edge_id]) for colour, updates in runs if edge_id in updates):
            places = [0.035 + 0.055 * n] * len(at_s)
            axes.plot(at_s, places, marker=marker, color=colour, transform=axes.get_xaxis_transform(), clip_on=False, zorder=5, **style)
