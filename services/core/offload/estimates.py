"""The estimates of one task at each edge, columns of which are computed when they are asked for: a policy that looks at cost pays for cost.

What changes from task to task is a copy, so that a decision explains itself the same way however much later it is asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.core.offload.table import Column, EdgeTable, LinkColumns
from services.core.offload.values import Task
from services.core.offload.wait_board import OUTSTANDING, PREFILL_BASE, PREFILL_TOKEN, STEP, waits_s

OUTPUT_BYTES_PER_TOKEN = 4.0


class Estimates:
    """Of every edge of the table, or with `kept` of those alone. `rows` are those of `WaitBoard`; `worth` is alpha · quality_scale.

    completion_time_s = uplink + queue wait + inference + downlink (paper, Sec. III: c_i = a_i + t_tran + t_wait + t_inf + t_tran);
    cost = completion_time_s - alpha · quality_scale · quality (paper, Algorithm 1; reading A13 for the scale).
    The wait is what is left of it when the prompt has travelled.
    """

    __slots__ = ("_kept", "_links", "_now_s", "_output_tokens", "_quality", "_rows", "_table", "_task", "cost", "worth")

    def __init__(
        self,
        task: Task,
        table: EdgeTable,
        links: LinkColumns,
        rows: NDArray[np.float64],
        output_tokens: float,
        worth: float,
        now_s: float,
    ) -> None:
        self._task, self._table, self._links, self._rows = task, table, links, rows
        self._output_tokens, self.worth, self._now_s = output_tokens, worth, now_s
        self._kept: NDArray[np.intp] | None = None
        self._quality = table.quality(task.posterior)
        waits = waits_s(rows, table, now_s)
        if not links.instant:
            waits = np.maximum(waits, self._uplink_s()) + self._downlink_s()
        self.cost: Column = waits + self._inference_s() - worth * self._quality

    def kept(self, rows: NDArray[np.intp]) -> Estimates:
        """Itself, the other edges left out of every column."""
        self._kept = rows
        self.cost = self.cost[rows]
        return self

    def completion_time_s_of(self, row: int) -> float:
        return float(self.cost[row] + self.worth * self.quality[row])

    @property
    def uplink_s(self) -> Column:
        return self._of_kept(self._uplink_s())

    @property
    def queue_wait_s(self) -> Column:
        return self._of_kept(np.maximum(waits_s(self._rows, self._table, self._now_s) - self._uplink_s(), 0.0))

    @property
    def inference_s(self) -> Column:
        return self._of_kept(self._inference_s())

    @property
    def downlink_s(self) -> Column:
        return self._of_kept(self._downlink_s())

    @property
    def quality(self) -> Column:
        return self._of_kept(self._quality)

    @property
    def completion_time_s(self) -> Column:
        completion_time_s: Column = self.cost + self.worth * self.quality
        return completion_time_s

    @property
    def outstanding(self) -> Column:
        return self._of_kept(self._rows[OUTSTANDING])

    def _of_kept(self, column: Column) -> Column:
        return column if self._kept is None else column[self._kept]

    def _uplink_s(self) -> Column:
        uplink_s: Column = self._links.latency_s + self._task.prompt_bytes * self._links.uplink_s_per_byte
        return uplink_s

    def _downlink_s(self) -> Column:
        downlink_s: Column = self._links.latency_s + (self._output_tokens * OUTPUT_BYTES_PER_TOKEN) * self._links.downlink_s_per_byte
        return downlink_s

    def _inference_s(self) -> Column:
        rows = self._rows
        inference_s: Column = rows[PREFILL_BASE] + self._task.prompt_tokens * rows[PREFILL_TOKEN] + self._output_tokens * rows[STEP]
        return inference_s
