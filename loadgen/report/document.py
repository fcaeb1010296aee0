"""`report.json`: the figures of every run, the comparison, verdicts, the unmerged arms and host facts, under one schema version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from loadgen.report.host import host_facts
from loadgen.report.numbers import QUALITY_SCALES, run_numbers
from loadgen.report.values import ReportInput, UnmergedArm
from loadgen.report.verdicts import comparison, pair_of, verdicts
from loadgen.results import ReplayResult

SCHEMA_VERSION = 1


def document(report: ReportInput, created_at: datetime) -> dict[str, Any]:
    """The whole report as JSON-ready data."""
    runs = {name: run_numbers(result) for name, result in report.runs.items()}
    first = next(iter(report.runs.values()))
    pair = pair_of(runs)
    return {
        "schema": "moedge.report",
        "schema_version": SCHEMA_VERSION,
        "title": report.title,
        "created_at": created_at.isoformat(timespec="seconds"),
        "host": host_facts(),
        "setup": dict(report.setup),
        "notes": list(report.notes),
        "base_model": first.base_model,
        "drifts_at_s": list(first.drifts_at_s),
        "phases": [{"start_at_s": start_at_s, "shares": dict(sorted(shares.items()))} for start_at_s, shares in first.mixes],
        "runs": runs,
        "comparison": comparison(*pair) if pair else None,
        "quality_scale_sweep": _sweep(runs),
        "unmerged_quantised": _unmerged(report.unmerged, report.runs),
        "verdicts": [asdict(verdict) for verdict in verdicts(runs)],
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _sweep(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Positive cost had quality been worth another amount; decisions are those taken at the run's own quality_scale."""
    return [
        {"quality_scale": scale, "positive_cost": {name: run["positive_cost_by_quality_scale"][f"{scale:g}"] for name, run in runs.items()}}
        for scale in QUALITY_SCALES
    ]


def _unmerged(arms: tuple[UnmergedArm, ...], runs: Mapping[str, ReplayResult]) -> dict[str, Any] | None:
    """Each edge's arm, and the mean quality it would have had: over every completed task, and over where each run's tasks were served."""
    if not arms:
        return None
    by_edge = {arm.edge_id: arm for arm in arms}
    edges = {
        arm.edge_id: {
            "bits": arm.bits,
            "bytes": arm.bytes,
            "memory_bytes": arm.memory_bytes,
            "fits": arm.fits,
            "quality": dict(sorted(arm.quality.items())),
            "mean_quality": {name: _mean_over_tasks(arm, run) for name, run in runs.items()},
        }
        for arm in arms
    }
    return {"edges": edges, "mean_quality_as_offloaded": {name: _mean_as_offloaded(by_edge, run) for name, run in runs.items()}}


def _mean_over_tasks(arm: UnmergedArm, run: ReplayResult) -> float | None:
    scores = [arm.quality.get(record.task_type, 0.0) for record in run.completed]
    return sum(scores) / len(scores) if scores else None


def _mean_as_offloaded(by_edge: Mapping[str, UnmergedArm], run: ReplayResult) -> float | None:
    scores = [by_edge[r.edge_id].quality.get(r.task_type, 0.0) for r in run.completed if r.edge_id in by_edge]
    return sum(scores) / len(scores) if scores else None
