"""What a report is held to, each as a named verdict with its figures. Limits are those of the demonstration; nothing is recomputed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.lateness import LATE_SHARE_LIMIT
from loadgen.report.values import WITHOUT_UPDATES

QUALITY_GAIN_LIMIT = 0.15


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    ok: bool
    detail: str


def verdicts(runs: Mapping[str, Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """For each run: everything completed, sent on time. For the pair: what re-merging bought. Of JTOM: that it updates for a reason, and
    after each drift. A trigger that looks at the whole fleet need not: an edge may know already what others begin to ask for."""
    found = [verdict for name, numbers in runs.items() for verdict in _of_run(name, numbers)]
    if pair := pair_of(runs):
        found += [*_of_pair(*pair), _after_drifts(runs.get("jtom", pair[0]))]
    if "jtom" in runs and len(runs) > 1:
        spare = runs["jtom"]["updates_without_reason"]
        detail = f"{spare} with no drift since that edge's last update"
        found.append(Verdict("jtom: at most one update without reason", spare <= 1, detail))
    return tuple(found)


def pair_of(runs: Mapping[str, Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The run with updates that the report is about, and the one without any."""
    updating = [run for name, run in runs.items() if name != WITHOUT_UPDATES]
    return (updating[0], runs[WITHOUT_UPDATES]) if updating and WITHOUT_UPDATES in runs else None


def comparison(updating: Mapping[str, Any], static: Mapping[str, Any]) -> dict[str, float | None]:
    """Relative changes that updates bring; percentages are taken of positive figures only."""
    return {
        "quality_gain": _change(updating["mean_quality"]["realised"], static["mean_quality"]["realised"]),
        "positive_cost_change": _change(updating["positive_cost"], static["positive_cost"]),
        "process_time_change": _change(updating["process_time_s"], static["process_time_s"]),
        "latency_p50_change": _change(updating["latency_s"]["p50"], static["latency_s"]["p50"]),
        "latency_p99_change": _change(updating["latency_s"]["p99"], static["latency_s"]["p99"]),
    }


def _change(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference - 1.0


def _of_run(name: str, numbers: Mapping[str, Any]) -> list[Verdict]:
    tasks, late = numbers["tasks"], numbers["late_sends"]
    return [
        Verdict(
            f"{name}: all tasks completed",
            tasks["completed"] == tasks["planned"],
            f"{tasks['completed']} of {tasks['planned']} completed, {tasks['failed']} failed, {tasks['rejected']} rejected",
        ),
        Verdict(
            f"{name}: sent on time",
            late["ok"],
            f"{late['late_share']:.2%} of sends more than 10 ms late (limit {LATE_SHARE_LIMIT:.0%}), worst {1000 * late['worst_s']:.1f} ms",
        ),
    ]


def _of_pair(updating: Mapping[str, Any], static: Mapping[str, Any]) -> list[Verdict]:
    change = comparison(updating, static)
    gain, cost = change["quality_gain"], change["positive_cost_change"]
    return [
        Verdict(
            "realised quality at least 15 % higher with updates",
            gain is not None and gain >= QUALITY_GAIN_LIMIT,
            "no completed tasks" if gain is None else f"{gain:+.1%}",
        ),
        Verdict(
            "positive cost lower with updates",
            cost is not None and cost < 0,
            "no completed tasks" if cost is None else f"{cost:+.1%}",
        ),
        Verdict("no update without a trigger", static["updates"] == 0, f"{static['updates']} updates in the run without updates"),
    ]


def _after_drifts(run: Mapping[str, Any]) -> Verdict:
    missed = run["drifts_without_update_at_s"]
    told = f"{run['updates']} updates" if not missed else "none after the drift at " + ", ".join(f"{at_s:.0f} s" for at_s in missed)
    return Verdict("at least one update after each drift", not missed, f"{run['name']}: {told}")
