"""The edges of one snapshot as columns, so that a decision costs a few array operations however many edges there are.

Built once a snapshot. Holds what does not change between decisions; waits and task counts live in `wait_board`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.core.offload.predictors import Predictors
from services.core.offload.values import EdgeSnapshot, EdgeState, Link

Column = NDArray[np.float64]  # (num_edges,)
Mask = NDArray[np.bool_]  # (num_edges,)

NO_LINK_TIMES = Link(latency_s=0.0, uplink_bytes_per_s=0.0, downlink_bytes_per_s=0.0)  # of an edge that describes no links at all


@dataclass(frozen=True, slots=True)
class LinkColumns:
    """The links of one user region: to which edges there is one, and what it costs."""

    present: Mask
    serve: bool  # every edge has a link and takes tasks
    instant: bool  # no way to any edge takes time
    latency_s: Column
    uplink_s_per_byte: Column
    downlink_s_per_byte: Column


class EdgeTable:
    """Edges by ascending id. `seen_at_s` is the instant from which announced downtimes are counted down."""

    def __init__(self, edges: Sequence[EdgeSnapshot], predictors: Predictors, default_region: str, seen_at_s: float) -> None:
        self.edges = tuple(sorted(edges, key=lambda edge: edge.edge_id))
        self.ids = tuple(edge.edge_id for edge in self.edges)
        self.index = {edge_id: i for i, edge_id in enumerate(self.ids)}
        self._predictors = predictors
        self._default_region = default_region
        self.slots = tuple(max(edge.max_batch, 1) for edge in self.edges)
        self.room = tuple(max(edge.max_batch, 1) + edge.max_queue for edge in self.edges)  # tasks
        self.serves = np.array([edge.state in (EdgeState.READY, EdgeState.UPDATING) for edge in self.edges], dtype=np.bool_)
        self.available_at_s = np.array([seen_at_s + max(edge.unavailable_s, 0.0) for edge in self.edges])
        self.all_available_at_s = float(self.available_at_s.max(initial=-np.inf))
        self.step_times = [predictors.step_time.step_times(edge.edge_id, edge.step_times) for edge in self.edges]  # corrected
        self._links: dict[str, LinkColumns] = {}
        self._quality: dict[str, Column] = {}

    def refresh_step_times(self, i: int) -> None:
        edge = self.edges[i]
        self.step_times[i] = self._predictors.step_time.step_times(edge.edge_id, edge.step_times)

    def links(self, region: str) -> LinkColumns:
        columns = self._links.get(region)
        if columns is None:
            found = [self._link(edge, region) for edge in self.edges]
            latency_s = np.array([link.latency_s if link else 0.0 for link in found])
            uplink = np.array([link.uplink_s_per_byte if link else 0.0 for link in found])
            downlink = np.array([link.downlink_s_per_byte if link else 0.0 for link in found])
            columns = self._links[region] = LinkColumns(
                present=np.array([link is not None for link in found], dtype=np.bool_),
                serve=bool(self.serves.all()) and None not in found,
                instant=not (latency_s.any() or uplink.any() or downlink.any()),
                latency_s=latency_s,
                uplink_s_per_byte=uplink,
                downlink_s_per_byte=downlink,
            )
        return columns

    def _link(self, edge: EdgeSnapshot, region: str) -> Link | None:
        if not edge.links:
            return NO_LINK_TIMES
        return edge.links.get(region) or edge.links.get(self._default_region)

    def quality(self, posterior: Mapping[str, float]) -> Column:
        """Expected quality of each edge over the posterior of task types; not to be written to."""
        if len(posterior) == 1:
            ((task_type, share),) = posterior.items()
            if share == 1.0:
                return self._quality_of(task_type)
        expected = np.zeros(len(self.edges))
        for task_type, share in posterior.items():
            expected += share * self._quality_of(task_type)
        return expected

    def forget_quality(self, task_type: str) -> None:
        self._quality.pop(task_type, None)

    def _quality_of(self, task_type: str) -> Column:
        column = self._quality.get(task_type)
        if column is None:
            predict = self._predictors.quality.quality
            column = self._quality[task_type] = np.array([predict(edge.version, task_type, edge.quality) for edge in self.edges])
        return column
