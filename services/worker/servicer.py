"""The worker's gRPC face: InferenceService for brokers (and users near their edge), WorkerService for brokers and the controller.

Requests are checked here, before they cost anything; what serves them is the batch loop's and the updater's business.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.model.errors import PromptError
from services.model.generation import Emitted, Finished, GenTask, Started
from services.model.tokenizer import Tokenizer
from services.runtime.clock import Clock
from services.runtime.codec import duration
from services.runtime.eventlog import OutboxFullError
from services.runtime.events import EventWriter
from services.runtime.scope import within
from services.runtime.status import RpcFailure, failed_precondition, guarded, invalid_field
from services.runtime.tracing import Tracer
from services.worker.batch_loop import BatchLoop, Ticket
from services.worker.closing import CallEnd, TaskCloser
from services.worker.metrics import WorkerMetrics
from services.worker.presence import Presence
from services.worker.updates import Updater
from services.worker.watching import CallWatch

logger = logging.getLogger(__name__)

MAX_PROMPT_BYTES = 1 << 20
SLOW_PROMPT_BYTES = 16 << 10  # longer prompts are read off the event loop
MAX_ID_LENGTH = 200

LOST = {"status": "CANCELLED", "reason": "CALLER_LOST"}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a ready worker serves with."""

    edge_id: str
    vocab_size: int
    default_max_tokens: int
    max_new_tokens: int
    tokenizer: Tokenizer
    loop: BatchLoop
    updater: Updater
    presence: Presence
    events: EventWriter
    closer: TaskCloser
    metrics: WorkerMetrics
    tracer: Tracer
    clock: Clock


Ready = Callable[[], Parts]  # raises UNAVAILABLE while the worker starts


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    @guarded
    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Initial metadata says that the task is queued, `accepted` that it started, and on which version."""
        parts = self._ready()
        task_id = request.dispatch.task_id or uuid.uuid4().hex
        with within(task_id=task_id):
            async with aclosing(self._generated(parts, request, context, task_id)) as responses:
                async for response in responses:
                    yield response

    async def _generated(
        self, parts: Parts, request: inference_pb2.GenerateRequest, context: Any, task_id: str
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        dispatch = request.dispatch
        attempt = dispatch.attempt or 1
        task = await _read(parts, request, f"{task_id}:{attempt}")
        ticket = parts.loop.submit(task, dispatch.broker_id)
        watch = CallWatch(ticket, parts.metrics, parts.tracer, parts.clock)
        kind, refused = "failed", False
        fields: dict[str, Any] = dict(LOST)
        remembered = True
        try:
            await context.send_initial_metadata(())
            async for event in _events(ticket):
                watch.see(event)
                if isinstance(event, Started):
                    _write_started(parts, request, task_id, attempt, event.version, ticket)
                    accepted = inference_pb2.Accepted(task_id=task_id, edge_id=parts.edge_id, version=event.version)
                    yield inference_pb2.GenerateResponse(accepted=accepted)
                elif isinstance(event, Emitted):
                    yield inference_pb2.GenerateResponse(token=inference_pb2.Token(token_id=event.token_id, text=event.text))
                else:
                    kind, fields = "completed", _completed(ticket, event)
                    yield inference_pb2.GenerateResponse(summary=_summary(parts, request, task_id, attempt, ticket, event))
        except RpcFailure as failure:
            refused, fields = True, {"status": failure.code.name, "reason": failure.reason}
            remembered = not dispatch.broker_id
            raise
        finally:
            parts.loop.cancel(task.task_id)
            watch.ended(completed=kind == "completed", failed=refused)
            if remembered:
                fields |= {"edge_id": parts.edge_id, "user_id": request.user_id, "region": request.region, "task_type": request.task_type}
                parts.closer.ended(CallEnd(dispatch.broker_id, task_id, attempt, kind, fields))


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    @guarded
    async def GetStatus(self, request: worker_pb2.GetStatusRequest, context: Any) -> worker_pb2.GetStatusResponse:
        parts = self._ready()
        task_ids = [key.rpartition(":")[0] for key in parts.loop.task_ids]
        return worker_pb2.GetStatusResponse(
            entry=parts.presence.entry(),
            running_tasks=parts.loop.num_running,
            queued_tasks=parts.loop.num_queued,
            task_ids=task_ids,
            tasks_by_broker=parts.loop.tasks_by_broker,
        )

    @guarded
    async def LoadVersion(self, request: worker_pb2.LoadVersionRequest, context: Any) -> worker_pb2.LoadVersionResponse:
        parts = self._ready()
        if not request.version:
            raise invalid_field("version", "empty; name the version to load")
        return worker_pb2.LoadVersionResponse(report=await parts.updater.load(request.version, request.merger_address))

    @guarded
    async def SetPinned(self, request: worker_pb2.SetPinnedRequest, context: Any) -> worker_pb2.SetPinnedResponse:
        return worker_pb2.SetPinnedResponse(version=await self._ready().updater.pin(request.pinned))

    @guarded
    async def RollBack(self, request: worker_pb2.RollBackRequest, context: Any) -> worker_pb2.RollBackResponse:
        return worker_pb2.RollBackResponse(version=await self._ready().updater.roll_back())

    @guarded
    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        parts = self._ready()
        parts.loop.drain()
        parts.presence.draining = True
        parts.updater.changed.set()
        return worker_pb2.DrainResponse(outstanding_tasks=len(parts.loop.task_ids))

    @guarded
    async def Resume(self, request: worker_pb2.ResumeRequest, context: Any) -> worker_pb2.ResumeResponse:
        parts = self._ready()
        parts.loop.resume()
        parts.presence.draining = False
        parts.updater.changed.set()
        return worker_pb2.ResumeResponse(version=parts.updater.present.version)


async def _events(ticket: Ticket) -> AsyncIterator[Started | Emitted | Finished]:
    """The events of a task to its end; raises the failure that ends it otherwise."""
    while True:
        event = await ticket.events.get()
        if isinstance(event, RpcFailure):
            raise event
        yield event
        if isinstance(event, Finished):
            return


async def _read(parts: Parts, request: inference_pb2.GenerateRequest, key: str) -> GenTask:
    """The task of a request, or the failure that names the field and the cure."""
    dispatch = request.dispatch
    max_tokens = request.max_tokens or parts.default_max_tokens
    if max_tokens > parts.max_new_tokens:
        raise invalid_field("max_tokens", f"{max_tokens} is too many; at most {parts.max_new_tokens} are generated here")
    if len(dispatch.task_id) > MAX_ID_LENGTH or len(dispatch.broker_id) > MAX_ID_LENGTH:
        raise invalid_field("dispatch", f"ids have at most {MAX_ID_LENGTH} characters")
    if dispatch.emitted_token_ids and not dispatch.required_version:
        raise invalid_field("dispatch.required_version", "missing; emitted tokens can only be continued by the version that made them")
    if any(token >= parts.vocab_size for token in dispatch.emitted_token_ids):
        raise invalid_field("dispatch.emitted_token_ids", f"token ids are below {parts.vocab_size}")
    if dispatch.required_version and dispatch.required_version not in (*parts.loop.versions, parts.loop.version):
        message = f"required_version: {dispatch.required_version} is not served here; serving {parts.loop.version}"
        raise failed_precondition("VERSION_MISMATCH", message)
    prompt_ids = await _tokens(parts.tokenizer, request.prompt)
    return GenTask(key, prompt_ids, max_tokens, tuple(dispatch.emitted_token_ids), dispatch.required_version or None, request.region)


async def _tokens(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    size_bytes = len(prompt.encode())
    if not prompt.strip():
        raise invalid_field("prompt", "empty; send at least one word")
    if size_bytes > MAX_PROMPT_BYTES:
        raise _too_long(f"prompt: {size_bytes} bytes, at most {MAX_PROMPT_BYTES} are taken; shorten it")
    try:
        if size_bytes > SLOW_PROMPT_BYTES:
            return tuple(await asyncio.to_thread(tokenizer.encode, prompt))
        return tuple(tokenizer.encode(prompt))
    except PromptError as error:
        raise _too_long(str(error)) from error


def _too_long(message: str) -> RpcFailure:
    return RpcFailure(grpc.StatusCode.OUT_OF_RANGE, "PROMPT_TOO_LONG", message, field="prompt")


def _write_started(parts: Parts, request: inference_pb2.GenerateRequest, task_id: str, attempt: int, version: str, ticket: Ticket) -> None:
    """A full outbox costs the event, not the task."""
    try:
        parts.events.task(
            "started",
            task_id,
            attempt,
            edge_id=parts.edge_id,
            version=version,
            user_id=request.user_id,
            region=request.region,
            task_type=request.task_type,
            prompt_tokens=len(ticket.task.prompt_ids),
            queue_wait=ticket.queue_wait_s,
        )
    except OutboxFullError:
        logger.error("outbox full: the start of task %s was not written", task_id, extra={"task_id": task_id})


def _completed(ticket: Ticket, finished: Finished) -> dict[str, Any]:
    return {
        "version": finished.version,
        "prompt_tokens": finished.prompt_tokens,
        "output_tokens": finished.output_tokens,
        "queue_wait": ticket.queue_wait_s,
        "inference": ticket.inference_s,
        "completion_time": ticket.queue_wait_s + ticket.inference_s,
    }


def _summary(
    parts: Parts, request: inference_pb2.GenerateRequest, task_id: str, attempt: int, ticket: Ticket, finished: Finished
) -> inference_pb2.Summary:
    reason = inference_pb2.FINISH_REASON_STOP if finished.stopped else inference_pb2.FINISH_REASON_LENGTH
    timings = inference_pb2.Timings(
        queue_wait=duration(ticket.queue_wait_s),
        inference=duration(ticket.inference_s),
        completion_time=duration(ticket.queue_wait_s + ticket.inference_s),
    )
    return inference_pb2.Summary(
        task_id=task_id,
        edge_id=parts.edge_id,
        version=finished.version,
        attempts=attempt,
        text=finished.text,
        finish_reason=reason,
        prompt_tokens=finished.prompt_tokens,
        output_tokens=finished.output_tokens,
        timings=timings,
        task_type=request.task_type,
    )
