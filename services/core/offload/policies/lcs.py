"""LCS: improved weighted least connection (Singh, Kaur, IRJET 5(3), 2018).

Weighted least connection picks the fewest outstanding tasks for a server's weight, and floods a server that comes in empty. So a server
that gets more than `consecutive` (C) tasks in a row is passed over for the next C - 1. C = 0 switches that off: plain WLC.

Paper's form: tasks / weight, weight 1 / mean service time of a task alone, the guard on every server. Strong form: (tasks + 1) / weight
(LVS calls it shortest expected delay), weight by throughput with batching, and the guard only on servers that are new: not passed over
since they came, or since their version changed. On a fast server that deserves its tasks the guard would only hurt.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice, Outcome
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.speeds import service_s, tasks_per_s
from services.core.offload.table import Column
from services.core.offload.ties import lowest_row
from services.core.offload.values import EdgeSnapshot, Task


class WeightedLeastConnection:
    def __init__(self, form: str = STRONG, consecutive: int = 5) -> None:
        if consecutive < 0:
            raise ValueError(f"consecutive is {consecutive}: it is a number of tasks, 0 for no guard")
        self._paper = checked_form(form) == PAPER
        self._consecutive = consecutive
        self._last = ""
        self._in_a_row = 0
        self._rests: dict[str, int] = {}  # edge -> dispatches that it is passed over for
        self._settled: dict[str, str] = {}  # edge -> version it was passed over with

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        awake = np.array([self._rests.get(edge.edge_id, 0) == 0 for edge in candidates.edges])
        rows = np.flatnonzero(awake) if awake.any() else np.arange(len(candidates))
        weights = self._weights(candidates)[rows]
        tasks = candidates.columns.outstanding[rows] + (0.0 if self._paper else 1.0)
        row = int(rows[lowest_row(tasks / weights, -weights)])
        passed_over = awake.any() and not awake.all()
        return Choice((row,), "least connection for its weight" + (", a flooded server passed over" if passed_over else ""))

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """What is remembered needs the candidates: `sent`."""

    def sent(self, task: Task, candidates: CandidateTable, rows: tuple[int, ...]) -> None:
        self._rests = {edge_id: left - 1 for edge_id, left in self._rests.items() if left > 1}
        edge = candidates.edges[rows[0]]
        self._in_a_row = self._in_a_row + 1 if edge.edge_id == self._last else 1
        self._last = edge.edge_id
        if self._consecutive and self._in_a_row > self._consecutive and self._guarded(edge):
            self._in_a_row = 0
            if self._consecutive > 1:
                self._rests[edge.edge_id] = self._consecutive - 1
        for other in candidates.edges:
            if other.edge_id != edge.edge_id:
                self._settled[other.edge_id] = other.version

    def learned(self, outcome: Outcome) -> None:
        """Learns nothing from outcomes."""

    def _guarded(self, edge: EdgeSnapshot) -> bool:
        return self._paper or self._settled.get(edge.edge_id) != edge.version

    def _weights(self, candidates: CandidateTable) -> Column:
        return np.array([1.0 / service_s(edge) if self._paper else tasks_per_s(edge) for edge in candidates.edges])


POLICY = WeightedLeastConnection
