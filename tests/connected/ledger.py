"""Checks what users saw of their calls against the task events of the ledger. Pure: values in, violations out; it reads nothing itself.

It knows the promises, not the code that keeps them: every call ends once and in time, in a documented status, and every task that an edge
was chosen for has exactly one terminal event after deduplication, which says what the user was told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from moedge.v1 import events_pb2

OK = "OK"
FAULT_STATUSES = frozenset({"UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})  # a user may see these, and no others
GRACE_S = 0.25  # that a call may end after its deadline

_WORDS: Mapping[int, str] = {
    events_pb2.TASK_EVENT_KIND_DISPATCHED: "dispatched",
    events_pb2.TASK_EVENT_KIND_STARTED: "started",
    events_pb2.TASK_EVENT_KIND_COMPLETED: "completed",
    events_pb2.TASK_EVENT_KIND_FAILED: "failed",
    events_pb2.TASK_EVENT_KIND_REJECTED: "rejected",
}
_TERMINAL = frozenset({"completed", "failed", "rejected"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its user saw it. Every call is a user of its own, so its events are found although it was never told a task id."""

    call_id: str
    sent_at_s: float
    deadline_at_s: float
    end_at_s: float | None  # None: it never ended
    status: str = OK
    task_id: str = ""
    edge_id: str = ""
    version: str = ""
    attempts: int = 0
    question: str = ""
    answer: str = ""  # as streamed; of one version, the same question always has the same
    summary: str = ""  # the answer as the last message repeats it


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls that end within it may fail. Those in flight when it kills a broker may fail whatever became of their tasks."""

    began_at_s: float
    ended_at_s: float
    kills_broker: bool = False

    def excuses(self, call: Call) -> bool:
        return call.end_at_s is not None and self.began_at_s <= call.end_at_s <= self.ended_at_s

    def orphans(self, call: Call) -> bool:
        """Whether the broker died while it had this call."""
        return self.kills_broker and call.end_at_s is not None and call.sent_at_s <= self.began_at_s <= call.end_at_s


def check(
    expected: Collection[str], calls: Sequence[Call], events: Iterable[events_pb2.TaskEvent], faults: Sequence[Fault] = ()
) -> list[str]:
    """Every promise that was not kept, one line each. `expected`: ids of the calls sent; events of other users are not looked at."""
    sent = set(expected)
    deduplicated: dict[str, events_pb2.TaskEvent] = {}
    violations = []
    for event in events:
        if event.user_id in sent:
            violations += _wrong_id(event)
            deduplicated.setdefault(event.event_id, event)
    tasks: dict[str, dict[str, list[events_pb2.TaskEvent]]] = defaultdict(lambda: defaultdict(list))
    for event in deduplicated.values():
        tasks[event.user_id][event.task_id].append(event)
    endings = Counter(call.call_id for call in calls)
    violations += [f"{call_id}: ended {endings[call_id]} times" for call_id in sorted(sent) if endings[call_id] != 1]
    violations += [f"{call_id}: was never sent" for call_id in sorted(endings.keys() - sent)]
    for call in calls:
        is_orphan = any(fault.orphans(call) for fault in faults)
        violations += _of_call(call, faults)
        violations += _of_tasks(call, tasks.get(call.call_id, {}), is_orphan=is_orphan)
    return violations + _of_answers(calls)


def gaps(events: Iterable[events_pb2.TaskEvent], producers: Collection[str]) -> list[str]:
    """Events of these producers that never arrived: each numbers its events from 1. Not for producers that were killed."""
    seen: dict[str, set[int]] = defaultdict(set)
    for event in events:
        seen[event.producer_id].add(event.sequence)
    missing = {producer: set(range(1, max(seen[producer], default=0) + 1)) - seen[producer] for producer in producers}
    return [f"{producer}: events {sorted(numbers)} are missing" for producer, numbers in sorted(missing.items()) if numbers]


def terminal(events: Iterable[events_pb2.TaskEvent]) -> list[events_pb2.TaskEvent]:
    return [event for event in events if _WORDS.get(event.kind) in _TERMINAL]


def unfinished(calls: Iterable[Call], events: Iterable[events_pb2.TaskEvent]) -> set[str]:
    """Tasks of these calls without a terminal event: the ones to wait for."""
    events, calls = list(events), list(calls)
    users = {call.call_id for call in calls}
    begun = {event.task_id for event in events if event.user_id in users} | {call.task_id for call in calls if call.status == OK}
    return begun - {event.task_id for event in terminal(events)}


def _wrong_id(event: events_pb2.TaskEvent) -> list[str]:
    """An id that is not made of task, kind and attempt would defeat deduplication."""
    right = f"{event.task_id}:{_WORDS.get(event.kind, 'unknown')}:{event.attempt}"
    return [] if event.event_id == right else [f"{event.user_id}: event id {event.event_id!r}, not {right!r}"]


def _of_call(call: Call, faults: Sequence[Fault]) -> list[str]:
    if call.end_at_s is None:
        return [f"{call.call_id}: never ended"]
    violations = []
    if (over_s := call.end_at_s - call.deadline_at_s) > GRACE_S:
        violations.append(f"{call.call_id}: ended {over_s:.2f} s after its deadline")
    if call.status != OK and call.status not in FAULT_STATUSES:
        violations.append(f"{call.call_id}: ended in {call.status}, which no fault explains")
    if call.status != OK and not any(fault.excuses(call) for fault in faults):
        violations.append(f"{call.call_id}: {call.status} at {call.end_at_s:.2f} s, outside of every fault")
    if call.status == OK and call.answer != call.summary:
        violations.append(f"{call.call_id}: streamed {call.answer!r}, and the summary says {call.summary!r}")
    return violations


def _of_tasks(call: Call, tasks: Mapping[str, Sequence[events_pb2.TaskEvent]], *, is_orphan: bool) -> list[str]:
    """The events of one call against how it ended."""
    name = call.call_id
    violations = [f"{name}: {len(tasks)} tasks for one call: {sorted(tasks)}"] if len(tasks) > 1 else []
    if call.task_id and call.task_id not in tasks:
        return [*violations, f"{name}: task {call.task_id} is not in the ledger"]
    for task_id, events in sorted(tasks.items()):
        ends = terminal(events)
        if len(ends) != 1:
            kinds = sorted(_WORDS[event.kind] for event in ends)
            violations.append(f"{name}: task {task_id} has {len(ends)} terminal events {kinds}")
            continue
        violations += _of_end(call, ends[0], is_orphan=is_orphan)
        if not is_orphan:
            violations += _of_attempts(name, events, ends[0])
    return violations


def _of_end(call: Call, end: events_pb2.TaskEvent, *, is_orphan: bool) -> list[str]:
    """The terminal event says what the user was told. The user of a broker that died was told nothing of it."""
    name, word = f"{call.call_id}: task {end.task_id}", _WORDS[end.kind]
    if call.status == OK:
        told = (call.task_id, "completed", call.edge_id, call.version, call.attempts)
        written = (end.task_id, word, end.edge_id, end.version, end.attempt)
        return [] if told == written else [f"{name}: the ledger has {written}, the user was told {told}"]
    if is_orphan:
        return [] if word in ("completed", "failed") else [f"{name}: {word}, although it was dispatched by a broker that died"]
    # A user's own deadline may end the call before the broker's does: to the broker the user is gone.
    right = {call.status, "CANCELLED"} if call.status == "DEADLINE_EXCEEDED" else {call.status}
    fits = word in ("failed", "rejected") and end.status in right
    return [] if fits else [f"{name}: the ledger has {word} {end.status or OK}, the user was told {call.status}"]


def _of_attempts(name: str, events: Sequence[events_pb2.TaskEvent], end: events_pb2.TaskEvent) -> list[str]:
    """Attempts are dispatched one after the other, and the last one ends the task."""
    dispatched = sorted(event.attempt for event in events if event.kind == events_pb2.TASK_EVENT_KIND_DISPATCHED)
    if dispatched != list(range(1, len(dispatched) + 1)):
        return [f"{name}: task {end.task_id} has dispatched attempts {dispatched}"]
    if end.attempt != len(dispatched) or (end.kind == events_pb2.TASK_EVENT_KIND_REJECTED) != (not dispatched):
        return [f"{name}: task {end.task_id} {_WORDS[end.kind]} in attempt {end.attempt} of {len(dispatched)} dispatched"]
    return []


def _of_answers(calls: Sequence[Call]) -> list[str]:
    """No token lost, repeated or from another version: moved tasks answer as undisturbed ones do."""
    answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for call in calls:
        if call.status == OK and call.question:
            answers[call.version, call.question].setdefault(call.answer, call.call_id)
    return [
        f"{' and '.join(sorted(of.values()))}: version {version} answered {question!r} with {' and '.join(map(repr, sorted(of)))}"
        for (version, question), of in sorted(answers.items())
        if len(of) > 1
    ]
