"""The figures of one run, computed from its records: the keys of `report.json` under `runs.<name>`. Failed tasks are only counted.

Costs come from `services.core.workload.costs`; instants of a task are its intended send and its end, both on the load generator's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loadgen.lateness import LATE_S, late_sends
from loadgen.report.drifts import followed, unanswered
from loadgen.results import Finished, Outcome, ReplayResult
from services.core.workload import costs

QUALITY_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Json = dict[str, Any]


def run_numbers(result: ReplayResult) -> Json:
    """Everything that the report says about one run, JSON-ready; None where no task completed."""
    completed = result.completed
    tasks = finished_tasks(completed)
    scale = result.quality_scale
    return {
        "name": result.name,
        "policy": result.policy,
        "quality_scale": scale,
        "planned_s": result.planned_s,
        "duration_s": result.duration_s,
        "tasks": _counts(result),
        "positive_cost": costs.positive_cost(tasks, scale) if tasks else None,
        "weighted_cost": costs.weighted_cost(tasks, scale) if tasks else None,
        "table_cost": costs.table_cost(tasks, downtimes_s(result)) if tasks else None,
        "process_time_s": costs.process_time_s(tasks, downtimes_s(result)),
        "total_quality": {"expected": sum(t.expected_quality for t in tasks), "realised": sum(t.realised_quality for t in tasks)},
        "mean_quality": {"expected": _mean(t.expected_quality for t in tasks), "realised": _mean(t.realised_quality for t in tasks)},
        "updates": sum(1 for update in result.updates if update.ok),
        "update_log": _update_log(result),
        "updates_failed": [{"at_s": u.at_s, "edge_id": u.edge_id, "reason": u.reason} for u in result.updates if not u.ok],
        "updates_without_reason": sum(1 for u in followed(result.updates, result.drifts_at_s) if u.without_reason),
        "drifts_without_update_at_s": list(unanswered(followed(result.updates, result.drifts_at_s), result.drifts_at_s)),
        "swap": _swap(result),
        "latency_s": quantiles([r.latency_s for r in completed], (0.5, 0.95, 0.99)),
        "latency_from_send_s": quantiles([r.latency_from_send_s for r in completed], (0.5, 0.95, 0.99)),
        "first_token_s": quantiles(
            [r.first_token_at_s - r.intended_at_s for r in completed if r.first_token_at_s is not None], (0.5, 0.99)
        ),
        "queue_wait_s": quantiles([r.queue_wait_s for r in completed], (0.5, 0.95)),
        "inference_s": quantiles([r.inference_s for r in completed], (0.5, 0.95)),
        "decision_s": quantiles([r.decision_s for r in completed], (0.5, 0.99)),
        "wait_prediction_error_s": _wait_errors(completed),
        "late_sends": _late(result),
        "quality_by_task": _by(completed, lambda r: r.task_type),
        "quality_by_edge": _by(completed, lambda r: r.edge_id),
        "quality_by_edge_and_task": {
            edge: _by([r for r in completed if r.edge_id == edge], lambda r: r.task_type) for edge in result.edge_ids
        },
        "positive_cost_by_quality_scale": {f"{value:g}": costs.positive_cost(tasks, value) if tasks else None for value in QUALITY_SCALES},
        "scores": {"sent": result.scores_sent, "refused": result.scores_refused},
    }


def finished_tasks(completed: Iterable[Finished]) -> tuple[costs.FinishedTask, ...]:
    """Records as the cost functions take them."""
    return tuple(
        costs.FinishedTask(
            task_id=record.task_id,
            arrived_at_s=record.intended_at_s,
            completed_at_s=record.end_at_s,
            alpha=record.alpha,
            expected_quality=record.predicted_quality,
            realised_quality=record.score or 0.0,
            edge_id=record.edge_id,
            task_type=record.task_type,
        )
        for record in completed
    )


def downtimes_s(result: ReplayResult) -> tuple[float, ...]:
    return tuple(update.swap.downtime_s for update in result.updates if update.ok and update.swap is not None)


def quantiles(values: Sequence[float], at: Sequence[float]) -> dict[str, float | None]:
    """Linear quantiles as p50, p95 ...; None of nothing."""
    return {f"p{100 * q:g}": float(np.quantile(values, q)) if len(values) else None for q in at}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _counts(result: ReplayResult) -> Json:
    outcomes = Counter(record.outcome for record in result.finished)
    ends = Counter(f"{r.status} {r.reason}".strip() for r in result.finished if r.outcome is not Outcome.COMPLETED)
    return {
        "planned": result.num_planned,
        "sent": len(result.finished),
        "completed": outcomes[Outcome.COMPLETED],
        "failed": outcomes[Outcome.FAILED],
        "rejected": outcomes[Outcome.REJECTED],
        "restarted": sum(1 for record in result.finished if record.restarts),
        "not_completed_by_status": dict(sorted(ends.items())),
    }


def _by(records: Iterable[Finished], key: Callable[[Finished], str]) -> Json:
    groups: dict[str, list[Finished]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {
        name: {
            "tasks": len(group),
            "expected": _mean(r.predicted_quality for r in group),
            "realised": _mean(r.score or 0.0 for r in group),
            "latency_p50_s": float(np.median([r.latency_s for r in group])),
        }
        for name, group in sorted(groups.items())
    }


def _update_log(result: ReplayResult) -> list[Json]:
    log: list[Json] = []
    for entry in followed(result.updates, result.drifts_at_s):
        update = entry.update
        row: Json = {
            "at_s": update.at_s,
            "requested_at_s": update.requested_at_s,
            "edge_id": update.edge_id,
            "version": update.version,
            "reason": update.reason,
            "activation_shift": update.activation_shift,
            "mix": dict(sorted(update.mix.items())),
            "build_s": update.build_s,
            "followed_drift_at_s": entry.drift_at_s,
            "without_reason": entry.without_reason,
        }
        log.append(row | {"swap": asdict(update.swap) if update.swap is not None else None})
    return log


def _swap(result: ReplayResult) -> Json:
    """Sums are unknown (None) where an update came without its report, as against a stack that is only looked at."""
    updates = [update for update in result.updates if update.ok]
    swaps = [update.swap for update in updates if update.swap is not None]
    all_told = len(swaps) == len(updates)
    return {
        "count": len(swaps),
        "stall_p99_s": quantiles([swap.stall_s for swap in swaps], (0.99,))["p99"],
        "bytes_fetched": sum(swap.bytes_fetched for swap in swaps) if all_told else None,
        "bytes_full": sum(swap.bytes_full for swap in swaps) if all_told else None,
        "downtime_s": sum(swap.downtime_s for swap in swaps) if all_told else None,
        "in_flight_tasks": sum(swap.in_flight_tasks for swap in swaps) if all_told else None,
    }


def _wait_errors(completed: Sequence[Finished]) -> dict[str, float | None]:
    errors = np.array([record.predicted_queue_wait_s - record.queue_wait_s for record in completed])
    if not len(errors):
        return {"p50": None, "p95": None, "bias": None}
    return quantiles(np.abs(errors).tolist(), (0.5, 0.95)) | {"bias": float(errors.mean())}


def _late(result: ReplayResult) -> Json:
    late = late_sends([record.late_s for record in result.finished])
    return {
        "ok": late.ok,
        "late_share": late.late_share,
        "late_means_above_s": LATE_S,
        "worst_s": late.worst_s,
        "histogram": {
            "up_to_s": [*late.buckets_s, None],
            "sends": list(late.counts),
        },
    }
