"""What a broker counts, and the gauges that are read of its parts at a scrape."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Histogram, Summary
from prometheus_client.metrics_core import Metric

from services.broker.edges import EdgeView
from services.core.offload.engine import OffloadEngine
from services.core.offload.values import EdgeState
from services.runtime.clock import Clock
from services.runtime.metrics import (
    FAST_S,
    MAX_EDGES,
    MAX_REASONS,
    MAX_TASK_TYPES,
    OTHER,
    SERVING_S,
    Bounded,
    ServiceMetrics,
    gauge,
    gauges,
)

STALE_AFTER_S = 3.0  # an edge is asked once a second, and writes its registry entry twice a second

OUTCOMES = ("completed", "failed", "rejected", "cancelled")
REJECTIONS = ("NO_EDGE", "QUEUE_FULL", "OUTBOX_FULL", "PREDICTED_LATE", "DRAINING", "INVALID_FIELD", "PROMPT_TOO_LONG")
REROUTES = ("TRANSPORT", "UNREACHABLE", "NO_SUMMARY", "QUEUE_FULL", "DRAINING", "INTERNAL", "VERSION_GONE")


class BrokerMetrics:
    def __init__(self, metrics: ServiceMetrics) -> None:
        registry = metrics.registry
        self._edge = Bounded(MAX_EDGES)
        self._reason = Bounded(MAX_REASONS)
        self._task_type = Bounded(MAX_TASK_TYPES)
        self._decision_s = Histogram("moedge_broker_decision_seconds", "Time to decide on an edge.", buckets=FAST_S, registry=registry)
        self._completion_s = Histogram(
            "moedge_broker_completion_seconds", "Completion time of tasks, links included.", buckets=SERVING_S, registry=registry
        )
        over = "Predicted minus observed completion time, of tasks that took less than predicted."
        under = "Observed minus predicted completion time, of tasks that took longer than predicted."
        self._over_s = Histogram("moedge_broker_prediction_error_over_seconds", over, buckets=SERVING_S, registry=registry)
        self._under_s = Histogram("moedge_broker_prediction_error_under_seconds", under, buckets=SERVING_S, registry=registry)
        offloads = Counter("moedge_broker_offloads", "Tasks sent to an edge.", ["edge", "reason"], registry=registry)
        tasks = Counter("moedge_broker_tasks", "Tasks that ended.", ["outcome", "task_type"], registry=registry)
        quality = Summary("moedge_broker_predicted_quality", "Quality promised for completed tasks.", ["task_type"], registry=registry)
        scores = Summary("moedge_broker_score", "Scores that users gave to completed tasks.", ["task_type"], registry=registry)
        rejections = Counter("moedge_broker_rejections", "Tasks refused before any edge had them.", ["reason"], registry=registry)
        reroutes = Counter("moedge_broker_reroutes", "Attempts that ended without a result.", ["cause"], registry=registry)
        self._offload = cache(offloads.labels)
        self._task = cache(tasks.labels)
        self._quality = cache(quality.labels)
        self._score = cache(scores.labels)
        self._rejections = {reason: rejections.labels(reason.lower()) for reason in (*REJECTIONS, OTHER)}
        self._reroutes = {cause: reroutes.labels(cause.lower()) for cause in (*REROUTES, OTHER)}
        for outcome in OUTCOMES:
            self._task(outcome, OTHER)
        self._quality(OTHER)
        self._score(OTHER)

    def decided(self, edge_id: str, reason: str, lasted_s: float) -> None:
        self._decision_s.observe(lasted_s)
        self._offload(self._edge(edge_id), self._reason(reason)).inc()

    def completed(self, task_type: str, completion_s: float, predicted_s: float, predicted_quality: float) -> None:
        named = self._task_type(task_type)
        self._task("completed", named).inc()
        self._completion_s.observe(completion_s)
        self._quality(named).observe(predicted_quality)
        error_s = predicted_s - completion_s
        (self._over_s if error_s >= 0.0 else self._under_s).observe(abs(error_s))

    def ended(self, outcome: str, task_type: str, reason: str) -> None:
        """In any way but completion."""
        self._task("cancelled" if reason == "CANCELLED" else outcome, self._task_type(task_type)).inc()
        if outcome == "rejected" and reason != "CANCELLED":
            self.rejected(reason)

    def rejected(self, reason: str) -> None:
        self._rejections[reason if reason in self._rejections else OTHER].inc()

    def rerouted(self, cause: str) -> None:
        self._reroutes[cause if cause in self._reroutes else OTHER].inc()

    def scored(self, task_type: str, score: float) -> None:
        self._score(self._task_type(task_type)).observe(score)

    def edge(self, edge_id: str) -> str:
        return self._edge(edge_id)


def view_of(metrics: BrokerMetrics, edges: EdgeView, engine: OffloadEngine, clock: Clock) -> Iterable[Metric]:
    """Gauges of the edges as this broker sees them."""
    now_s = clock.now_s()
    outstanding = engine.outstanding(now_s)
    snapshots = edges.snapshots
    states = Tally(snapshot.state for snapshot in snapshots)
    ages_s = {metrics.edge(link.edge_id): now_s - link.received_at_s for link in edges.links}
    inflight: Tally[str] = Tally({metrics.edge(link.edge_id): 0 for link in edges.links})
    for edge_id, work in outstanding.items():
        inflight[metrics.edge(edge_id)] += work.num_tasks
    waits_s = {metrics.edge(edge.edge_id): engine.wait_s(edge, now_s) for edge in snapshots}
    one, each = ("state",), ("edge",)
    yield gauges("moedge_broker_edges", "Edges by state.", one, [((state.value,), states[state]) for state in EdgeState])
    yield gauges("moedge_broker_inflight", "Tasks of this broker at an edge.", each, [((e,), float(n)) for e, n in inflight.items()])
    yield gauges("moedge_broker_predicted_wait_seconds", "Queue wait predicted for the next task.", each, _rows(waits_s))
    yield gauge(
        "moedge_broker_stale_edges",
        f"Edges not heard of for {STALE_AFTER_S:g} s.",
        sum(age_s > STALE_AFTER_S for age_s in ages_s.values()),
    )
    yield gauges("moedge_redis_prediction_age_seconds", "Age of what predictions for an edge rest on.", each, _rows(ages_s))


def _rows(values: dict[str, float]) -> list[tuple[tuple[str], float]]:
    return [((edge,), value) for edge, value in values.items()]
