"""One task from admission to its end: decides, sends it to an edge, and to another one when that edge dies. Writes the task's events.

Every task that was dispatched gets exactly one terminal event from here: completed, or failed with the status that the user saw. A task
that no edge could take gets `rejected`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

import grpc

from moedge.v1 import inference_pb2
from services.broker.attempt import Attempt, EdgeLostError, Progress, VersionGoneError, deadline_passed
from services.broker.edges import EdgeView
from services.broker.knowledge import Knowledge
from services.broker.metrics import BrokerMetrics
from services.broker.settings import BrokerSettings
from services.broker.tasks import TaskBook, TaskRecord
from services.broker.validation import DEFAULT_LINK
from services.core.offload.engine import OffloadEngine
from services.core.offload.values import Decision, EdgeSnapshot, Link, NoCandidateError, Observed, Task
from services.runtime.clock import Clock
from services.runtime.codec import duration, seconds
from services.runtime.eventlog import OutboxFullError
from services.runtime.events import EventWriter
from services.runtime.scope import within
from services.runtime.status import RpcFailure, edge_died, failure_for, internal, no_edge, predicted_late, queue_full
from services.runtime.tracing import Tracer

logger = logging.getLogger(__name__)

LEAST_RETRY_S, MOST_RETRY_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What tasks are served with."""

    engine: OffloadEngine
    edges: EdgeView
    knowledge: Knowledge
    book: TaskBook
    events: EventWriter
    clock: Clock
    settings: BrokerSettings
    broker_id: str
    metrics: BrokerMetrics
    tracer: Tracer


def make_task(parts: Parts, record: TaskRecord) -> Task:
    """The task as the core sees it; prompt tokens are estimated, the broker has no tokenizer."""
    fields = record.fields
    posterior = {fields.task_type: 1.0} if fields.task_type else parts.knowledge.posterior(fields.prompt)
    record.task_type = fields.task_type or max(sorted(posterior), key=posterior.__getitem__, default="")
    return Task(
        task_id=record.task_id,
        user_id=fields.user_id,
        region=fields.region,
        task_type=fields.task_type,
        posterior=posterior,
        alpha=fields.alpha,
        prompt_bytes=fields.prompt_bytes,
        prompt_tokens=parts.engine.predictors.prompt_length.tokens(fields.prompt_bytes),
        max_tokens=fields.max_tokens,
        arrived_at_s=record.arrived_at_s,
        deadline_at_s=record.deadline_at_s if record.has_deadline else None,
    )


class Dispatcher:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.num_unwritten_events = 0

    async def run(self, record: TaskRecord) -> None:
        """Serve the task to its end; the record tells its followers. Never raises but for cancellation."""
        parts = self._parts
        progress = Progress(make_task(parts, record), record)
        with within(task_id=record.task_id):
            await self._run(progress)

    async def _run(self, progress: Progress) -> None:
        parts, record = self._parts, progress.record
        try:
            await self._serve(progress)
        except asyncio.CancelledError:
            self._failed(progress, deadline_passed() if parts.clock.now_s() >= record.deadline_at_s else cancelled())
            raise
        except Exception as error:  # the top of a task
            failure = failure_for(error)
            if failure is None:
                logger.exception("task %s failed", record.task_id, extra={"task_id": record.task_id})
                failure = internal(record.task_id)
            self._failed(progress, failure)
        finally:
            parts.engine.withdrawn(record.task_id, parts.clock.now_s())

    def over(self, record: TaskRecord) -> None:
        """`run` is done, or was cancelled before it began."""
        record.end(cancelled())
        self._parts.book.closed(record)

    async def _serve(self, progress: Progress) -> None:
        tried: frozenset[str] = frozenset()
        last: RpcFailure | None = None
        while True:
            if progress.num_attempts >= self._parts.settings.max_attempts:
                raise self._given_up(progress, last)
            with self._parts.tracer.span("decide"):
                decision = self._decide(progress, tried, last)
            edge_id = decision.chosen[0]
            self._parts.metrics.decided(edge_id, decision.reason, progress.decision_s)
            try:
                with self._parts.tracer.span("dispatch", kind="client", attributes={"edge_id": edge_id, "reason": decision.reason}):
                    await self._attempt(progress, edge_id)
                return
            except VersionGoneError:
                self._withdraw(progress)
                self._parts.metrics.rerouted("VERSION_GONE")
                progress.resumed = False
                progress.restart_reason = "the edge no longer serves the version that the tokens came from"
            except EdgeLostError as lost:
                self._withdraw(progress)
                tried, last = tried | {edge_id}, lost.failure
                self._parts.metrics.rerouted(lost.failure.reason)
                progress.resumed = False
                link = self._parts.edges.find(edge_id)
                if lost.dead and link is not None:
                    self._parts.edges.eject(link, lost.failure.message)
                logger.info("edge %s lost: %s", edge_id, lost.failure.message, extra={"task_id": progress.record.task_id})

    def _decide(self, progress: Progress, tried: frozenset[str], last: RpcFailure | None) -> Decision:
        """An edge with the version that the streamed tokens came from is preferred: the answer then goes on where it stopped."""
        parts, task = self._parts, progress.task
        edges = parts.edges.snapshots
        began_at_s = parts.clock.now_s()
        decision: Decision | None = None
        if progress.token_ids and not progress.restart_reason:
            same = tuple(edge for edge in edges if edge.version == progress.version)
            num_tokens = len(progress.token_ids)
            rest = replace(task, prompt_tokens=task.prompt_tokens + num_tokens, max_tokens=max(task.max_tokens - num_tokens, 1))
            try:
                decision = parts.engine.decide(rest, same, began_at_s, tried)
                progress.resumed = True
            except NoCandidateError:
                decision = None
            finally:
                parts.engine.prepare(edges, began_at_s)
        if decision is None:
            try:
                decision = parts.engine.decide(task, edges, began_at_s, tried)
            except NoCandidateError as error:
                raise self._refusal(progress, error, last) from error
        progress.decision_s = parts.clock.now_s() - began_at_s
        edge_id = decision.chosen[0]
        progress.candidate = decision.candidate(edge_id)
        same_version = progress.candidate.version == progress.version
        if progress.accepted and not progress.resumed and (progress.token_ids or not same_version):
            self._start_over(progress)
        return decision

    async def _attempt(self, progress: Progress, edge_id: str) -> None:
        parts = self._parts
        edge = parts.edges.find(edge_id)
        if edge is None:
            raise EdgeLostError(RpcFailure(grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", "the edge left"), dead=False)
        snapshot = next((edge for edge in parts.edges.snapshots if edge.edge_id == edge_id), None)
        link = _link(snapshot, progress.task.region) if parts.settings.emulate_links and snapshot else None
        attempt = Attempt(progress, edge, link, parts.engine, parts.clock, parts.broker_id, parts.settings.deadline_margin_s)
        await attempt.travel()
        # Not earlier: until the edge has the call, nobody could close the task if this broker died.
        self._dispatched(progress, edge_id)
        summary = await attempt.run()
        self._completed(progress, edge_id, attempt, summary)

    def _completed(self, progress: Progress, edge_id: str, attempt: Attempt, summary: inference_pb2.Summary) -> None:
        parts, record, candidate = self._parts, progress.record, progress.candidate
        assert candidate is not None
        now_s = parts.clock.now_s()
        version = summary.version or progress.version or candidate.version
        queue_wait_s, inference_s = seconds(summary.timings.queue_wait), seconds(summary.timings.inference)
        output_tokens = max(len(progress.token_ids), summary.output_tokens)
        if progress.resumed:
            parts.engine.withdrawn(record.task_id, now_s)
        else:
            observed = Observed(queue_wait_s, inference_s, summary.prompt_tokens, output_tokens, version, record.task_type)
            parts.engine.finished(record.task_id, observed, now_s)
        text = "".join(progress.texts) if progress.resumed else summary.text
        downlink_s = attempt.downlink_s(float(len(text.encode())))
        visible_at_s = max(now_s + downlink_s, record.responses[-1][0] if record.responses else 0.0)
        told = inference_pb2.Summary(
            task_id=record.task_id,
            edge_id=edge_id,
            version=version,
            attempts=progress.num_attempts,
            text=text,
            finish_reason=summary.finish_reason,
            prompt_tokens=summary.prompt_tokens,
            output_tokens=output_tokens,
            timings=inference_pb2.Timings(
                queue_wait=summary.timings.queue_wait,
                inference=summary.timings.inference,
                completion_time=duration(visible_at_s - record.arrived_at_s),
                decision=duration(progress.decision_s),
                predicted_queue_wait=duration(candidate.queue_wait_s),
                predicted_completion_time=duration(candidate.completion_time_s),
                uplink=duration(attempt.uplink_s),
                downlink=duration(downlink_s),
            ),
            task_type=record.task_type,
        )
        parts.metrics.completed(record.task_type, visible_at_s - record.arrived_at_s, candidate.completion_time_s, candidate.quality)
        record.version = version
        record.add(inference_pb2.GenerateResponse(summary=told), visible_at_s)
        record.end()
        self._write(
            progress,
            "completed",
            edge_id=edge_id,
            version=version,
            prompt_tokens=summary.prompt_tokens,
            output_tokens=output_tokens,
            queue_wait=queue_wait_s,
            inference=inference_s,
            completion_time=visible_at_s - record.arrived_at_s,
            **_predicted(progress),
        )

    def _dispatched(self, progress: Progress, edge_id: str) -> None:
        """From here on the task is accepted. A full outbox refuses it instead: its events would be lost."""
        progress.num_attempts += 1
        assert progress.candidate is not None
        try:
            self._event(progress, "dispatched", edge_id=edge_id, version=progress.candidate.version, **_predicted(progress))
        except OutboxFullError:
            progress.num_attempts -= 1
            raise

    def _start_over(self, progress: Progress) -> None:
        """The user has tokens, or was told of another version: tell of the new edge, and that what came before is void."""
        assert progress.candidate is not None
        why = progress.restart_reason or "the edge did not finish the task"
        told = inference_pb2.Restarted(edge_id=progress.candidate.edge_id, version=progress.candidate.version, reason=why)
        progress.record.add(inference_pb2.GenerateResponse(restarted=told), self._parts.clock.now_s())
        progress.discard()

    def _withdraw(self, progress: Progress) -> None:
        self._parts.engine.withdrawn(progress.task.task_id, self._parts.clock.now_s())

    def _given_up(self, progress: Progress, last: RpcFailure | None) -> RpcFailure:
        """The status of a task that edges were tried for."""
        if progress.token_ids:
            return edge_died(len(progress.token_ids))
        if last is not None and last.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return queue_full(retry_after_s=last.retry_after_s or self._retry_after_s())
        cause = f" (last: {last.message})" if last is not None else ""
        return no_edge(f"the task failed at {progress.num_attempts} edges{cause}; try again")

    def _refusal(self, progress: Progress, error: NoCandidateError, last: RpcFailure | None) -> RpcFailure:
        """The status of a task that no edge can take now."""
        if error.reason == "late":
            return self._late(progress.task)
        if progress.token_ids:
            return edge_died(len(progress.token_ids))
        if error.reason == "queue_full":
            return queue_full(retry_after_s=self._retry_after_s())
        return self._given_up(progress, last) if last is not None else no_edge(str(error))

    def _late(self, task: Task) -> RpcFailure:
        parts, now_s = self._parts, self._parts.clock.now_s()
        try:
            explained = parts.engine.explain(replace(task, deadline_at_s=None), parts.edges.snapshots, now_s)
        except NoCandidateError:
            return predicted_late()
        soonest_s = min(candidate.completion_time_s for candidate in explained.candidates)
        return predicted_late(soonest_s, (task.deadline_at_s or now_s) - now_s)

    def _retry_after_s(self) -> float:
        now_s = self._parts.clock.now_s()
        waits = [self._parts.engine.wait_s(edge, now_s) for edge in self._parts.edges.snapshots]
        return min(max(min(waits, default=LEAST_RETRY_S), LEAST_RETRY_S), MOST_RETRY_S)

    def _failed(self, progress: Progress, failure: RpcFailure) -> None:
        """What the user sees, and its event: `rejected` where no edge ever got the task."""
        record = progress.record
        if record.failure is not None:  # the service ended it, and said so
            failure = record.failure
        if not record.ended or record.failure is not None:
            kind = "failed" if progress.num_attempts else "rejected"
            edge = {"edge_id": progress.candidate.edge_id, "version": progress.version} if progress.candidate else {}
            self._write(progress, kind, status=failure.code.name, reason=failure.reason, **edge)
            self._parts.metrics.ended(kind, record.task_type, failure.reason)
        record.end(failure)

    def _write(self, progress: Progress, kind: str, **fields: Any) -> None:
        """A terminal event. The task is over whether or not the outbox has room."""
        try:
            self._event(progress, kind, **fields)
        except OutboxFullError:
            self.num_unwritten_events += 1
            task_id = progress.task.task_id
            logger.error("outbox full: the end of task %s (%s) was not written", task_id, kind, extra={"task_id": task_id})

    def _event(self, progress: Progress, kind: str, **fields: Any) -> None:
        task, record = progress.task, progress.record
        self._parts.events.task(
            kind,
            task.task_id,
            progress.num_attempts,
            user_id=task.user_id,
            region=task.region,
            task_type=record.task_type,
            alpha=task.alpha,
            **fields,
        )


def cancelled() -> RpcFailure:
    return RpcFailure(grpc.StatusCode.CANCELLED, "CANCELLED", "the user cancelled the task")


def _predicted(progress: Progress) -> dict[str, float]:
    candidate = progress.candidate
    assert candidate is not None
    return {
        "predicted_queue_wait": candidate.queue_wait_s,
        "predicted_completion_time": candidate.completion_time_s,
        "predicted_quality": candidate.quality,
    }


def _link(edge: EdgeSnapshot, region: str) -> Link | None:
    return edge.links.get(region) or edge.links.get(DEFAULT_LINK)
