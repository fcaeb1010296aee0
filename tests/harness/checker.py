"""Checks what users saw of their calls against the task events of the ledger. Pure: values in, violations out; it reads nothing itself.

It knows the promises, not the code that keeps them: every call ends once and in time, in a documented status; every task that an edge
was chosen for has exactly one terminal event after deduplication, which says what the user was told; a drain loses nothing it accepted.
What versions and counts promise is in `versions.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from moedge.v1 import events_pb2
from tests.harness.history import OK, Call, Fault, Try, is_cut

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
        violations += _of_call(call, faults)
        violations += _of_tasks(call, tasks.get(call.call_id, {}), faults)
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
    for met in call.refusals:
        if met.status not in FAULT_STATUSES and not is_cut(met.status, met.reason, met.accepted):
            violations.append(f"{call.call_id}: ended in {met.status}, which no fault explains")
        if not any(fault.excuses(met.ended_at_s) for fault in faults):
            violations.append(f"{call.call_id}: {met.status} at {met.ended_at_s:.2f} s, outside of every fault")
    if call.status == OK and call.answer != call.summary:
        violations.append(f"{call.call_id}: streamed {call.answer!r}, and the summary says {call.summary!r}")
    return violations


def _of_tasks(call: Call, tasks: Mapping[str, Sequence[events_pb2.TaskEvent]], faults: Sequence[Fault]) -> list[str]:
    """The events of one call against how it ended. Each try may have begun a task of its own."""
    name, is_orphan = call.call_id, any(fault.orphans(call) for fault in faults)
    many = len(tasks) > len(call.tries) + 1
    violations = [f"{name}: {len(tasks)} tasks for {_tries(call)}: {sorted(tasks)}"] if many else []
    told = {met.task_id for met in call.tries} | {call.task_id}
    violations += [f"{name}: task {task_id} is not in the ledger" for task_id in sorted(told - tasks.keys()) if task_id]
    for task_id, events in sorted(tasks.items()):
        ends = terminal(events)
        if len(ends) != 1:
            kinds = sorted(_WORDS[event.kind] for event in ends)
            violations.append(f"{name}: task {task_id} has {len(ends)} terminal events {kinds}")
            continue
        violations += _of_end(call, ends[0], is_orphan=is_orphan)
        violations += _of_drain(call, ends[0], faults)
        if not is_orphan:
            violations += _of_attempts(name, events, ends[0])
    return violations


def _tries(call: Call) -> str:
    return "one call" if not call.tries else f"one call of {len(call.tries) + 1} tries"


def _of_end(call: Call, end: events_pb2.TaskEvent, *, is_orphan: bool) -> list[str]:
    """The terminal event says what the user was told. The user of a broker that died was told nothing of it."""
    name, word = f"{call.call_id}: task {end.task_id}", _WORDS[end.kind]
    if call.status == OK and (end.task_id == call.task_id or not call.tries):
        told = (call.task_id, "completed", call.edge_id, call.version, call.attempts)
        written = (end.task_id, word, end.edge_id, end.version, end.attempt)
        return [] if told == written else [f"{name}: the ledger has {written}, the user was told {told}"]
    if is_orphan:
        return [] if word in ("completed", "failed") else [f"{name}: {word}, although it was dispatched by a broker that died"]
    if word in ("failed", "rejected") and any(end.status in _written_for(met) for met in call.refusals):
        return []
    was_told = " then ".join(met.status for met in call.refusals) or OK
    return [f"{name}: the ledger has {word} {end.status or OK}, the user was told {was_told}"]


def _written_for(met: Try) -> set[str]:
    """To the broker a user is gone whose own deadline ended the call before the broker's did, or whose connection broke."""
    is_gone = met.status == "DEADLINE_EXCEEDED" or met.reason == "TRANSPORT"
    return {met.status, "CANCELLED"} if is_gone else {met.status}


def _of_drain(call: Call, end: events_pb2.TaskEvent, faults: Sequence[Fault]) -> list[str]:
    """What had been dispatched when the drain began is finished: it does not fail."""
    if _WORDS[end.kind] != "failed" or (end.task_id == call.task_id != "" and call.status == OK):
        return []
    drained = [met for met in call.refusals for fault in faults if fault.drains and fault.excuses(met.ended_at_s)]
    return [f"{call.call_id}: task {end.task_id} was accepted and lost to a drain ({end.status})"] if drained else []


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
