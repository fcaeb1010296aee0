"""The tasks a broker knows: running ones, and finished ones for a while. Holds what users follow; runs nothing.

A record keeps all that was streamed, so that a repeated call with the same idempotency key is told the same task from its beginning.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from moedge.v1.inference_pb2 import GenerateResponse
from services.broker.validation import TaskFields
from services.runtime.clock import Clock
from services.runtime.status import RpcFailure, invalid_field


@dataclass(slots=True)
class TaskRecord:
    """One task as its users see it. Ended when `failure` is set or the last response was added."""

    task_id: str
    fields: TaskFields
    arrived_at_s: float
    deadline_at_s: float
    has_deadline: bool  # whether the user set it, or it is the broker's default
    runner: asyncio.Task[None] | None = None
    responses: list[tuple[float, GenerateResponse]] = field(default_factory=list)  # with the instant the user may see it
    failure: RpcFailure | None = None
    ended: bool = False
    num_followers: int = 0
    task_type: str = ""
    version: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _packed: tuple[tuple[float, bytes], ...] = ()  # responses while nobody follows any more

    def add(self, response: GenerateResponse, visible_at_s: float) -> float:
        """Append; responses become visible in order. Returns when this one does."""
        if self.responses:
            visible_at_s = max(visible_at_s, self.responses[-1][0])
        self.responses.append((visible_at_s, response))
        self._changed.set()
        return visible_at_s

    def end(self, failure: RpcFailure | None = None) -> None:
        """The first end counts."""
        if not self.ended:
            self.ended, self.failure = True, failure
            self._changed.set()

    def pack(self) -> None:
        """Keep the responses of an ended task as bytes: thousands of messages would have the garbage collector look at each."""
        self._packed = tuple((visible_at_s, response.SerializeToString()) for visible_at_s, response in self.responses)
        self.responses = []

    def unpack(self) -> None:
        if self._packed:
            self.responses = [(visible_at_s, GenerateResponse.FromString(response)) for visible_at_s, response in self._packed]
            self._packed = ()

    async def follow(self, clock: Clock) -> AsyncIterator[GenerateResponse]:
        """Everything from the beginning; raises the failure that the task ended in."""
        position = 0
        while True:
            while position < len(self.responses):
                visible_at_s, response = self.responses[position]
                if (wait_s := visible_at_s - clock.now_s()) > 0.0:
                    await clock.sleep(wait_s)
                yield response
                position += 1
            if self.ended:
                if self.failure is not None:
                    raise self.failure
                return
            self._changed.clear()  # whoever waits already was woken by the last change
            await self._changed.wait()


@dataclass(slots=True)
class FinishedTask:
    """What a score needs of a completed task. Thousands are kept, so each is one small object: the garbage collector, which halts every
    task, looks at all of them."""

    ended_at_s: float
    task_type: str
    version: str
    key: tuple[str, str]
    scored: bool = False


class TaskBook:
    def __init__(self, clock: Clock, retention_s: float, retained_tasks: int) -> None:
        self._clock = clock
        self._retention_s = retention_s
        self._retained_tasks = retained_tasks
        self._running: dict[str, TaskRecord] = {}
        self._finished: OrderedDict[str, FinishedTask] = OrderedDict()
        self._by_key: dict[tuple[str, str], TaskRecord] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running(self) -> tuple[TaskRecord, ...]:
        return tuple(self._running.values())

    def repeated(self, fields: TaskFields) -> TaskRecord | None:
        """The task that this user's idempotency key already stands for."""
        record = self._by_key.get((fields.user_id, fields.idempotency_key)) if fields.idempotency_key else None
        if record is not None and record.fields.digest != fields.digest:
            raise invalid_field("idempotency_key", "was used for another task; use a new one")
        return record

    def admit(self, record: TaskRecord) -> None:
        self._running[record.task_id] = record
        self._idle.clear()
        if record.fields.idempotency_key:
            self._by_key[(record.fields.user_id, record.fields.idempotency_key)] = record

    def closed(self, record: TaskRecord) -> None:
        """The task is over. A failed one gives its key back, so that a retry is a new task."""
        if self._running.pop(record.task_id, None) is None:
            return
        record.runner = None
        if not self._running:
            self._idle.set()
        key = (record.fields.user_id, record.fields.idempotency_key)
        if record.failure is not None:
            self._release(key, record.task_id)
            return
        self._finished[record.task_id] = FinishedTask(self._clock.now_s(), record.task_type, record.version, key)
        self._expire()

    def finished(self, task_id: str) -> FinishedTask | None:
        self._expire()
        return self._finished.get(task_id)

    async def idle(self) -> None:
        """Wait for the last running task to end."""
        await self._idle.wait()

    @contextmanager
    def following(self, record: TaskRecord) -> Iterator[None]:
        """When the last follower leaves a task that is not over, it is cancelled."""
        record.num_followers += 1
        record.unpack()
        try:
            yield
        finally:
            record.num_followers -= 1
            if record.num_followers == 0 and not record.ended and record.runner is not None:
                record.runner.cancel()
            elif record.num_followers == 0 and record.fields.idempotency_key:
                record.pack()
            elif record.num_followers == 0:
                record.responses.clear()  # nobody can ask for them again

    def _expire(self) -> None:
        now_s = self._clock.now_s()
        while self._finished:
            task_id, oldest = next(iter(self._finished.items()))
            if len(self._finished) <= self._retained_tasks and now_s - oldest.ended_at_s <= self._retention_s:
                return
            del self._finished[task_id]
            self._release(oldest.key, task_id)

    def _release(self, key: tuple[str, str], task_id: str) -> None:
        known = self._by_key.get(key)
        if known is not None and known.task_id == task_id:
            del self._by_key[key]
