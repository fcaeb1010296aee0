"""Predicted queue waits and outstanding tasks of every edge in a table, recomputed only where the ledger changed.

A cache between the ledger and the estimator; it predicts nothing by itself.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.ledger import Ledger
from services.core.offload.table import Column, EdgeTable
from services.core.offload.values import StepTimes


class WaitBoard:
    def __init__(self, table: EdgeTable, ledger: Ledger, now_s: float) -> None:
        num_edges = len(table.edges)
        self._table = table
        self._ledger = ledger
        self._wait_s = np.zeros(num_edges)
        self._melts_s = np.zeros(num_edges)
        self._at_s = np.full(num_edges, now_s)
        self.outstanding = np.zeros(num_edges)  # tasks, own and others'
        self.step_s = np.zeros(num_edges)  # of a batch with one task more
        self._full: set[int] = set()
        ledger.take_changed()
        for i in range(num_edges):
            self.redescribe(i)
            self._recompute(i, now_s)

    def redescribe(self, i: int) -> None:
        """Tell the ledger the step times that the table holds."""
        table = self._table
        times = StepTimes(
            float(table.step_base_s[i]), float(table.step_row_s[i]), float(table.prefill_base_s[i]), float(table.prefill_token_s[i])
        )
        self._ledger.describe(table.ids[i], times, int(table.slots[i]))
        self._restep(i)

    def refresh(self, now_s: float) -> None:
        for edge_id in self._ledger.take_changed():
            i = self._table.index.get(edge_id)
            if i is not None:
                self._recompute(i, now_s)

    @property
    def all_have_room(self) -> bool:
        return not self._full

    def waits(self, now_s: float) -> Column:
        """Queue wait of a task that comes now, remaining downtime of an update included (readings A9, A10)."""
        melted: Column = self._wait_s - np.minimum(now_s - self._at_s, self._melts_s)
        waits: Column = np.maximum(melted, 0.0)
        if now_s < self._table.all_available_at_s:
            waits += np.maximum(self._table.available_at_s - now_s, 0.0)
        return waits

    def _recompute(self, i: int, now_s: float) -> None:
        edge = self._table.edges[i]
        forecast = self._ledger.forecast(edge.edge_id, edge.others, now_s)
        self._wait_s[i], self._melts_s[i], self._at_s[i] = forecast.wait_s, forecast.melts_s, now_s
        num_tasks = self._ledger.num_tasks(edge.edge_id) + edge.others.num_tasks
        self.outstanding[i] = num_tasks
        (self._full.discard if num_tasks < self._table.room[i] else self._full.add)(i)
        self._restep(i)

    def _restep(self, i: int) -> None:
        table = self._table
        rows = min(self.outstanding[i] + 1.0, table.slots[i])
        self.step_s[i] = table.step_base_s[i] + rows * table.step_row_s[i]
