"""Turns the edges of a snapshot into candidates for one task with their estimates, and says why the other edges are none."""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateColumns, CandidateTable
from services.core.offload.estimates import OUTPUT_BYTES_PER_TOKEN, Estimates
from services.core.offload.given import GivenValues
from services.core.offload.predictors import Predictors
from services.core.offload.table import EdgeTable, Mask
from services.core.offload.values import Exclusion, Task
from services.core.offload.wait_board import WaitBoard

__all__ = ["OUTPUT_BYTES_PER_TOKEN", "Estimator"]


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
        """Candidates, and why the other edges are none."""
        given = self._given
        output_tokens = self.predictors.output_length.tokens(task.posterior, task.max_tokens)
        if given is not None:
            output_tokens = given.output_tokens(task, output_tokens)
        links = table.links(task.region)
        estimates = Estimates(task, table, links, board.rows.copy(), output_tokens, task.alpha * self.quality_scale, now_s)
        columns = estimates if given is None else _given(given, task, table, estimates)
        if links.serve and not board.full and task.deadline_at_s is None and not tried:
            return CandidateTable(table.edges, columns, output_tokens), ()

        open_to_task = table.serves & links.present
        open_to_task[list(board.full)] = False
        open_to_task[[table.index[edge_id] for edge_id in tried if edge_id in table.index]] = False
        if task.deadline_at_s is not None:
            open_to_task &= now_s + columns.completion_time_s <= task.deadline_at_s
        chosen = np.flatnonzero(open_to_task)
        if len(chosen) == len(table.edges):
            return CandidateTable(table.edges, columns, output_tokens), ()
        candidates = CandidateTable([table.edges[i] for i in chosen], columns.kept(chosen), output_tokens)
        return candidates, _exclusions(table, links.present, board.full, open_to_task, tried)


def _given(given: GivenValues, task: Task, table: EdgeTable, predicted: Estimates) -> CandidateColumns:
    """What is given in place of what is predicted, and all that follows from it."""
    uplink_s, downlink_s = predicted.uplink_s, predicted.downlink_s
    queue_wait_s = given.queue_wait_s(task, table.edges, uplink_s, predicted.queue_wait_s)
    inference_s = given.inference_s(task, table.edges, predicted.inference_s)
    completion_time_s = uplink_s + queue_wait_s + inference_s + downlink_s
    quality = given.quality(task, table.edges, predicted.quality)
    cost = completion_time_s - predicted.worth * quality + given.others_s(task, table.edges)
    return CandidateColumns(uplink_s, queue_wait_s, inference_s, downlink_s, quality, completion_time_s, cost, predicted.outstanding)


def _exclusions(table: EdgeTable, linked: Mask, full: set[int], open_to_task: Mask, tried: frozenset[str]) -> tuple[Exclusion, ...]:
    return tuple(Exclusion(table.ids[i], _reason(table, i, linked, full, tried)) for i in np.flatnonzero(~open_to_task).tolist())


def _reason(table: EdgeTable, i: int, linked: Mask, full: set[int], tried: frozenset[str]) -> str:
    """The first thing that stands in the way; what is left is the deadline."""
    edge = table.edges[i]
    if edge.edge_id in tried:
        return "tried"
    if not table.serves[i]:
        return edge.state.value
    if not linked[i]:
        return "no_link"
    return "queue_full" if i in full else "late"
