"""BrokerService: what operators and users ask besides inference. Edge commands are passed on to the worker they name."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import grpc.aio

from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.broker.dispatcher import Parts, make_task
from services.broker.edges import EdgeLink
from services.broker.lag import LagWatch
from services.broker.servicer import known
from services.broker.tasks import TaskRecord
from services.broker.validation import task_fields
from services.core.offload.values import Candidate, Decision, EdgeSnapshot, Exclusion, NoCandidateError
from services.runtime.codec import duration, state_to_proto
from services.runtime.eventlog import EventLog
from services.runtime.status import failed_precondition, guarded, invalid_field, not_found

logger = logging.getLogger(__name__)

COMMAND_DEADLINE_S = 30.0


class BrokerServicer(broker_pb2_grpc.BrokerServiceServicer):
    def __init__(self, parts: Parts, log: EventLog, lag: LagWatch) -> None:
        self._parts = parts
        self._log = log
        self._lag = lag

    @guarded
    async def ListEdges(self, request: broker_pb2.ListEdgesRequest, context: Any) -> broker_pb2.ListEdgesResponse:
        parts = self._parts
        snapshots = {edge.edge_id: edge for edge in parts.edges.snapshots}
        outstanding = parts.engine.outstanding(parts.clock.now_s())
        return broker_pb2.ListEdgesResponse(
            edges=[
                self._edge(link, snapshots[link.edge_id], outstanding[link.edge_id].num_tasks if link.edge_id in outstanding else 0)
                for link in parts.edges.links
                if link.edge_id in snapshots
            ],
            policy=parts.engine.policy_name,
            base_model=self._base_model(),
            quality_scale=parts.engine.quality_scale,
            outbox_depth=self._log.outbox_depth,
            kafka_connected=self._log.connected,
            redis_connected=parts.edges.connected,
            lags=[
                broker_pb2.ConsumerLag(topic=lag.topic, group=lag.group, records=lag.num_records, behind=duration(lag.behind_s))
                for lag in self._lag.lags
            ],
        )

    @guarded
    async def Explain(self, request: broker_pb2.ExplainRequest, context: Any) -> broker_pb2.ExplainResponse:
        parts = self._parts
        fields = task_fields(request, parts.settings, known(parts))
        now_s = parts.clock.now_s()
        task = make_task(parts, TaskRecord("explained", fields, now_s, now_s, has_deadline=False))
        decision: Decision | None = None
        excluded: Sequence[Exclusion] = ()
        try:
            decision = parts.engine.explain(task, parts.edges.snapshots, now_s)
            excluded = decision.excluded
        except NoCandidateError as error:
            excluded = error.excluded
        taken_s = parts.clock.now_s() - now_s
        return broker_pb2.ExplainResponse(
            chosen=decision.chosen[0] if decision else "",
            policy=parts.engine.policy_name,
            reason=decision.reason if decision else "no edge can take the task",
            candidates=[_estimate(candidate) for candidate in decision.candidates] if decision else [],
            excluded=[broker_pb2.ExcludedEdge(edge_id=edge.edge_id, reason=edge.reason) for edge in excluded],
            posterior=dict(task.posterior),
            quality_scale=parts.engine.quality_scale,
            alpha=fields.alpha,
            decision=duration(taken_s),
        )

    @guarded
    async def ScoreTask(self, request: broker_pb2.ScoreTaskRequest, context: Any) -> broker_pb2.ScoreTaskResponse:
        """The first score of a task counts; repeating it changes nothing."""
        if not math.isfinite(request.score) or not 0.0 <= request.score <= 1.0:
            raise invalid_field("score", f"{request.score}; send a number from 0 to 1")
        task = self._parts.book.finished(request.task_id)
        if task is None:
            raise not_found("task", request.task_id)
        if not task.scored and task.task_type:
            task.scored = True
            self._parts.engine.scored(task.task_type, task.version, request.score)
            self._parts.metrics.scored(task.task_type, request.score)
        return broker_pb2.ScoreTaskResponse()

    @guarded
    async def PinEdge(self, request: broker_pb2.PinEdgeRequest, context: Any) -> broker_pb2.PinEdgeResponse:
        return broker_pb2.PinEdgeResponse(version=await self._set_pinned(request.edge_id, pinned=True))

    @guarded
    async def UnpinEdge(self, request: broker_pb2.UnpinEdgeRequest, context: Any) -> broker_pb2.UnpinEdgeResponse:
        return broker_pb2.UnpinEdgeResponse(version=await self._set_pinned(request.edge_id, pinned=False))

    @guarded
    async def RollBackEdge(self, request: broker_pb2.RollBackEdgeRequest, context: Any) -> broker_pb2.RollBackEdgeResponse:
        worker = self._parts.edges.link(request.edge_id).worker
        answer = await worker.RollBack(worker_pb2.RollBackRequest(), timeout=_time_left_s(context))
        return broker_pb2.RollBackEdgeResponse(version=answer.version)

    @guarded
    async def DrainEdge(self, request: broker_pb2.DrainEdgeRequest, context: Any) -> broker_pb2.DrainEdgeResponse:
        worker = self._parts.edges.link(request.edge_id).worker
        answer = await worker.Drain(worker_pb2.DrainRequest(), timeout=_time_left_s(context))
        return broker_pb2.DrainEdgeResponse(outstanding_tasks=answer.outstanding_tasks)

    @guarded
    async def ResumeEdge(self, request: broker_pb2.ResumeEdgeRequest, context: Any) -> broker_pb2.ResumeEdgeResponse:
        worker = self._parts.edges.link(request.edge_id).worker
        answer = await worker.Resume(worker_pb2.ResumeRequest(), timeout=_time_left_s(context))
        return broker_pb2.ResumeEdgeResponse(version=answer.version)

    @guarded
    async def Join(self, request: broker_pb2.JoinRequest, context: Any) -> broker_pb2.JoinResponse:
        settings = self._parts.settings
        told = {
            "kafka_bootstrap": settings.join_kafka_bootstrap or settings.kafka_bootstrap or "",
            "redis_url": settings.join_redis_url or settings.redis_url or "",
            "merger_address": settings.join_merger_address or settings.merger_address or "",
        }
        missing = [name for name, value in told.items() if not value]
        if missing:
            message = f"this broker runs without {', '.join(missing)}, which a worker elsewhere needs; start it with them"
            raise failed_precondition("EMBEDDED", message)
        logger.info("edge %s joins", request.edge_id, extra={"edge_id": request.edge_id})
        return broker_pb2.JoinResponse(**told, base_model=self._base_model())

    async def _set_pinned(self, edge_id: str, *, pinned: bool) -> str:
        worker = self._parts.edges.link(edge_id).worker
        return (await worker.SetPinned(worker_pb2.SetPinnedRequest(pinned=pinned), timeout=COMMAND_DEADLINE_S)).version

    def _base_model(self) -> str:
        parts = self._parts
        served = next((link.entry.base_model for link in parts.edges.links if link.entry.base_model), "")
        return parts.settings.base_model or parts.knowledge.base_model or served

    def _edge(self, link: EdgeLink, snapshot: EdgeSnapshot, own_tasks: int) -> broker_pb2.Edge:
        entry = link.entry
        wait_s = self._parts.engine.wait_s(snapshot, self._parts.clock.now_s())
        return broker_pb2.Edge(
            edge_id=entry.edge_id,
            address=entry.address,
            version=entry.version,
            state=state_to_proto(snapshot.state),
            quality=dict(entry.quality),
            links=dict(entry.links),
            memory_bytes=entry.memory_bytes,
            model_bytes=entry.model_bytes,
            max_batch=entry.max_batch,
            max_queue=entry.max_queue,
            outstanding_tasks=own_tasks + snapshot.others.num_tasks,
            predicted_queue_wait=duration(wait_s),
            step_times=entry.step_times,
            speed=entry.speed,
            device=entry.device,
            pinned=entry.pinned,
            updates=entry.updates,
            mix=dict(entry.mix),
            running_tasks=link.num_running,
            queued_tasks=link.num_queued,
        )


def _estimate(candidate: Candidate) -> broker_pb2.CandidateEstimate:
    return broker_pb2.CandidateEstimate(
        edge_id=candidate.edge_id,
        version=candidate.version,
        uplink=duration(candidate.uplink_s),
        queue_wait=duration(candidate.queue_wait_s),
        inference=duration(candidate.inference_s),
        downlink=duration(candidate.downlink_s),
        completion_time=duration(candidate.completion_time_s),
        quality=candidate.quality,
        output_tokens=candidate.output_tokens,
        cost=candidate.cost,
        outstanding_tasks=candidate.outstanding.num_tasks,
    )


def _time_left_s(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    left_s = context.time_remaining()
    return COMMAND_DEADLINE_S if left_s is None else min(float(left_s), COMMAND_DEADLINE_S)
