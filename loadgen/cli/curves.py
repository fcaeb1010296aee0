"""The plot of `moedge merge --compare`: score against bits for each original expert weight, one curve a way to make experts smaller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import colormaps

from loadgen.report.canvas import FAINT, INK, Plot, figure, finish, look

if TYPE_CHECKING:
    from services.model.comparison import Comparison, Point


def save_curves(found: Sequence[Comparison], out: Path) -> tuple[Path, ...]:
    """One PNG a task type; the folder must exist."""
    with look():
        return tuple(_curves(comparison).save(out) for comparison in found)


def _curves(comparison: Comparison) -> Plot:
    drawn = figure(9.5, 5.2)
    axes = drawn.subplots()
    lines: dict[str, list[Point]] = {}
    for point in comparison.points:
        lines.setdefault(point.name, []).append(point)
    methods = list(dict.fromkeys(point.method for point in comparison.points))
    for name, points in lines.items():
        points.sort(key=lambda point: point.bits_per_weight)
        own, unmerged = name == "fitted", points[0].budget_bits is None
        style = "-" if own else "--" if unmerged else ":" if points[0].bits >= 16 else "-."
        label = f"{name} (unmerged)" if unmerged else name
        axes.plot(
            [point.bits_per_weight for point in points],
            [point.score for point in points],
            style,
            marker="o",
            markersize=3.5,
            linewidth=2.4 if own else 1.4,
            color=INK if own else colormaps["tab20"](methods.index(points[0].method) % 20),
            label=label,
        )
    axes.axhline(comparison.full_score, color=FAINT, linewidth=0.8)
    axes.axhline(comparison.zero_score, color=FAINT, linewidth=0.8, linestyle="--")
    axes.annotate("full model", (0.995, comparison.full_score), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=FAINT)
    axes.annotate("zero experts", (0.995, comparison.zero_score), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=FAINT)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda bits, _: f"{bits:g}")
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("bits for each original expert weight, scales included")
    axes.set_ylabel("score")
    axes.set_title(f"{comparison.task_type}: what is left of the model")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return finish(f"compare_{re.sub(r'[^A-Za-z0-9_-]', '_', comparison.task_type)}", drawn)
