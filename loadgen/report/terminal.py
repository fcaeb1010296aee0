"""The summary of a report for a terminal: figures of the runs side by side, quality by task type, verdicts. Prints, computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.report import words

_SHOWN = (
    "positive cost",
    "weighted cost",
    "cost of the paper's tables",
    "process time",
    "total quality, realised",
    "total quality, expected",
    "completion time p50 / p95 / p99",
    "wait prediction error p50 / p95",
    "updates",
    "bytes fetched by updates",
    "swap stall p99",
    "tasks not completed",
)


def summary(data: Mapping[str, Any]) -> RenderableType:
    """Tables for a report document."""
    runs = data["runs"]
    parts: list[RenderableType] = [_figures(runs), Text(), _quality(data)]
    late = [name for name, run in runs.items() if not run["late_sends"]["ok"]]
    if data["comparison"]:
        parts += [Text(), _comparison(data["comparison"])]
    parts += [Text(), *(_verdict(verdict) for verdict in data["verdicts"])]
    if late:
        parts.append(Text(f"sent late: {', '.join(late)}; do not trust these figures", style="bold red"))
    return Group(*parts)


def print_summary(console: Console, data: Mapping[str, Any]) -> None:
    console.print(summary(data))


def _figures(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    for first, second in (("sent", "completed"), ("failed", "rejected")):
        table.add_row(f"tasks {first}, {second}", *(f"{run['tasks'][first]}, {run['tasks'][second]}" for run in runs.values()))
    table.add_row("realised quality (mean)", *(Text(words.number(run["mean_quality"]["realised"]), style="bold") for run in runs.values()))
    rows = {row.name: row for row in words.figures(runs)}
    for name in _SHOWN:
        for label, cells in _one_value_each(name, rows[name].cells):
            table.add_row(label, *(Text(cell, style="bold" if name == "positive cost" else "") for cell in cells))
    return table


def _one_value_each(name: str, cells: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """A figure of several quantiles, or of a part and its whole, as a row for each, so that no cell is broken in 80 columns."""
    if all(" of " in cell for cell in cells):
        parts, wholes = zip(*(cell.split(" of ") for cell in cells), strict=True)
        return [(name, parts), ("  of full reloads' bytes", wholes)]
    labels, values = name.split(" / "), [cell.split(" / ") for cell in cells]
    if len(labels) == 1 or any(len(of_cell) != len(labels) for of_cell in values):
        return [(name, cells)]
    return [(label if n == 0 else f"  {label}", [of_cell[n] for of_cell in values]) for n, label in enumerate(labels)]


def _quality(data: Mapping[str, Any]) -> Table:
    runs, unmerged = data["runs"], data["unmerged_quantised"]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("quality (tasks)", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    edges = unmerged["edges"] if unmerged else {}
    for edge, arm in edges.items():
        lines = ["unmerged", f"on {edge},", f"{arm['bits']} {'bit' if arm['bits'] == 1 else 'bits'}"]
        table.add_column("\n".join(lines if arm["fits"] else [*lines[:2], f"{lines[2]},", "too large"]), justify="right", style="dim")
    types = sorted({task_type for run in runs.values() for task_type in run["quality_by_task"]})
    for task_type in types:
        cells = [run["quality_by_task"].get(task_type) for run in runs.values()]
        counts = {cell["tasks"] if cell else 0 for cell in cells}
        own = len(counts) > 1  # runs that completed unlike numbers of these tasks each tell theirs
        realised = [words.number(cell["realised"]) + f" ({cell['tasks']})" * own if cell else "-" for cell in cells]
        table.add_row(
            task_type if own else f"{task_type} ({counts.pop()})",
            *realised,
            *(words.number(arm["quality"].get(task_type)) for arm in edges.values()),
        )
    return table


def _comparison(change: Mapping[str, float | None]) -> Text:
    return Text.assemble(
        "with updates: realised quality ",
        (_signed(change["quality_gain"]), "bold"),
        ", positive cost ",
        (_signed(change["positive_cost_change"]), "bold"),
        ", completion time p99 ",
        (_signed(change["latency_p99_change"]), "bold"),
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _verdict(verdict: Mapping[str, Any]) -> Text:
    mark, style = ("ok  ", "green") if verdict["ok"] else ("NOT ", "bold red")
    return Text.assemble((mark, style), verdict["name"], ("  " + verdict["detail"], "dim"))
