"""The worker's heart: drives a `BatchEngine` on its own thread, turn by turn, and hands each task its events.

All calls to the engine are made by that thread, at step boundaries; the event loop never waits for a tensor. Says no when the queue is
full. Knows nothing of gRPC messages, Kafka or where models come from.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from services.core.admission import Admission
from services.model.generation import BatchEngine, Finished, GenEvent, GenTask, Started, StepTiming, VersionGoneError
from services.runtime.clock import Clock
from services.runtime.status import RpcFailure, draining, failed_precondition, internal, queue_full
from services.worker.emulation import Device
from services.worker.step_times import StepTimesFit

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

LEAST_WAIT_S = 0.0005  # shorter waits of an emulated slow device are saved up
MAX_FAILED_STEPS = 3  # failed steps in a row after which the worker gives up


@dataclass(slots=True)
class Ticket:
    """One task in this worker from acceptance on. `events` ends with a `Finished` or a failure; at most max_tokens + 2 are ever in it."""

    task: GenTask
    accepted_at_s: float
    broker_id: str = ""
    events: asyncio.Queue[GenEvent | RpcFailure] = field(default_factory=asyncio.Queue)
    started_at_s: float | None = None
    ended_at_s: float | None = None

    @property
    def queue_wait_s(self) -> float:
        return 0.0 if self.started_at_s is None else self.started_at_s - self.accepted_at_s

    @property
    def inference_s(self) -> float:
        return 0.0 if self.started_at_s is None or self.ended_at_s is None else self.ended_at_s - self.started_at_s


@dataclass(slots=True)
class StallWatch:
    """The longest time that tasks waited for the batch loop while nothing was computed for them."""

    longest_s: float = 0.0

    def see(self, gap_s: float) -> None:
        self.longest_s = max(self.longest_s, gap_s)


@dataclass(slots=True)
class _Turn:
    events: list[GenEvent]
    gone: list[tuple[str, str]]  # (task id, why) of tasks whose version is no longer held
    timing: StepTiming
    actions_s: float
    step_at_s: float
    versions: tuple[str, ...]


class BatchLoop:
    def __init__(
        self, engine: BatchEngine, clock: Clock, executor: ThreadPoolExecutor, *, max_batch: int, max_queue: int, device: Device
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._executor = executor
        self._max_tasks = max_batch + max_queue
        self._device = device
        self._owed_s = 0.0
        self._admission = Admission()
        self._tickets: dict[str, Ticket] = {}
        self._submitted: list[GenTask] = []
        self._cancelled: list[str] = []
        self._actions: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._turn_ended_at_s = clock.now_s()
        self._busy = False
        self._watches: list[StallWatch] = []
        self._draining = False
        self._versions = engine.versions
        self.step_times = StepTimesFit()

    @property
    def version(self) -> str:
        """What new tasks run on."""
        return self._engine.version

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version held after the last turn."""
        return self._versions

    @property
    def num_running(self) -> int:
        return sum(ticket.started_at_s is not None for ticket in self._tickets.values())

    @property
    def num_queued(self) -> int:
        return len(self._tickets) - self.num_running

    @property
    def task_ids(self) -> list[str]:
        return sorted(self._tickets)

    @property
    def tasks_by_broker(self) -> dict[str, int]:
        return dict(sorted(Counter(ticket.broker_id for ticket in self._tickets.values()).items()))

    @property
    def step_age_s(self) -> float:
        """How long the present turn has lasted; 0 while there is nothing to do."""
        return self._clock.now_s() - self._turn_ended_at_s if self._busy else 0.0

    # Called on the event loop

    def submit(self, task: GenTask, broker_id: str = "") -> Ticket:
        if self._draining:
            raise draining()
        if len(self._tickets) >= self._max_tasks:
            base_s, row_s = self.step_times.step.line()
            raise queue_full("queue: full; try again later or elsewhere", retry_after_s=max(0.1, 10 * (base_s + row_s)))
        if task.task_id in self._tickets:
            raise failed_precondition("DUPLICATE_TASK", "dispatch.task_id: this attempt of the task runs here already")
        ticket = Ticket(task, self._clock.now_s(), broker_id)
        self._tickets[task.task_id] = ticket
        self._submitted.append(task)
        self._wake.set()
        return ticket

    def cancel(self, task_id: str) -> None:
        """Forget the task now; its computing stops at the next step boundary."""
        if self._tickets.pop(task_id, None) is not None:
            self._cancelled.append(task_id)
            self._wake.set()

    async def at_boundary(self, action: Callable[[BatchEngine], ResultT]) -> ResultT:
        """Run `action` on the batch thread between two steps; its result or exception comes back here."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ResultT] = loop.create_future()

        def run() -> None:
            try:
                result = action(self._engine)
            except Exception as error:  # belongs to the caller, not to the batch
                loop.call_soon_threadsafe(_settle, done, None, error)
            else:
                loop.call_soon_threadsafe(_settle, done, result, None)

        self._actions.append(run)
        self._wake.set()
        return await done

    async def until(self, condition: Callable[[BatchEngine], bool]) -> None:
        """Wait for a step boundary at which `condition` holds."""
        while not await self.at_boundary(condition):
            pass

    async def next_turn(self) -> None:
        """Wait for the end of the present turn, or of the next where none runs."""
        self._changed.clear()
        self._wake.set()
        await self._changed.wait()

    async def empty(self) -> None:
        """Admit no task, let those that run finish, then let go of every model; `BatchEngine.install` and `resume` end this state."""
        await self.at_boundary(BatchEngine.hold)
        await self.until(lambda engine: engine.num_running == 0)
        for task_id in await self.at_boundary(BatchEngine.unload):
            self._fail(task_id, failed_precondition("VERSION_MISMATCH", "required_version: its model was let go for an update"))

    @contextmanager
    def watching(self) -> Iterator[StallWatch]:
        watch = StallWatch()
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    def drain(self) -> None:
        """Take no new tasks; those accepted finish."""
        self._draining = True

    def resume(self) -> None:
        """Take tasks again after `drain`."""
        self._draining = False

    async def drained(self) -> None:
        while self._tickets:
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Turns for ever. Ends only by cancellation, or by the error of the last of several failed steps in a row."""
        num_failed = 0
        while True:
            if not (self._submitted or self._cancelled or self._actions or self._engine.has_work):
                self._busy = False
                self._wake.clear()
                await self._wake.wait()
            self._wake.clear()
            try:
                await self._run_turn()
                num_failed = 0
            except Exception:  # supervised: the batch is dropped, the queue goes on
                num_failed += 1
                logger.exception("step failed (%d in a row); its tasks are dropped", num_failed)
                await self._drop_batch()
                if num_failed >= MAX_FAILED_STEPS:
                    raise
            self._changed.set()

    # One turn

    async def _run_turn(self) -> None:
        submitted, self._submitted = self._submitted, []
        cancelled, self._cancelled = self._cancelled, []
        actions, self._actions = self._actions, []
        was_busy, self._busy = self._busy, True
        began_at_s = self._clock.now_s()
        if not was_busy:
            self._turn_ended_at_s = began_at_s
        loop = asyncio.get_running_loop()
        turn = await loop.run_in_executor(self._executor, self._turn, submitted, cancelled, actions)
        await self._emulate(turn)
        ended_at_s = self._clock.now_s()
        for watch in self._watches:
            watch.see(turn.step_at_s - self._turn_ended_at_s if was_busy else turn.actions_s)
        self._turn_ended_at_s = ended_at_s
        self._versions = turn.versions
        self._learn(turn, ended_at_s)
        for event in turn.events:
            self._deliver(event, turn.step_at_s, ended_at_s)
        for task_id, why in turn.gone:
            self._fail(task_id, failed_precondition("VERSION_MISMATCH", why))

    def _turn(self, submitted: list[GenTask], cancelled: list[str], actions: list[Callable[[], None]]) -> _Turn:
        """On the batch thread."""
        gone = []
        entered_at_s = self._clock.now_s()
        for task in submitted:
            try:
                self._engine.submit(task)
            except VersionGoneError as error:
                gone.append((task.task_id, str(error)))
        for task_id in cancelled:
            self._engine.cancel(task_id)
        for action in actions:
            action()
        step_at_s = self._clock.now_s()
        if not self._engine.has_work:
            return _Turn([], gone, StepTiming(), step_at_s - entered_at_s, step_at_s, self._engine.versions)
        prefill_base_s, _ = self.step_times.prefill.line()
        admits = self._admission.admits(self._engine.num_admissible, self._engine.num_running, prefill_base_s, step_at_s)
        events = self._engine.step(admits)
        return _Turn(events, gone, self._engine.timing, step_at_s - entered_at_s, step_at_s, self._engine.versions)

    async def _emulate(self, turn: _Turn) -> None:
        """A device of speed 0.5 takes twice as long: wait for the other half. What a wait overshoots is taken off the next."""
        furthest_s = max(5 * LEAST_WAIT_S, self._device.most_behind_s)
        self._owed_s += self._device.owed_s(turn.timing, self._clock.now_s() - turn.step_at_s)
        self._owed_s = max(self._owed_s, -furthest_s)
        if self._owed_s >= LEAST_WAIT_S:
            began_at_s = self._clock.now_s()
            await self._clock.sleep(self._owed_s)
            self._owed_s = max(-furthest_s, self._owed_s - (self._clock.now_s() - began_at_s))

    def _learn(self, turn: _Turn, ended_at_s: float) -> None:
        timing = turn.timing
        if timing.num_versions != 1:
            return
        prefill_s = self._device.prefill_s(timing.prefill_tokens, timing.prefill_s) if timing.num_prompts else 0.0
        if timing.num_prompts:
            self.step_times.prefill.observe(timing.prefill_tokens, prefill_s)
        self.step_times.step.observe(timing.num_rows, max(0.0, ended_at_s - turn.step_at_s - prefill_s))

    def _deliver(self, event: GenEvent, step_at_s: float, ended_at_s: float) -> None:
        ticket = self._tickets.get(event.task_id)
        if ticket is None:
            return
        if isinstance(event, Started):
            ticket.started_at_s = step_at_s
        elif isinstance(event, Finished):
            ticket.ended_at_s = ended_at_s
            del self._tickets[event.task_id]
        ticket.events.put_nowait(event)

    def _fail(self, task_id: str, failure: RpcFailure) -> None:
        ticket = self._tickets.pop(task_id, None)
        if ticket is not None:
            ticket.ended_at_s = self._clock.now_s()
            ticket.events.put_nowait(failure)

    async def _drop_batch(self) -> None:
        loop = asyncio.get_running_loop()
        for key in await loop.run_in_executor(self._executor, self._engine.abandon):
            request_id = uuid.uuid4().hex
            task_id = key.rpartition(":")[0] or key
            logger.error("task %s ended with its step", task_id, extra={"task_id": task_id, "request_id": request_id})
            self._fail(key, internal(request_id))

    def fail_all(self, failure: RpcFailure) -> None:
        """End every task still here, at a shutdown whose grace is over."""
        for task_id in list(self._tickets):
            self._fail(task_id, failure)
            self._cancelled.append(task_id)


def _settle(done: asyncio.Future[ResultT], result: ResultT | None, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)  # type: ignore[arg-type]
