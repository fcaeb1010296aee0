"""The plots of a report, each a function from runs to one `Plot`. They show what `report.json` holds, or the records behind it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, ScalarFormatter

from loadgen.report import words
from loadgen.report.canvas import FAINT, INK, Plot, colour_of, figure, finish, look, mark_drifts, mark_updates
from loadgen.report.heat import heat_map_plot
from loadgen.report.series import positive_cost_of, running_mean, updates_by_edge
from loadgen.report.values import ReportInput
from loadgen.results import ReplayResult

Runs = Mapping[str, ReplayResult]
LABELS = {"portfolio": "ONTO + portfolio (ours)", "jtom": "ONTO + JTOM (the paper)", "static": "ONTO (no updates)"}
_QUALITY_COLOURS = LinearSegmentedColormap.from_list("quality", ["#ea9d94", "#f7e7b8", "#8ed0a3"])


def all_plots(report: ReportInput, data: Mapping[str, Any]) -> tuple[Plot, ...]:
    """Every plot that the runs have data for."""
    runs = {name: run for name, run in report.runs.items() if run.completed}
    if not runs:
        return ()
    with look():
        plots = [cost_over_time(runs), quality_over_time(runs), quality_table(data["runs"]), wait_prediction(runs), latency_cdf(runs)]
        if any(run.mixes for run in runs.values()):
            plots.append(mix_over_time(next(iter(runs.values()))))
        if len(runs) > 1:
            plots.append(sweep(data["quality_scale_sweep"]))
        if report.heat_maps:
            plots.append(heat_map_plot(report.heat_maps))
    return tuple(plots)


def cost_over_time(runs: Runs) -> Plot:
    drawn = figure(10, 3.5)
    axes = drawn.subplots()
    for n, (name, run) in enumerate(runs.items()):
        costs = running_mean(run, partial(positive_cost_of, quality_scale=run.quality_scale))
        axes.plot(*costs, color=colour_of(name, n), label=LABELS.get(name, name))
    axes.set_ylabel("positive cost (s)")
    _time_axis(axes, runs)
    return finish("cost_over_time", drawn)


def quality_over_time(runs: Runs) -> Plot:
    drawn = figure(10, 3.5)
    axes = drawn.subplots()
    for n, (name, run) in enumerate(runs.items()):
        label, colour = LABELS.get(name, name), colour_of(name, n)
        axes.plot(*running_mean(run, lambda r: r.score or 0.0), color=colour, label=label)
        axes.plot(
            *running_mean(run, lambda r: r.predicted_quality), color=colour, linewidth=1.1, linestyle=(0, (1.2, 1.6)), label="expected"
        )
    axes.set_ylabel("quality")
    axes.set_ylim(0, 1.03)
    _time_axis(axes, runs)
    return finish("quality_over_time", drawn)


def _time_axis(axes: Axes, runs: Runs) -> None:
    first = next(iter(runs.values()))
    mark_drifts(axes, first.drifts_at_s)
    mark_updates(axes, [(colour_of(name, n), updates_by_edge(run)) for n, (name, run) in enumerate(runs.items())])
    axes.set_xlim(0, first.planned_s)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the start of the plan (s)")
    _legend_above(axes, 4)


def _legend_above(axes: Axes, num_columns: int) -> None:
    """Outside the data and not beside it, so that the time axes of all plots line up."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=num_columns,
        borderaxespad=0.3,
        fontsize=8.2,
        columnspacing=1.2,
        handlelength=1.5,
    )


def mix_over_time(run: ReplayResult) -> Plot:
    """Shares of the task types among the tasks sent, stacked."""
    drawn = figure(10, 2.3)
    axes = drawn.subplots()
    edges_s = np.linspace(0, run.planned_s, 46)
    types = run.task_types
    counts = np.array([np.histogram([r.intended_at_s for r in run.finished if r.task_type == t], bins=edges_s)[0] for t in types])
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    middle = (edges_s[:-1] + edges_s[1:]) / 2
    colours = ("#2f6fde", "#e0812b", "#2a9d6f", "#a24bb8", "#c9423f", "#0f8fa8", "#b58a00")
    axes.stackplot(middle, shares, labels=types, colors=[colours[n % len(colours)] for n in range(len(types))], alpha=0.78, linewidth=0)
    mark_drifts(axes, run.drifts_at_s)
    axes.set_xlim(0, run.planned_s)
    axes.set_ylim(0, 1)
    axes.grid(False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("time since the start of the plan (s)")
    _legend_above(axes, 7)
    return finish("mix_over_time", drawn)


def quality_table(runs: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Realised quality of each task type on each edge, with how many tasks stand behind it."""
    edges = sorted({edge for run in runs.values() for edge in run["quality_by_edge_and_task"]})
    types = sorted({task_type for run in runs.values() for task_type in run["quality_by_task"]})
    drawn = figure(10, 1.15 + 0.52 * (len(edges) + 1))
    panels = drawn.subplots(1, len(runs), squeeze=False)[0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        cells = [[run["quality_by_edge_and_task"].get(edge, {}).get(t) for t in types] for edge in edges]
        cells.append([run["quality_by_task"].get(t) for t in types])
        _cells(axes, cells, [*edges, "all edges"], types, 8.5 if len(runs) < 3 else 7.0)
        axes.set_title(LABELS.get(name, name), pad=8)
    return finish("quality_per_task_and_edge", drawn)


def _cells(axes: Axes, cells: list[list[Mapping[str, Any] | None]], rows: list[str], columns: list[str], size: float) -> None:
    values = np.array([[np.nan if cell is None else cell["realised"] for cell in row] for row in cells])
    axes.imshow(values, cmap=_QUALITY_COLOURS, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            if cell is None:
                axes.text(x, y, "no tasks", ha="center", va="center", fontsize=7.5, color=FAINT)
            else:
                axes.text(
                    x, y - 0.13, f"{cell['realised']:.2f}", ha="center", va="center", fontsize=9.5, fontweight="bold", color="#16202b"
                )
                axes.text(x, y + 0.26, f"{cell['tasks']} tasks", ha="center", va="center", fontsize=6.8, color="#2c3947")
    axes.axhline(len(rows) - 1.5, color=INK, linewidth=1.2)
    axes.set_xticks(range(len(columns)), columns, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def wait_prediction(runs: Runs) -> Plot:
    """Queue wait predicted at decision time against the wait that came, and how large the errors were."""
    drawn = figure(10, 3.9)
    scatter, errors = drawn.subplots(1, 2, width_ratios=(1, 1.25))
    longest_s, largest_s = 0.02, 0.0
    for n, (name, run) in enumerate(runs.items()):
        predicted = np.array([r.predicted_queue_wait_s for r in run.completed])
        observed = np.array([r.queue_wait_s for r in run.completed])
        longest_s = max(longest_s, float(np.quantile(np.concatenate([predicted, observed]), 0.995)))
        colour, label = colour_of(name, n), LABELS.get(name, name)
        scatter.plot(
            predicted, observed, marker="o", markersize=3.4, linestyle="none", color=colour, alpha=0.45, markeredgewidth=0, label=label
        )
        absolute = np.sort(np.abs(predicted - observed))
        shares = np.arange(1, len(absolute) + 1) / len(absolute)
        largest_s = max(largest_s, float(np.quantile(absolute, 0.985)))
        errors.plot(absolute, shares, color=colour, label=label)
        for q in (0.5, 0.95):
            at_s = float(np.quantile(absolute, q))
            errors.plot([at_s], [q], marker="o", markersize=5, color=colour)
            errors.annotate(
                f"p{100 * q:.0f} {words.seconds(at_s)}",
                (at_s, q),
                xytext=(7, -11 - 11 * n),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    scatter.plot([0, longest_s * 1.04], [0, longest_s * 1.04], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    _waits_scale(scatter, longest_s)
    scatter.set(xlabel="predicted wait (s)", ylabel="observed wait (s)", title="each dot is a task")
    errors.set(xlabel="absolute error (s)", ylabel="share of tasks", title="error of the prediction", ylim=(0, 1.02))
    errors.set_xlim(left=0, right=max(largest_s * 1.08, 0.01))
    errors.legend(loc="lower right", fontsize=8.5)
    return finish("wait_prediction", drawn)


def _waits_scale(axes: Axes, longest_s: float) -> None:
    """Linear up to ten milliseconds, logarithmic above: most waits are close to nothing, a few are long."""
    ticks = [0.0, *(tick for tick in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0) if tick <= longest_s * 1.3)]
    for axis, name in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        getattr(axes, f"set_{name}scale")("symlog", linthresh=0.01, linscale=0.6)
        getattr(axes, f"set_{name}lim")(-0.001, longest_s * 1.3)
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())


def latency_cdf(runs: Runs) -> Plot:
    drawn = figure(10, 3.3)
    axes = drawn.subplots()
    for n, (name, run) in enumerate(runs.items()):
        shares = np.arange(1, len(run.completed) + 1) / len(run.completed)
        colour = colour_of(name, n)
        axes.plot(
            np.sort([r.latency_s for r in run.completed]), shares, color=colour, label=f"{LABELS.get(name, name)}, from intended send"
        )
        sent = np.sort([r.latency_from_send_s for r in run.completed])
        axes.plot(sent, shares, color=colour, linewidth=1.1, linestyle=(0, (1.2, 1.6)), label="from actual send")
    axes.set(xlabel="completion time (s)", ylabel="share of completed tasks", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", fontsize=8.5)
    return finish("latency_cdf", drawn)


def sweep(rows: list[Mapping[str, Any]]) -> Plot:
    """Positive cost of the same runs had quality been worth another amount."""
    drawn = figure(10, 2.9)
    axes = drawn.subplots()
    scales = [row["quality_scale"] for row in rows]
    for n, name in enumerate(rows[0]["positive_cost"]):
        costs = [row["positive_cost"][name] for row in rows]
        axes.plot(scales, costs, marker="o", markersize=4.5, color=colour_of(name, n), label=LABELS.get(name, name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter("")
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.set(xlabel="quality_scale (seconds that one unit of quality is worth)", ylabel="positive cost (s)")
    axes.legend(loc="upper left", fontsize=8.5)
    return finish("quality_scale_sweep", drawn)
