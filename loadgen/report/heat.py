"""Activation heat maps: layers down, original experts across, for each updated edge before and after its last update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadgen.report.canvas import FAINT, Plot, figure, finish
from loadgen.report.values import HeatMap

MIX_WIDTH = 44  # characters that fit above a panel


def heat_map_plot(maps: Sequence[HeatMap]) -> Plot:
    """One row an edge: the base model's profile of the mix it was rebuilt for, then what its tasks activated before and after."""
    with_base = any(heat.base is not None for heat in maps)
    num_columns = 3 if with_base else 2
    drawn = figure(10, 0.6 + 2.05 * len(maps))
    panels = drawn.subplots(len(maps), num_columns, squeeze=False)
    top = max(float(np.quantile(array, 0.99)) for heat in maps for array in (heat.base, heat.before, heat.after) if array is not None)
    image = None
    for row, heat in zip(panels, maps, strict=True):
        shown = [
            (heat.before, f"{heat.edge_id}: before", heat.before_mix),
            (heat.after, f"{heat.edge_id}: after", heat.after_mix),
        ]
        if with_base:
            shown.insert(
                0, (heat.base if heat.base is not None else np.zeros_like(heat.after), "base model", "calibrated, for the new mix")
            )
        for axes, (array, title, mix) in zip(row, shown, strict=True):
            image = axes.imshow(array, cmap="viridis", vmin=0, vmax=max(top, 1e-9), aspect="auto", interpolation="nearest")
            axes.set_title(title, fontsize=9, pad=5 if not mix else 15)
            if mix:
                leading = mix if len(mix) <= MIX_WIDTH else mix[: MIX_WIDTH - 2].rsplit(",", 1)[0] + ", …"
                label = axes.text(0, 1.03, leading, transform=axes.transAxes, fontsize=7.6, color=FAINT)
                label.set_in_layout(False)  # else a long mix would squeeze the panels
            axes.grid(False)
            axes.set_xlabel("original expert", fontsize=8)
            axes.tick_params(labelsize=7.5, length=0)
        row[0].set_ylabel("MoE layer", fontsize=8)
    if image is not None:
        bar = drawn.colorbar(image, ax=panels, fraction=0.02, pad=0.01)
        bar.set_label("activation frequency", fontsize=8)
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.outline.set_visible(False)
    return finish("activation_heat_maps", drawn)
