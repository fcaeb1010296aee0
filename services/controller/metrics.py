"""What the merge controller counts: decisions, updates and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric

from moedge.v1 import worker_pb2
from services.runtime.codec import seconds
from services.runtime.events import MERGE_KINDS
from services.runtime.metrics import MAX_EDGES, UPDATE_S, Bounded, ServiceMetrics, gauges

if TYPE_CHECKING:
    from services.controller.service import EdgeStatus

PHASES = ("build", "transfer", "load")
EDGE_PHASES = ("unknown", "watch", "build", "load")


class ControllerMetrics:
    def __init__(self, metrics: ServiceMetrics) -> None:
        registry = metrics.registry
        self._edge = Bounded(MAX_EDGES)
        decisions = Counter("moedge_merge_decisions", "Decisions and steps of updates.", ["outcome"], registry=registry)
        lasted = Histogram("moedge_merge_duration_seconds", "Parts of an update.", ["phase"], buckets=UPDATE_S, registry=registry)
        reports = Counter("moedge_merge_reports", "Activation reports read.", ["outcome"], registry=registry)
        fetched = Counter("moedge_merge_bytes", "Bytes of models rolled out: as they came, and had all come.", ["kind"], registry=registry)
        self._pause_s = Histogram(
            "moedge_merge_swap_pause_seconds", "Longest time that a rollout kept tasks waiting.", buckets=UPDATE_S, registry=registry
        )
        self._downtime_s = Histogram(
            "moedge_merge_swap_downtime_seconds", "Time that a rollout took an edge out of service.", buckets=UPDATE_S, registry=registry
        )
        self._decisions = {kind: decisions.labels(kind) for kind in MERGE_KINDS}
        self._lasted = {phase: lasted.labels(phase) for phase in PHASES}
        self._reports = {outcome: reports.labels(outcome) for outcome in ("counted", "ignored")}
        self._fetched = {kind: fetched.labels(kind) for kind in ("shipped", "full")}

    def decided(self, outcome: str) -> None:
        """One of the kinds of merge events."""
        self._decisions[outcome].inc()

    def built(self, lasted_s: float) -> None:
        self._lasted["build"].observe(lasted_s)

    def swapped(self, report: worker_pb2.SwapReport) -> None:
        self._lasted["transfer"].observe(seconds(report.fetch))
        self._lasted["load"].observe(seconds(report.load))
        self._pause_s.observe(seconds(report.stall))
        self._downtime_s.observe(seconds(report.downtime))
        self._fetched["shipped"].inc(report.bytes_fetched)
        self._fetched["full"].inc(report.bytes_full)

    def reported(self, counted: bool) -> None:
        self._reports["counted" if counted else "ignored"].inc()

    def view(self, edges: Sequence[EdgeStatus]) -> Iterable[Metric]:
        named = {self._edge(edge.edge_id): edge for edge in edges}
        phases = [edge.phase for edge in edges]
        yield gauges(
            "moedge_merge_edges", "Edges by what the controller does for them.", ["phase"], [((p,), phases.count(p)) for p in EDGE_PHASES]
        )
        columns: tuple[tuple[str, str, Callable[[EdgeStatus], float]], ...] = (
            ("moedge_merge_activation_shift", "Activation shift at the last check.", lambda edge: edge.shift),
            ("moedge_merge_check_interval_seconds", "Time between two checks of an edge.", lambda edge: edge.interval_s),
            ("moedge_merge_tasks_counted", "Tasks counted since the last decision.", lambda edge: edge.num_tasks),
            ("moedge_merge_failures_in_row", "Updates in a row that failed.", lambda edge: edge.failures),
        )
        for name, text, value in columns:
            yield gauges(name, text, ["edge"], [((edge_id,), value(edge)) for edge_id, edge in named.items()])
