"""Heat maps of `moedge profile`: for each task type, which original experts its tasks activate in the full and in the merged model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.report.canvas import Plot, figure, finish, look

if TYPE_CHECKING:
    from services.core.merging.values import Frequencies
    from services.model.profile import ProfileReport


def save_heat_maps(report: ProfileReport, out: Path) -> tuple[Path, ...]:
    """One PNG a task type; the folder must exist."""
    with look():
        return tuple(plot.save(out) for plot in _plots(report))


def _plots(report: ProfileReport) -> Iterator[Plot]:
    for task_type in report.task_types:
        merged = report.merged[task_type]
        shown = (
            (f"{task_type}: full model", report.full_frequencies[task_type]),
            (f"{task_type}: merged for it, {merged.experts_kept} experts kept", merged.frequencies[task_type]),
        )
        yield _heat_map(f"heat_map_{re.sub(r'[^A-Za-z0-9_-]', '_', task_type)}", shown)


def _heat_map(name: str, shown: tuple[tuple[str, Frequencies], ...]) -> Plot:
    drawn = figure(10, 3.2)
    panels = drawn.subplots(1, len(shown), squeeze=False)[0]
    top = max(float(array.max()) for _, array in shown)
    image = None
    for axes, (title, array) in zip(panels, shown, strict=True):
        image = axes.imshow(array, cmap="viridis", vmin=0, vmax=max(top, 1e-9), aspect="auto", interpolation="nearest")
        axes.set_title(title)
        axes.grid(False)
        axes.set_xlabel("original expert")
        axes.set_ylabel("MoE layer")
    assert image is not None
    drawn.colorbar(image, ax=list(panels), fraction=0.02, pad=0.01).set_label("activation frequency")
    return finish(name, drawn)
