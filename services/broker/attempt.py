"""One attempt of a task at one edge: sends it, passes the tokens on, tells how it ended. What follows is the dispatcher's decision."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc
import grpc.aio

from moedge.v1 import inference_pb2
from services.broker.edges import EdgeLink
from services.broker.tasks import TaskRecord
from services.core.offload.engine import OffloadEngine
from services.core.offload.estimator import OUTPUT_BYTES_PER_TOKEN
from services.core.offload.values import Candidate, Link, Task
from services.runtime.clock import Clock
from services.runtime.codec import duration
from services.runtime.net import open_stream
from services.runtime.scope import outgoing
from services.runtime.status import RpcFailure, failure_of


def deadline_passed() -> RpcFailure:
    return RpcFailure(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", "the deadline passed")


class EdgeLostError(Exception):
    """The attempt ended without a result, and another edge may still give one."""

    def __init__(self, failure: RpcFailure, *, dead: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.dead = dead  # the connection failed: no other task should go there either


class VersionGoneError(Exception):
    """The edge no longer serves the version that the tokens streamed so far came from."""


@dataclass(slots=True)
class Progress:
    """What a task has come to over all its attempts."""

    task: Task
    record: TaskRecord
    num_attempts: int = 0
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    version: str = ""  # that the tokens came from
    accepted: bool = False  # the user was told which edge serves the task
    resumed: bool = False
    restart_reason: str = ""  # why the streamed tokens cannot be gone on from
    candidate: Candidate | None = None  # of the present attempt
    decision_s: float = 0.0

    def discard(self) -> None:
        self.token_ids.clear()
        self.texts.clear()
        self.version, self.resumed, self.restart_reason = "", False, ""


class Attempt:
    """`link` is the way between this task's user and the edge, None where none is described or emulated."""

    def __init__(
        self, progress: Progress, edge: EdgeLink, link: Link | None, engine: OffloadEngine, clock: Clock, broker_id: str, margin_s: float
    ) -> None:
        self._progress = progress
        self._edge = edge
        self._link = link
        self._engine = engine
        self._clock = clock
        self._broker_id = broker_id
        self._margin_s = margin_s
        self._tokens_before = len(progress.token_ids)
        self.uplink_s = 0.0

    async def travel(self) -> None:
        """The prompt's way to the edge. Raises `EdgeLostError` or the deadline's failure where going on is pointless."""
        link, num_bytes = self._link, self._progress.task.prompt_bytes
        travel_s = 0.0 if link is None else link.latency_s + num_bytes * link.uplink_s_per_byte
        if travel_s > 0.0:
            began_at_s = self._clock.now_s()
            await self._clock.sleep(travel_s)
            self.uplink_s = self._clock.now_s() - began_at_s
        if self._left_s() <= 0.0:
            raise deadline_passed()
        if not self._edge.reachable:
            raise self._unreachable()

    async def run(self) -> inference_pb2.Summary:
        """The worker's summary. Raises `EdgeLostError`, `VersionGoneError`, or the failure that ends the task."""
        try:
            return await self._stream()
        except grpc.aio.AioRpcError as error:
            self._fail(failure_of(error))
        except grpc.aio.UsageError as error:  # the channel was closed: the edge left
            raise self._unreachable() from error
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            raise self._unreachable() from None
        raise EdgeLostError(RpcFailure(grpc.StatusCode.UNAVAILABLE, "NO_SUMMARY", "the edge ended the stream early"), dead=False)

    def downlink_s(self, num_bytes: float) -> float:
        link = self._link
        if link is None:
            return 0.0
        return link.latency_s + num_bytes * link.downlink_s_per_byte

    def _left_s(self) -> float:
        return self._progress.record.deadline_at_s - self._clock.now_s() - self._margin_s

    async def _stream(self) -> inference_pb2.Summary:
        summary: inference_pb2.Summary | None = None
        call = self._edge.inference.Generate(self._request(), timeout=self._left_s(), metadata=outgoing())
        with self._edge.calling(call):
            async with open_stream(call) as responses:
                async for response in responses:
                    event = response.WhichOneof("event")
                    if event == "token":
                        self._token(response.token)
                    elif event == "accepted":
                        self._accepted(response.accepted)
                    elif event == "summary":
                        summary = response.summary
        if summary is None:
            raise EdgeLostError(RpcFailure(grpc.StatusCode.UNAVAILABLE, "NO_SUMMARY", "the edge ended the stream early"), dead=False)
        return summary

    def _request(self) -> inference_pb2.GenerateRequest:
        progress, fields = self._progress, self._progress.record.fields
        dispatch = inference_pb2.Dispatch(
            task_id=progress.task.task_id,
            broker_id=self._broker_id,
            attempt=progress.num_attempts,
            emitted_token_ids=progress.token_ids,
            required_version=progress.version if progress.token_ids else "",
        )
        return inference_pb2.GenerateRequest(
            prompt=fields.prompt,
            max_tokens=fields.max_tokens,
            user_id=fields.user_id,
            region=fields.region,
            task_type=progress.record.task_type,
            alpha=fields.alpha,
            dispatch=dispatch,
        )

    def _accepted(self, accepted: inference_pb2.Accepted) -> None:
        """The worker began the task, on this version to the end."""
        progress, now_s = self._progress, self._clock.now_s()
        self._engine.started(progress.task.task_id, now_s)
        progress.version = accepted.version or progress.version
        if progress.accepted:
            return
        progress.accepted = True
        candidate = progress.candidate
        assert candidate is not None
        told = inference_pb2.Accepted(
            task_id=progress.task.task_id,
            edge_id=self._edge.edge_id,
            version=progress.version,
            predicted_queue_wait=duration(candidate.queue_wait_s),
            predicted_completion_time=duration(candidate.completion_time_s),
            predicted_quality=candidate.quality,
        )
        progress.record.add(inference_pb2.GenerateResponse(accepted=told), now_s + self.downlink_s(0.0))

    def _token(self, token: inference_pb2.Token) -> None:
        progress, now_s = self._progress, self._clock.now_s()
        progress.token_ids.append(token.token_id)
        progress.texts.append(token.text)
        self._engine.progressed(progress.task.task_id, len(progress.token_ids) - self._tokens_before, now_s)
        progress.record.add(inference_pb2.GenerateResponse(token=token), now_s + self.downlink_s(OUTPUT_BYTES_PER_TOKEN))

    def _fail(self, failure: RpcFailure) -> None:
        """Which ends are worth another edge: those that say something about this edge, not about the task."""
        code = failure.code
        if code is grpc.StatusCode.FAILED_PRECONDITION and self._tokens_before:
            raise VersionGoneError from failure
        if code is grpc.StatusCode.UNAVAILABLE:
            raise EdgeLostError(failure, dead=failure.reason == "TRANSPORT") from failure
        if code in _ELSEWHERE:
            raise EdgeLostError(failure, dead=False) from failure
        raise deadline_passed() if code is grpc.StatusCode.DEADLINE_EXCEEDED else failure

    def _unreachable(self) -> EdgeLostError:
        return EdgeLostError(RpcFailure(grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", "the edge became unreachable"), dead=True)


_ELSEWHERE = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


def _being_cancelled() -> bool:
    """Whether this task itself was cancelled, or only the call that it was reading (an ejected edge's calls are)."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
