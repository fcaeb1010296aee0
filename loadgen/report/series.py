"""Running means of a run over time: what the plots of cost and quality draw. Each task counts at its intended send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen.results import Finished, ReplayResult

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
WINDOWS = 18  # a run is about this many windows long
POINTS = 160
FEWEST_TASKS = 3


def running_mean(result: ReplayResult, value: Callable[[Finished], float]) -> Series:
    """Mean of `value` over completed tasks in a window around each instant; NaN where fewer than three were sent."""
    records: Sequence[Finished] = result.completed
    at_s = np.array([record.intended_at_s for record in records])
    values = np.array([value(record) for record in records])
    order = np.argsort(at_s, kind="stable")
    at_s, sums = at_s[order], np.concatenate([[0.0], np.cumsum(values[order])])
    half_s = max(result.planned_s, 1e-9) / WINDOWS / 2
    instants = np.linspace(0.0, result.planned_s, POINTS)
    low, high = np.searchsorted(at_s, instants - half_s), np.searchsorted(at_s, instants + half_s, side="right")
    counts = high - low
    means = np.divide(sums[high] - sums[low], counts, out=np.full(POINTS, np.nan), where=counts >= FEWEST_TASKS)
    return instants, means


def positive_cost_of(record: Finished, quality_scale: float) -> float:
    """One task's share of the positive cost: completion time plus what the missing quality is worth."""
    return record.latency_s + record.alpha * quality_scale * (1.0 - (record.score or 0.0))


def updates_by_edge(result: ReplayResult) -> dict[str, list[float]]:
    by_edge: dict[str, list[float]] = {}
    for update in result.updates:
        if update.ok:
            by_edge.setdefault(update.edge_id, []).append(update.at_s)
    return by_edge
