"""What a run is worth in figures, and several runs as mean and 95 % interval. The costs are core's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy.special import stdtrit

from loadgen.simulator.simulation import Outcome
from services.core.workload.costs import FinishedTask, positive_cost, process_time_s, table_cost, total_quality, weighted_cost


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Over completed tasks; `rejected` counts the others."""

    positive_cost: float
    weighted_cost: float  # eq. (1)
    table_cost: float
    process_time_s: float
    completion_mean_s: float
    completion_p50_s: float
    completion_p99_s: float
    total_quality: float
    mean_quality: float
    updates: float
    downtime_s: float
    wait_prediction_error_s: float  # mean absolute error of predicted completion time
    rejected: float
    tasks: float
    host_bytes: float  # that runtimes hold in host memory, beside the edges' shares


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over runs, and half the width of its 95 % interval (Student's t); 0 for a single run."""

    mean: float
    ci95: float


def figures(outcome: Outcome, quality_scale: float) -> Figures:
    finished = finished_tasks(outcome)
    downtimes_s = [update.downtime_s for update in outcome.updates]
    took_s = (outcome.completed_at_s - outcome.load.at_s)[outcome.completed]
    error_s = np.abs(outcome.predicted_completion_time_s[outcome.completed] - took_s)
    quality = total_quality(finished).realised
    p50_s, p99_s = np.percentile(took_s, (50, 99)) if len(took_s) else (math.nan, math.nan)
    return Figures(
        positive_cost=positive_cost(finished, quality_scale),
        weighted_cost=weighted_cost(finished, quality_scale),
        table_cost=table_cost(finished, downtimes_s),
        process_time_s=process_time_s(finished, downtimes_s),
        completion_mean_s=float(took_s.mean()),
        completion_p50_s=float(p50_s),
        completion_p99_s=float(p99_s),
        total_quality=quality,
        mean_quality=quality / max(len(finished), 1),
        updates=float(len(outcome.updates)),
        downtime_s=float(sum(downtimes_s)),
        wait_prediction_error_s=float(error_s.mean()),
        rejected=float(len(outcome.load) - len(finished)),
        tasks=float(len(outcome.load)),
        host_bytes=outcome.host_bytes,
    )


def finished_tasks(outcome: Outcome) -> list[FinishedTask]:
    load, types = outcome.load, outcome.load.task_types
    rows = zip(
        load.at_s.tolist(),
        outcome.completed_at_s.tolist(),
        load.alpha.tolist(),
        outcome.expected_quality.tolist(),
        outcome.quality.tolist(),
        outcome.edge.tolist(),
        load.task_type.tolist(),
        strict=True,
    )
    return [
        FinishedTask(f"task-{n}", at_s, done_s, alpha, expected, quality, outcome.edge_ids[edge], types[task_type])
        for n, (at_s, done_s, alpha, expected, quality, edge, task_type) in enumerate(rows)
        if edge >= 0
    ]


def interval(values: Sequence[float]) -> Interval:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, 0.0)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, float(stdtrit(len(values) - 1, 0.975)) * error)


def over_seeds(runs: Sequence[Figures]) -> dict[str, Interval]:
    """By figure."""
    return {f.name: interval([getattr(run, f.name) for run in runs]) for f in fields(Figures)}


def as_json(summary: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(value) for name, value in summary.items()}
