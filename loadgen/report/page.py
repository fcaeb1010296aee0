"""Renders the self-contained HTML page: figures and inline SVG in, one string out. Nothing on the page points outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadgen.report import words
from loadgen.report.canvas import Plot
from loadgen.report.plots import LABELS

Bar = tuple[str, int, float, bool]


def page(data: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """The page for a report document (`document.document`) and its plots."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "seconds": words.seconds,
        "size": words.size,
        "share": words.share,
        "share2": lambda value: f"{value:.2%}",
        "quality": words.number,
        "mix": words.mix,
    }
    runs = data["runs"]
    drawn = dict.fromkeys(words.CAPTIONS, Markup("")) | {plot.name: Markup(plot.svg) for plot in plots}
    return environment.get_template("page.html.j2").render(
        data=data,
        plots=drawn,
        captions=words.CAPTIONS,
        labels=LABELS,
        tiles=words.tiles(data),
        figures=words.figures(runs),
        types=sorted({task_type for run in runs.values() for task_type in run["quality_by_task"]}),
        bars={name: bars(run["late_sends"]) for name, run in runs.items()},
        lead=_lead(data),
    )


def bars(late: Mapping[str, Any]) -> list[Bar]:
    """The late-send histogram as (label, sends, width in percent, whether late)."""
    uppers, counts = late["histogram"]["up_to_s"], late["histogram"]["sends"]
    most = max([*counts, 1])
    labels = [f"up to {1000 * upper:g} ms" if upper is not None else "more" for upper in uppers]
    limit = late["late_means_above_s"]
    return [
        (label, count, round(100 * count / most, 1), upper is None or upper > limit)
        for label, count, upper in zip(labels, counts, uppers, strict=True)
    ]


def _lead(data: Mapping[str, Any]) -> str:
    first = next(iter(data["runs"].values()))
    changes = len(data["drifts_at_s"])
    times = {0: "a mix that stays", 1: "a mix that changes once"}.get(changes, f"a mix that changes {changes} times")
    policy = first["policy"] or "unknown"
    tasks, types = first["tasks"]["planned"], len(first["quality_by_task"])
    return f"{tasks} tasks of {types} types over {first['planned_s']:.0f} s, {times}. Policy {policy}."
