"""One task over the wire: sends it, reads its stream to the end, scores the answer, says how it ended. No pacing and no totals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from loadgen.options import ReplayOptions
from loadgen.results import Finished, Outcome
from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc
from services.core.workload.load import PlannedTask
from services.runtime.clock import Clock
from services.runtime.codec import seconds
from services.runtime.net import open_stream
from services.runtime.status import RpcFailure, failure_of
from services.tasks.scoring import Scorer
from services.tasks.values import TaskItem

SCORE_DEADLINE_S = 5.0
RETRY_AFTER_S = 0.5
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
_REFUSAL_REASONS = frozenset({"PREDICTED_LATE", "NO_EDGE"})  # with codes that a transport can give as well
_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED})


@dataclass(slots=True)
class _Stream:
    """What has been read of one answer."""

    accepted: inference_pb2.Accepted | None = None
    summary: inference_pb2.Summary | None = None
    first_token_at_s: float | None = None
    restarts: int = 0
    token_ids: list[int] = field(default_factory=list)

    def take(self, response: inference_pb2.GenerateResponse, now_s: float) -> None:
        event = response.WhichOneof("event")
        if event == "token":
            if self.first_token_at_s is None:
                self.first_token_at_s = now_s
            self.token_ids.append(response.token.token_id)
        elif event == "accepted":
            self.accepted = response.accepted
        elif event == "restarted":
            self.restarts += 1
            self.token_ids.clear()
            self.first_token_at_s = None
        elif event == "summary":
            self.summary = response.summary

    @property
    def tokens_sha(self) -> str:
        return hashlib.sha256(",".join(map(str, self.token_ids)).encode()).hexdigest()[:16] if self.token_ids else ""


class Exchange:
    """Asks one broker. `now_s` counts from the start of the plan."""

    def __init__(self, channel: grpc.aio.Channel, run_id: str, options: ReplayOptions, clock: Clock, now_s: Callable[[], float]) -> None:
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self._broker = broker_pb2_grpc.BrokerServiceStub(channel)
        self._run_id = run_id
        self._options = options
        self._clock = clock
        self._now_s = now_s

    async def run(self, planned: PlannedTask, item: TaskItem, scorer: Scorer, sent_at_s: float) -> Finished:
        """The task's one terminal record; never raises for what the broker or the transport does."""
        deadline_at_s = sent_at_s + self._options.deadline_s
        for attempt in range(self._options.retries + 1):
            stream = _Stream()
            try:
                await self._read(self._request(planned, item, attempt), deadline_at_s - self._now_s(), stream)
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
            else:
                if stream.summary is not None:
                    return self._completed(planned, item, scorer, sent_at_s, stream)
                failure = RpcFailure(grpc.StatusCode.UNKNOWN, "NO_SUMMARY", "the stream ended without a summary")
            wait_s = failure.retry_after_s or RETRY_AFTER_S
            if not _may_be_retried(failure, stream) or self._now_s() + wait_s >= deadline_at_s:
                break
            if attempt < self._options.retries:
                await self._clock.sleep(wait_s)
        return self._ended(planned, sent_at_s, stream, failure)

    async def score(self, record: Finished) -> bool:
        """Send a completed task's score back; False when the broker would not have it."""
        request = broker_pb2.ScoreTaskRequest(task_id=record.served_id, score=record.score or 0.0)
        try:
            await self._broker.ScoreTask(request, timeout=SCORE_DEADLINE_S)
        except grpc.aio.AioRpcError:
            return False
        return True

    def _request(self, planned: PlannedTask, item: TaskItem, attempt: int) -> inference_pb2.GenerateRequest:
        return inference_pb2.GenerateRequest(
            prompt=item.prompt,
            max_tokens=self._options.max_tokens,
            user_id=planned.user_id,
            region=planned.region,
            task_type=planned.task_type if self._options.send_task_type else "",
            alpha=planned.alpha,
            idempotency_key=f"{self._run_id}:{planned.task_id}:{attempt}",
        )

    async def _read(self, request: inference_pb2.GenerateRequest, timeout_s: float, into: _Stream) -> None:
        async with open_stream(self._inference.Generate(request, timeout=max(timeout_s, 0.001))) as responses:
            async for response in responses:
                into.take(response, self._now_s())

    def _completed(self, planned: PlannedTask, item: TaskItem, scorer: Scorer, sent_at_s: float, stream: _Stream) -> Finished:
        end_at_s = self._now_s()
        summary = stream.summary or inference_pb2.Summary()
        accepted = stream.accepted or inference_pb2.Accepted()
        timings = summary.timings
        return Finished(
            task_id=planned.task_id,
            user_id=planned.user_id,
            region=planned.region,
            task_type=planned.task_type,
            item_id=planned.item_id,
            alpha=planned.alpha,
            intended_at_s=planned.at_s,
            sent_at_s=sent_at_s,
            end_at_s=end_at_s,
            outcome=Outcome.COMPLETED,
            first_token_at_s=stream.first_token_at_s,
            served_id=summary.task_id,
            edge_id=summary.edge_id,
            version=summary.version,
            attempts=summary.attempts,
            restarts=stream.restarts,
            prompt_bytes=len(item.prompt.encode()),
            prompt_tokens=summary.prompt_tokens,
            output_tokens=summary.output_tokens,
            tokens_sha=stream.tokens_sha,
            score=scorer(summary.text, item.references),
            predicted_quality=accepted.predicted_quality,
            predicted_queue_wait_s=seconds(timings.predicted_queue_wait),
            predicted_completion_time_s=seconds(timings.predicted_completion_time),
            queue_wait_s=seconds(timings.queue_wait),
            inference_s=seconds(timings.inference),
            completion_time_s=seconds(timings.completion_time),
            decision_s=seconds(timings.decision),
        )

    def _ended(self, planned: PlannedTask, sent_at_s: float, stream: _Stream, failure: RpcFailure) -> Finished:
        accepted = stream.accepted or inference_pb2.Accepted()
        refused = stream.accepted is None and (failure.code in _REFUSALS or failure.reason in _REFUSAL_REASONS)
        return Finished(
            task_id=planned.task_id,
            user_id=planned.user_id,
            region=planned.region,
            task_type=planned.task_type,
            item_id=planned.item_id,
            alpha=planned.alpha,
            intended_at_s=planned.at_s,
            sent_at_s=sent_at_s,
            end_at_s=self._now_s(),
            outcome=Outcome.REJECTED if refused else Outcome.FAILED,
            status=failure.code.name,
            reason=failure.reason,
            message=failure.message,
            first_token_at_s=stream.first_token_at_s,
            served_id=accepted.task_id,
            edge_id=accepted.edge_id,
            version=accepted.version,
            restarts=stream.restarts,
        )


def _may_be_retried(failure: RpcFailure, stream: _Stream) -> bool:
    """gRPC resets, as CANCELLED, a call that reaches a broker in the very moment in which it stops listening: nothing was begun."""
    cut = failure.code is grpc.StatusCode.CANCELLED and failure.reason == "TRANSPORT" and stream.accepted is None
    return cut or failure.code in _RETRYABLE
