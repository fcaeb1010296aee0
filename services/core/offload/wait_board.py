"""Predicted queue waits, outstanding tasks and step times of every edge in a table, recomputed only where something changed.

A cache between the ledger and the estimator; it predicts nothing by itself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from services.core.offload.ledger import Ledger
from services.core.offload.table import Column, EdgeTable

FREE_AT, LEAST_WAIT, OUTSTANDING, STEP, PREFILL_BASE, PREFILL_TOKEN = range(6)
NUM_ROWS = 6


class WaitBoard:
    """`rows`, (NUM_ROWS, num_edges), is everything about edges that changes from task to task, in one array, so that a decision keeps it
    by one copy: the instant at which a slot frees for a task that comes now (-inf: one is free), the wait below which that does not melt,
    tasks outstanding (own and others'), seconds of a step of a batch with one task more, seconds of reading a prompt, and of each token.
    """

    def __init__(self, table: EdgeTable, ledger: Ledger, now_s: float) -> None:
        num_edges = len(table.edges)
        self.rows: NDArray[np.float64] = np.zeros((NUM_ROWS, num_edges))
        self.full: set[int] = set()  # edges without room in their queue
        self._free_at_s, self._least_wait_s, self._outstanding, self._step_s, self._prefill_base_s, self._prefill_token_s = self.rows
        self._table = table
        self._ledger = ledger
        self._num_tasks = [0] * num_edges
        ledger.take_changed()
        for i in range(num_edges):
            self.redescribe(i)
            self._recompute(i, now_s)

    def redescribe(self, i: int) -> None:
        """Tell the ledger the step times that the table holds. Call it where the edge's tasks change too: that is when they count."""
        self._ledger.describe(self._table.ids[i], self._table.step_times[i], self._table.slots[i])

    def refresh(self, now_s: float) -> None:
        for edge_id in self._ledger.take_changed():
            i = self._table.index.get(edge_id)
            if i is not None:
                self._recompute(i, now_s)

    def num_tasks(self, i: int) -> int:
        """Outstanding, own and others'."""
        return self._num_tasks[i]

    def wait_s(self, i: int, now_s: float) -> float:
        """Of one edge, as `waits_s`."""
        wait_s = max(float(self._free_at_s[i]) - now_s, float(self._least_wait_s[i]))
        return wait_s + max(float(self._table.available_at_s[i]) - now_s, 0.0)

    def _recompute(self, i: int, now_s: float) -> None:
        table = self._table
        slots, times, others = table.slots[i], table.step_times[i], table.edges[i].others
        num_tasks = self._num_tasks[i] = self._ledger.num_tasks(table.ids[i]) + others.num_tasks
        free_at_s, least_wait_s, rows = -math.inf, 0.0, num_tasks + 1
        if num_tasks >= slots:
            forecast = self._ledger.forecast(table.ids[i], others, now_s)
            free_at_s, least_wait_s, rows = now_s + forecast.wait_s, forecast.wait_s - forecast.melts_s, slots
        self._free_at_s[i], self._least_wait_s[i] = free_at_s, least_wait_s if least_wait_s > 0.0 else 0.0
        self._outstanding[i] = num_tasks
        self._step_s[i] = times.step_base_s + times.step_row_s * rows
        self._prefill_base_s[i], self._prefill_token_s[i] = times.prefill_base_s, times.prefill_token_s
        if num_tasks < table.room[i]:
            self.full.discard(i)
        else:
            self.full.add(i)


def waits_s(rows: NDArray[np.float64], table: EdgeTable, now_s: float) -> Column:
    """Queue wait of a task that comes now, remaining downtime of an update included (readings A9, A10)."""
    waits: Column = np.maximum(rows[FREE_AT] - now_s, rows[LEAST_WAIT])
    if now_s < table.all_available_at_s:
        waits += np.maximum(table.available_at_s - now_s, 0.0)
    return waits
