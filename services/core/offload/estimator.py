"""Turns the edges of a snapshot into estimates for one task: transfer times, wait, inference, quality, and the cost that ONTO minimises.

completion_time_s = uplink + queue wait + inference + downlink (paper, Sec. III: c_i = a_i + t_tran + t_wait + t_inf + t_tran);
cost = completion_time_s - alpha · quality_scale · quality (paper, Algorithm 1; reading A13 for the scale).
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateColumns, CandidateTable
from services.core.offload.given import GivenValues
from services.core.offload.predictors import Predictors
from services.core.offload.table import Column, EdgeTable, Mask
from services.core.offload.values import Exclusion, Task
from services.core.offload.wait_board import WaitBoard

OUTPUT_BYTES_PER_TOKEN = 4.0


class Estimator:
    """`default_region` names the link of an edge that serves regions it has no link of their own for. With `given`, what is given
    stands in for what is predicted."""

    def __init__(
        self, predictors: Predictors, quality_scale: float, default_region: str = "default", given: GivenValues | None = None
    ) -> None:
        if quality_scale < 0.0:
            raise ValueError(f"quality_scale is {quality_scale}: it is a number of seconds, 0 or more")
        self.predictors = predictors
        self.quality_scale = quality_scale
        self.default_region = default_region
        self._given = given

    def estimate(
        self, task: Task, table: EdgeTable, board: WaitBoard, now_s: float, tried: frozenset[str]
    ) -> tuple[CandidateTable, tuple[Exclusion, ...]]:
        """Candidates, and why the other edges are none. The wait is what is left of it when the prompt has travelled."""
        given, outstanding = self._given, board.outstanding
        predicted_tokens = self.predictors.output_length.tokens(task.posterior, task.max_tokens)
        output_tokens = given.output_tokens(task, predicted_tokens) if given else predicted_tokens
        links = table.links(task.region)
        uplink_s = links.latency_s + task.prompt_bytes * links.uplink_s_per_byte
        queue_wait_s = np.maximum(board.waits(now_s) - uplink_s, 0.0)
        inference_s = table.prefill_base_s + task.prompt_tokens * table.prefill_token_s
        inference_s += output_tokens * board.step_s
        if given:
            queue_wait_s = given.queue_wait_s(task, table.edges, uplink_s, queue_wait_s)
            inference_s = given.inference_s(task, table.edges, inference_s)
        downlink_s = links.latency_s + (output_tokens * OUTPUT_BYTES_PER_TOKEN) * links.downlink_s_per_byte
        completion_time_s = uplink_s + queue_wait_s + inference_s + downlink_s
        quality = table.quality(task.posterior)
        if given:
            quality = given.quality(task, table.edges, quality)
        cost = completion_time_s - (task.alpha * self.quality_scale) * quality
        if given:
            cost = cost + given.others_s(task, table.edges)
        columns = (uplink_s, queue_wait_s, inference_s, downlink_s, quality, completion_time_s, cost, outstanding)
        if links.serve and board.all_have_room and task.deadline_at_s is None and not tried:
            return CandidateTable(table.edges, CandidateColumns(*columns[:-1], outstanding.copy()), output_tokens), ()

        open_to_task = table.serves & links.present & (outstanding < table.room)
        if task.deadline_at_s is not None:
            open_to_task &= now_s + completion_time_s <= task.deadline_at_s
        if not tried and np.count_nonzero(open_to_task) == len(table.edges):
            return CandidateTable(table.edges, CandidateColumns(*columns[:-1], outstanding.copy()), output_tokens), ()
        for edge_id in tried:
            if edge_id in table.index:
                open_to_task[table.index[edge_id]] = False
        chosen = np.flatnonzero(open_to_task)
        kept = CandidateColumns(*(column[chosen] for column in columns))
        candidates = CandidateTable([table.edges[i] for i in chosen], kept, output_tokens)
        return candidates, _exclusions(table, links.present, outstanding, open_to_task, tried)


def _exclusions(table: EdgeTable, linked: Mask, outstanding: Column, open_to_task: Mask, tried: frozenset[str]) -> tuple[Exclusion, ...]:
    return tuple(Exclusion(table.ids[i], _reason(table, int(i), linked, outstanding, tried)) for i in np.flatnonzero(~open_to_task))


def _reason(table: EdgeTable, i: int, linked: Mask, outstanding: Column, tried: frozenset[str]) -> str:
    """The first thing that stands in the way; what is left is the deadline."""
    edge = table.edges[i]
    if edge.edge_id in tried:
        return "tried"
    if not table.serves[i]:
        return edge.state.value
    if not linked[i]:
        return "no_link"
    return "queue_full" if outstanding[i] >= table.room[i] else "late"
