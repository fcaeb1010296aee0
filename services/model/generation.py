"""Continuous batching over a `MoeModel`: slots, admission at step boundaries, greedy decoding with early stop, two versions side by side.

Synchronous, for one thread. It knows no network, no queue limit and no deadline; `cancel` between two steps is how tasks end early.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.core.merging.values import Counts
from services.model.errors import ModelError
from services.model.families.base import Cache, ModelShape, MoeModel, Recorder


class VersionGoneError(ModelError):
    """A task that has to go on with a model version which is no longer held."""


class TokenText(Protocol):
    """The part of a tokenizer that generation needs."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def delta(self, ids_so_far: Sequence[int], new_id: int) -> str: ...


class ExpertCounter(Recorder, Protocol):
    """A recorder that keeps counts of the original experts chosen; `take` hands them over and starts again."""

    def take(self) -> Counts: ...


@dataclass(frozen=True, slots=True)
class GenTask:
    """One task to run. `emitted_ids` are replayed first (resume); `version` binds it to a version, None means the newest at admission.
    `region` is counted, no more."""

    task_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    emitted_ids: tuple[int, ...] = ()
    version: str | None = None
    region: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The task left the queue: its prompt is read in this step, by this version to the end."""

    task_id: str
    version: str


@dataclass(frozen=True, slots=True)
class Emitted:
    task_id: str
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """`output_tokens` counts every token of the answer that took a step, the end token included; it is never emitted."""

    task_id: str
    version: str
    stopped: bool  # True: the model ended the answer; False: `max_tokens` did
    text: str
    prompt_tokens: int
    output_tokens: int


GenEvent = Started | Emitted | Finished


@dataclass(frozen=True, slots=True)
class StepTiming:
    """What one `step` cost. `num_versions` > 1: more than one batch ran."""

    num_prompts: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    num_rows: int = 0
    step_s: float = 0.0
    num_versions: int = 0


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """Expert counts of one version since they were last taken, and the tasks that ended meanwhile."""

    version: str
    counts: Counts
    num_tasks: int
    tasks_by_region: Mapping[str, int] = field(default_factory=dict)  # of those that named one


@dataclass(slots=True)
class _Row:
    task: GenTask
    ids: list[int]
    num_output: int


@dataclass(slots=True)
class _Lane:
    """One version with its cache: the slots in use are the keys of `rows`."""

    version: str
    model: MoeModel
    cache: Cache
    recorder: ExpertCounter
    rows: dict[int, _Row] = field(default_factory=dict)
    num_ended: int = 0
    ended_from: Counter[str] = field(default_factory=Counter)  # by region

    def free_slot(self) -> int:
        """The lowest, so that the slots in use stay close to consecutive, which families can read without copying."""
        return next(slot for slot in range(self.cache.num_slots) if slot not in self.rows)


class BatchEngine:
    """At most `max_batch` tasks run at once, over all versions; the rest wait first in, first out. New tasks run on `version`."""

    def __init__(
        self,
        model: MoeModel,
        tokenizer: TokenText,
        version: str,
        max_batch: int,
        new_recorder: Callable[[ModelShape], ExpertCounter],
        let_go: Callable[[list[MoeModel]], object] = list.clear,
    ) -> None:
        """`let_go` empties the list it is given, of models that nothing here needs, when and where it likes: a gigabyte takes 60 ms."""
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._new_recorder = new_recorder
        self._let_go = let_go
        self._lanes: dict[str, _Lane] = {}
        self._queue: deque[GenTask] = deque()
        self._admitting = True
        self.timing = StepTiming()
        self.version = version
        self.install(model, version)

    @property
    def model(self) -> MoeModel:
        """What new tasks run on."""
        return self._lanes[self.version].model

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version held, oldest first."""
        return tuple(self._lanes)

    @property
    def models(self) -> tuple[MoeModel, ...]:
        return tuple(lane.model for lane in self._lanes.values())

    @property
    def num_running(self) -> int:
        return sum(len(lane.rows) for lane in self._lanes.values())

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_admissible(self) -> int:
        """Tasks that wait and for which there is a slot."""
        return min(len(self._queue), self._max_batch - self.num_running) if self._admitting else 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.num_running > 0 or (self._admitting and bool(self._queue))

    def submit(self, task: GenTask) -> None:
        if task.version is not None and task.version not in self._lanes:
            raise VersionGoneError(f"required_version: {task.version} is not served here; serving {self.version}")
        self._queue.append(task)

    def cancel(self, task_id: str) -> bool:
        """Drop the task wherever it is; its slot is free for the next step. False when it is not known (finished)."""
        for task in self._queue:
            if task.task_id == task_id:
                self._queue.remove(task)
                return True
        for lane in self._lanes.values():
            for slot, row in lane.rows.items():
                if row.task.task_id == task_id:
                    self._end(lane, slot)
                    return True
        return False

    def install(self, model: MoeModel, version: str) -> None:
        """New tasks use `version`; tasks in flight, and those that must go on with an older one, finish on theirs."""
        held = self._lanes.pop(version, None)
        if held is None or (held.model is not model and not held.rows):
            held = _Lane(version, model, model.new_cache(self._max_batch), self._new_recorder(model.shape))
        self._lanes[version] = held
        self.version = version
        self._retire()

    def unload(self) -> list[str]:
        """Let go of every model, for an edge whose memory holds one at a time; `install` ends this state.
        Held and without running tasks only. Returns the queued tasks that cannot go on with any other version; they are dropped."""
        assert not self._admitting
        assert not self.num_running
        self._lanes.clear()
        bound = [task for task in self._queue if task.version is not None]
        self._queue = deque(task for task in self._queue if task.version is None)
        return [task.task_id for task in bound]

    def hold(self) -> None:
        """Admit nothing until `resume`: running tasks finish, the others wait."""
        self._admitting = False

    def resume(self) -> None:
        self._admitting = True

    def abandon(self) -> list[str]:
        """Drop every running task after a failed step; their ids. Queued tasks stay."""
        dropped = [row.task.task_id for lane in self._lanes.values() for row in lane.rows.values()]
        for lane in self._lanes.values():
            lane.rows.clear()
            lane.cache = lane.model.new_cache(self._max_batch)
        self._retire()
        return dropped

    def take_counts(self, min_tasks: int) -> list[VersionCounts]:
        """Counts of every version of which at least `min_tasks` tasks ended since they were last taken."""
        taken = []
        for lane in self._lanes.values():
            if lane.num_ended >= min_tasks:
                taken.append(VersionCounts(lane.version, lane.recorder.take(), lane.num_ended, dict(sorted(lane.ended_from.items()))))
                lane.num_ended, lane.ended_from = 0, Counter()
        return taken

    def step(self, admits: bool = True) -> list[GenEvent]:
        """Admit what fits, read the admitted prompts as one batch a version, then decode one token of every running task."""
        events: list[GenEvent] = []
        started_at_s = time.perf_counter()
        num_prompts, prefill_tokens = self._admit(events) if admits else (0, 0)
        decoding_at_s = time.perf_counter()
        num_rows = self.num_running
        num_versions = self._decode_all(events)
        ended_at_s = time.perf_counter()
        self._retire()
        self.timing = StepTiming(
            num_prompts, prefill_tokens, decoding_at_s - started_at_s, num_rows, ended_at_s - decoding_at_s, num_versions
        )
        return events

    def _admit(self, events: list[GenEvent]) -> tuple[int, int]:
        admitted: dict[str, list[int]] = {}
        num_tokens = 0
        for _ in range(self.num_admissible):
            task = self._queue.popleft()
            lane = self._lanes[task.version or self.version]
            slot = lane.free_slot()
            lane.rows[slot] = _Row(task, list(task.emitted_ids), len(task.emitted_ids))
            admitted.setdefault(lane.version, []).append(slot)
            events.append(Started(task.task_id, lane.version))
            num_tokens += len(task.prompt_ids)
        for version, slots in admitted.items():
            self._prefill(self._lanes[version], slots, events)
        return sum(map(len, admitted.values())), num_tokens

    def _prefill(self, lane: _Lane, slots: list[int], events: list[GenEvent]) -> None:
        lane.model.prefill(lane.cache, slots, [lane.rows[slot].task.prompt_ids for slot in slots], lane.recorder)
        for slot in slots:
            row = lane.rows[slot]
            if not row.ids:
                continue
            if len(row.ids) >= row.task.max_tokens:
                self._finish(lane, slot, False, events)
            else:
                lane.model.force(lane.cache, slot, row.ids)

    def _decode_all(self, events: list[GenEvent]) -> int:
        """The number of versions that ran. Holds none of them afterwards, so that the last of one is wherever `let_go` takes it."""
        lanes = [lane for lane in self._lanes.values() if lane.rows]
        for lane in lanes:
            self._decode(lane, events)
        return len(lanes)

    def _decode(self, lane: _Lane, events: list[GenEvent]) -> None:
        slots = sorted(lane.rows)
        if not slots:
            return
        tokens = lane.model.step(lane.cache, slots, lane.recorder)
        for slot, token in zip(slots, tokens, strict=True):
            row = lane.rows[slot]
            row.num_output += 1
            if token in lane.model.shape.eos_token_ids:
                self._finish(lane, slot, True, events)
                continue
            events.append(Emitted(row.task.task_id, token, self._tokenizer.delta(row.ids, token)))
            row.ids.append(token)
            if row.num_output >= row.task.max_tokens:
                self._finish(lane, slot, False, events)

    def _finish(self, lane: _Lane, slot: int, stopped: bool, events: list[GenEvent]) -> None:
        row = lane.rows[slot]
        text = self._tokenizer.decode(row.ids)
        events.append(Finished(row.task.task_id, lane.version, stopped, text, len(row.task.prompt_ids), row.num_output))
        self._end(lane, slot)

    def _end(self, lane: _Lane, slot: int) -> None:
        region = lane.rows.pop(slot).task.region
        lane.num_ended += 1
        if region:
            lane.ended_from[region] += 1

    def _retire(self) -> None:
        """Let go of versions that nothing needs. Counts too few to publish go with them."""
        needed = {self.version} | {task.version for task in self._queue if task.version is not None}
        gone = [self._lanes.pop(v).model for v in list(self._lanes) if not self._lanes[v].rows and v not in needed]
        if gone:
            self._let_go(gone)
