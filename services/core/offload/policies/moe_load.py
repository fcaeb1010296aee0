"""MoE-Load: expert placement by profiled load (Huang et al., "Toward Efficient Inference for Mixture of Experts", NeurIPS 2024;
arXiv 2303.06182), lifted from experts on devices to task types on servers.

The paper balances experts within one system and defines no dispatch of tasks. Forms: `paper` binds users to home servers; `greedy` and
`anti-correlation` are its two placements, re-planned every `interval_s` from the load of the interval before: units of load in descending
order to the server that has least for its speed, an equal number of units each, plus, in anti-correlation, the load of those already
there whose load moves together with this unit's; a type's tasks take turns over its servers. `strong` joins the shortest predicted queue.
Its expert buffer is `services.core.runtimes.expert_buffered`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice, OffloadPolicy, Outcome
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.policies.home import Home
from services.core.offload.policies.join_shortest_queue import ShortestQueue
from services.core.offload.speeds import tasks_per_s
from services.core.offload.table import Column
from services.core.offload.ties import lowest_row
from services.core.offload.values import Task

NUM_BINS = 16  # of an interval, for correlations
FORMS = (PAPER, "greedy", "anti-correlation", STRONG)


class PlacedTaskTypes:
    def __init__(self, form: str = STRONG, interval_s: float = 20.0, correlation_weight: float = 1.0) -> None:
        if interval_s <= 0.0:
            raise ValueError(f"interval_s is {interval_s}: it must be above 0")
        self._interval_s = interval_s
        self._weight = correlation_weight if checked_form(form, FORMS) == "anti-correlation" else 0.0
        dispatch: dict[str, OffloadPolicy] = {PAPER: Home(), STRONG: ShortestQueue()}
        self._dispatch = dispatch.get(form)
        self._began_at_s = -math.inf
        self._loads: dict[str, Column] = {}  # task type -> load by bin of the present interval
        self._servers: Mapping[str, tuple[str, ...]] = {}  # task type -> servers, from the interval before
        self._last: dict[str, str] = {}  # task type -> server that had the last turn

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        if self._dispatch is not None:
            return self._dispatch.choose(task, candidates, rng)
        placed = self._servers.get(task.likely_type, ())
        rows = [row for row, edge in enumerate(candidates.edges) if edge.edge_id in placed]
        if not rows:
            reason = "its task type has no server yet" if not placed else "no server of its task type is a candidate"
            return Choice((lowest_row(candidates.columns.outstanding),), reason)
        last = self._last.get(task.likely_type, "")
        return Choice((next((row for row in rows if candidates.edges[row].edge_id > last), rows[0]),), "turn of a server of its task type")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """What is remembered needs the task: `sent`."""

    def sent(self, task: Task, candidates: CandidateTable, rows: tuple[int, ...]) -> None:
        if self._dispatch is not None:
            return
        if task.arrived_at_s >= self._began_at_s + self._interval_s:
            if self._loads:
                speeds = {edge.edge_id: tasks_per_s(edge) for edge in candidates.edges}
                self._servers = placement(self._loads, speeds, self._weight)
            self._began_at_s, self._loads = task.arrived_at_s, {}
        passed = (task.arrived_at_s - self._began_at_s) / self._interval_s
        bins = self._loads.setdefault(task.likely_type, np.zeros(NUM_BINS))
        bins[min(max(int(NUM_BINS * passed), 0), NUM_BINS - 1)] += float(candidates.columns.inference_s.mean())
        self._last[task.likely_type] = candidates.edges[rows[0]].edge_id

    def learned(self, outcome: Outcome) -> None:
        """Loads are those of arrivals."""


def placement(loads: Mapping[str, Column], speeds: Mapping[str, float], correlation_weight: float) -> dict[str, tuple[str, ...]]:
    """Servers of each task type. A type is cut into units by its share of the load, together about one a server or more."""
    task_types, server_ids = sorted(loads), sorted(speeds)
    totals = {t: float(loads[t].sum()) for t in task_types}
    whole = max(sum(totals.values()), 1e-12)
    num_units = {t: max(1, round(max(len(server_ids), len(task_types)) * totals[t] / whole)) for t in task_types}
    units = sorted(((totals[t] / num_units[t], t) for t in task_types for _ in range(num_units[t])), key=lambda unit: (-unit[0], unit[1]))
    room = math.ceil(len(units) / len(server_ids))
    held: dict[str, list[tuple[float, str]]] = {server_id: [] for server_id in server_ids}
    for load, task_type in units:

        def burden(server_id: str, load: float = load, task_type: str = task_type) -> float:
            there = sum(other + correlation_weight * _together(loads, task_type, kind) * other for other, kind in held[server_id])
            return (there + load) / speeds[server_id]

        free = [server_id for server_id in server_ids if len(held[server_id]) < room]
        held[min(free, key=burden)].append((load, task_type))
    return {t: tuple(server_id for server_id in server_ids if any(kind == t for _, kind in held[server_id])) for t in task_types}


def _together(loads: Mapping[str, Column], first: str, second: str) -> float:
    """Pearson correlation of two loads over the bins; of one that never moves, 0; of a type with itself, 1."""
    if first == second:
        return 1.0
    one, two = loads[first] - loads[first].mean(), loads[second] - loads[second].mean()
    norm = math.sqrt(float(one @ one) * float(two @ two))
    return float(one @ two) / norm if norm > 0.0 else 0.0


POLICY = PlacedTaskTypes
