"""What an edge worker counts, and the gauges that are read of its parts at a scrape. Every series carries the edge."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from moedge.v1 import worker_pb2
from services.core.merging.values import Counts
from services.runtime.metrics import MAX_TASK_TYPES, SERVING_S, UPDATE_S, Bounded, ServiceMetrics, gauges
from services.worker.batch_loop import BatchLoop

TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SUMMARIES = ("mean", "worst")


class WorkerMetrics:
    def __init__(self, metrics: ServiceMetrics, edge_id: str) -> None:
        registry = metrics.registry
        self._edge_id = edge_id
        self._task_type = Bounded(MAX_TASK_TYPES)

        def timed(name: str, text: str, buckets: tuple[float, ...] = SERVING_S) -> Histogram:
            return Histogram(name, text, ["edge"], buckets=buckets, registry=registry).labels(edge_id)

        self._queue_wait_s = timed("moedge_edge_queue_wait_seconds", "From acceptance of a task to its start.")
        self._ttft_s = timed("moedge_edge_ttft_seconds", "From acceptance of a task to its first token.")
        self._tpot_s = timed("moedge_edge_tpot_seconds", "Time per output token after the first.", TOKEN_S)
        self._e2e_s = timed("moedge_edge_e2e_seconds", "From acceptance of a task to its last token.")
        self._swap_pause_s = timed("moedge_edge_swap_pause_seconds", "Longest time an update kept tasks waiting.", UPDATE_S)
        tasks = Counter("moedge_edge_tasks", "Tasks that ended here.", ["edge", "outcome"], registry=registry)
        tokens = Counter("moedge_edge_tokens", "Tokens read and generated.", ["edge", "kind"], registry=registry)
        updates = Counter("moedge_edge_updates", "Changes of version.", ["edge", "outcome"], registry=registry)
        self._tasks = {outcome: tasks.labels(edge_id, outcome) for outcome in ("completed", "failed", "cancelled")}
        self._tokens = {kind: tokens.labels(edge_id, kind) for kind in ("prompt", "output")}
        self._updates = {outcome: updates.labels(edge_id, outcome) for outcome in ("swapped", "failed")}
        balance = Gauge(
            "moedge_edge_expert_balance",
            "Mean over most tokens of an original expert in a layer: 1 is even.",
            ["edge", "layers"],
            registry=registry,
        )
        jain = Gauge("moedge_edge_expert_jain", "Jain's index of tokens by expert: 1 is even.", ["edge", "layers"], registry=registry)
        self._balance = {summary: balance.labels(edge_id, summary) for summary in SUMMARIES}
        self._jain = {summary: jain.labels(edge_id, summary) for summary in SUMMARIES}
        for child in (*self._balance.values(), *self._jain.values()):
            child.set(math.nan)  # until a report was made

    def completed(self, *, queue_wait_s: float, ttft_s: float, e2e_s: float, prompt_tokens: int, output_tokens: int) -> None:
        self._tasks["completed"].inc()
        self._queue_wait_s.observe(queue_wait_s)
        self._ttft_s.observe(ttft_s)
        self._e2e_s.observe(e2e_s)
        if output_tokens > 1:
            self._tpot_s.observe((e2e_s - ttft_s) / (output_tokens - 1))
        self._tokens["prompt"].inc(prompt_tokens)
        self._tokens["output"].inc(output_tokens)

    def failed(self) -> None:
        self._tasks["failed"].inc()

    def cancelled(self) -> None:
        self._tasks["cancelled"].inc()

    def swapped(self, pause_s: float) -> None:
        self._updates["swapped"].inc()
        self._swap_pause_s.observe(pause_s)

    def update_failed(self) -> None:
        self._updates["failed"].inc()

    def reported(self, counts: Counts) -> None:
        """Balance over the layers that had tokens; the whole matrix goes to the event log instead."""
        used = counts[counts.sum(axis=1) > 0].astype(np.float64)
        if not len(used):
            return
        balance = used.mean(axis=1) / used.max(axis=1)
        jain = used.sum(axis=1) ** 2 / (used.shape[1] * (used**2).sum(axis=1))
        for children, values in ((self._balance, balance), (self._jain, jain)):
            children["mean"].set(float(values.mean()))
            children["worst"].set(float(values.min()))

    def view(self, entry: worker_pb2.EdgeEntry, loop: BatchLoop) -> Iterable[Metric]:
        """Gauges of what runs here."""

        def one(name: str, text: str, value: float) -> Metric:
            return gauges(name, text, ["edge"], [((self._edge_id,), value)])

        yield one("moedge_edge_queue_depth", "Tasks that wait for a place in the batch.", loop.num_queued)
        yield one("moedge_edge_running", "Tasks in the batch.", loop.num_running)
        yield one("moedge_edge_batch_limit", "Most tasks in the batch.", entry.max_batch)
        yield one("moedge_edge_queue_limit", "Most tasks that may wait; more are refused.", entry.max_queue)
        yield one("moedge_edge_memory_bytes", "Memory of the edge for a model.", entry.memory_bytes)
        yield one("moedge_edge_model_bytes", "Size of the model served.", entry.model_bytes)
        yield one("moedge_edge_step_age_seconds", "How long the present step has lasted; 0 when idle.", loop.step_age_s)
        yield one("moedge_edge_ready", "1 while the edge takes tasks.", float(entry.state == worker_pb2.EDGE_STATE_READY))
        yield one("moedge_edge_pinned", "1 while the controller may not change the version.", float(entry.pinned))
        yield gauges(
            "moedge_edge_model_info",
            "The model version served; always 1.",
            ["edge", "model", "version"],
            [((self._edge_id, entry.base_model, entry.version), 1.0)],
        )
        quality = {self._task_type(task_type): value for task_type, value in sorted(entry.quality.items())}
        yield gauges(
            "moedge_edge_quality",
            "Measured quality of the version served, by task type.",
            ["edge", "task_type"],
            [((self._edge_id, task_type), value) for task_type, value in quality.items()],
        )
