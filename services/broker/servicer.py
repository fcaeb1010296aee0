"""The broker's InferenceService: checks a request, admits the task, and lets the user follow it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.broker.dispatcher import Dispatcher, Parts
from services.broker.tasks import TaskRecord
from services.broker.validation import Known, TaskFields, task_fields
from services.runtime.status import RpcFailure, draining, guarded, queue_full

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`spawn` gives a running task to the service, so that it outlives a call that others follow too."""

    def __init__(self, parts: Parts, dispatcher: Dispatcher, spawn: Spawn) -> None:
        self._parts = parts
        self._dispatcher = dispatcher
        self._spawn = spawn
        self.draining = False

    @guarded
    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        parts = self._parts
        try:
            fields = task_fields(request, parts.settings, known(parts))
            record = parts.book.repeated(fields) or self._admit(fields, context.time_remaining())
        except RpcFailure as failure:
            parts.metrics.rejected(failure.reason)
            raise
        with parts.book.following(record):
            async for response in record.follow(parts.clock):
                yield response

    def _admit(self, fields: TaskFields, time_remaining_s: float | None) -> TaskRecord:
        parts = self._parts
        if self.draining:
            raise draining()
        if parts.book.num_running >= parts.settings.max_tasks:
            raise queue_full(f"{parts.settings.max_tasks} tasks are in flight through this broker; try again later")
        now_s = parts.clock.now_s()
        has_deadline = time_remaining_s is not None
        deadline_at_s = now_s + (time_remaining_s if time_remaining_s is not None else parts.settings.default_deadline_s)
        record = TaskRecord(uuid.uuid4().hex, fields, now_s, deadline_at_s, has_deadline)
        parts.book.admit(record)
        record.runner = self._spawn(self._dispatcher.run(record))
        record.runner.add_done_callback(lambda _: self._dispatcher.over(record))
        return record


def known(parts: Parts) -> Known:
    return Known(parts.edges.snapshots, parts.knowledge.task_types, parts.edges.max_new_tokens)
