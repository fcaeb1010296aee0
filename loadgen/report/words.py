"""What the page says in words: captions of plots, headline tiles, and a line of explanation for every figure. Formatting, no arithmetic."""

# ruff: noqa: RUF001  prose with typographic signs and the paper's Greek letters

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.report.verdicts import pair_of
from loadgen.units import in_bytes

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "mix_over_time": ("What users asked for", "Share of each task type among the tasks sent."),
    "cost_over_time": (
        "Positive cost",
        "Mean over tasks of completion time + α · quality_scale · (1 − quality): seconds waited plus what the missing "
        "quality is worth. Lower is better. Running mean.",
    ),
    "quality_over_time": (
        "Quality",
        "Score of each answer against its reference (solid) and what the broker expected of the chosen edge (dotted). A "
        "drop after a dashed line is a version built for the mix before.",
    ),
    "quality_per_task_and_edge": (
        "Quality by task type and edge",
        "Mean score of the answers that each edge gave. A version knows best what it was built for; the broker "
        "sends tasks where they are answered well.",
    ),
    "activation_heat_maps": (
        "Which experts were activated",
        "Share of a layer's tokens that its router sent to each original expert: the base model's profile, and what the "
        "edge's own tasks showed while the version before and the one after its last update (that it reported on) served.",
    ),
    "wait_prediction": (
        "Queue wait, predicted and observed",
        "The prediction at decision time against the wait that came. On the dashed line the prediction was exact; the "
        "right panel shows how often the error stays below a value.",
    ),
    "latency_cdf": (
        "Completion time",
        "From the instant at which a task was due to be sent (solid), so that a stalled sender hides nothing, and from "
        "its actual send (dotted). Completed tasks only.",
    ),
    "quality_scale_sweep": (
        "If quality were worth more, or less",
        "Positive cost of the same answers for other values of quality_scale. The decisions were taken at the value named"
        " under “All figures”.",
    ),
}


@dataclass(frozen=True, slots=True)
class Tile:
    name: str
    value: str
    against: str
    explain: str
    change: str = ""
    better: bool = True


@dataclass(frozen=True, slots=True)
class FigureRow:
    name: str
    cells: tuple[str, ...]
    explain: str


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{1000 * value:.1f} ms" if 0 < abs(value) < 1 else f"{value:.1f} s"


def size(value: float | None) -> str:
    return "–" if value is None else in_bytes(value)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def mix(shares: Mapping[str, float]) -> str:
    kept = sorted(((name, value) for name, value in shares.items() if value >= 0.005), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {value:.0%}" for name, value in kept) or "–"


def tiles(data: Mapping[str, Any]) -> list[Tile]:
    """The figures that the page leads with: of the run with updates against the one without, or of the only run."""
    runs = data["runs"]
    main, other = pair_of(runs) or (next(iter(runs.values())), None)
    change = data["comparison"] or {}
    swap, tasks = main["swap"], main["tasks"]
    shipped = swap["bytes_fetched"] / swap["bytes_full"] if swap["bytes_full"] else None
    return [
        Tile(
            "positive cost",
            f"{number(main['positive_cost'])} s",
            f"without updates {number(other['positive_cost'])} s" if other else "",
            "Seconds a task took, plus what its missing quality is worth.",
            _signed(change.get("positive_cost_change")),
            (change.get("positive_cost_change") or 0) < 0,
        ),
        Tile(
            "realised quality",
            number(main["mean_quality"]["realised"]),
            f"without updates {number(other['mean_quality']['realised'])}" if other else "",
            "Mean score of the answers, each against its reference.",
            _signed(change.get("quality_gain")),
            (change.get("quality_gain") or 0) > 0,
        ),
        Tile(
            "tasks completed",
            f"{tasks['completed']} of {tasks['planned']}",
            f"{tasks['failed']} failed, {tasks['rejected']} rejected",
            "Failed and rejected tasks are counted here and in no other figure.",
        ),
        Tile(
            "updates while serving",
            str(main["updates"]),
            f"longest stall {seconds(swap['stall_p99_s'])}, {share(shipped)} of the bytes shipped" if swap["count"] else "no swap report",
            "Edges that took a newly built version; the stall is how long a batch loop stood still.",
        ),
    ]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}"


def figures(runs: Mapping[str, Mapping[str, Any]]) -> list[FigureRow]:
    """One row a figure, one cell a run."""

    def row(name: str, cell: Any, explain: str) -> FigureRow:
        return FigureRow(name, tuple(cell(run) for run in runs.values()), explain)

    return [
        row("quality_scale", lambda r: f"{r['quality_scale']:g} s", "What one unit of quality is worth in the broker's decisions."),
        row(
            "positive cost",
            lambda r: f"{number(r['positive_cost'])} s",
            "Mean of completion time + α · quality_scale · (1 − realised quality).",
        ),
        row(
            "weighted cost",
            lambda r: f"{number(r['weighted_cost'], 1)} s",
            "Equation (1) of the paper: last completion − first arrival − Σ α · quality_scale · quality. May be negative.",
        ),
        row(
            "cost of the paper's tables",
            lambda r: f"{number(r['table_cost'], 1)} s",
            "Process time − 0.05 · total quality, the law that the paper's Tables IV and V obey.",
        ),
        row("process time", lambda r: f"{number(r['process_time_s'], 1)} s", "Sum of completion times, downtime of updates included."),
        row("total quality, realised", lambda r: number(r["total_quality"]["realised"], 1), "Sum of the answers' scores."),
        row(
            "total quality, expected",
            lambda r: number(r["total_quality"]["expected"], 1),
            "Sum of the qualities that the broker counted on when it chose the edges.",
        ),
        row(
            "completion time p50 / p95 / p99",
            lambda r: _three(r["latency_s"]),
            "From the intended send to the last token, link times included.",
        ),
        row(
            "… from actual send", lambda r: _three(r["latency_from_send_s"]), "The same from the instant at which the task was really sent."
        ),
        row("queue wait p50 / p95", lambda r: _two(r["queue_wait_s"], "p95"), "From acceptance at the edge to the start of service."),
        row("inference time p50 / p95", lambda r: _two(r["inference_s"], "p95"), "Model compute for a task, as the worker measured it."),
        row("wait prediction error p50 / p95", lambda r: _two(r["wait_prediction_error_s"], "p95"), "|predicted − observed| queue wait."),
        row("decision time p50 / p99", lambda r: _two(r["decision_s"], "p99"), "What the broker spent on choosing an edge."),
        row("updates", lambda r: str(r["updates"]), "Newly built versions taken while serving."),
        row("updates without reason", lambda r: str(r["updates_without_reason"]), "No mix change since that edge's last update."),
        row(
            "bytes fetched by updates",
            lambda r: f"{size(r['swap']['bytes_fetched'])} of {size(r['swap']['bytes_full'])}",
            "Only changed tensors travel; the second value is what full reloads would have shipped.",
        ),
        row("swap stall p99", lambda r: seconds(r["swap"]["stall_p99_s"]), "Longest time that a batch loop stood still for a swap."),
        row("restarted tasks", lambda r: str(r["tasks"]["restarted"]), "Answers begun anew on another edge because the first died."),
        row(
            "tasks not completed",
            lambda r: ", ".join(f"{n}× {s}" for s, n in r["tasks"]["not_completed_by_status"].items()) or "none",
            "By status and reason.",
        ),
    ]


def _three(values: Mapping[str, float | None]) -> str:
    return " / ".join(seconds(values[key]) for key in ("p50", "p95", "p99"))


def _two(values: Mapping[str, float | None], second: str) -> str:
    return f"{seconds(values['p50'])} / {seconds(values[second])}"
