"""The checker of fault tests: a history that keeps every promise has no violation, and each kind of damage to one is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moedge.v1.events_pb2 import TaskEvent
from services.runtime.events import TASK_KINDS
from tests.harness.checker import check, gaps, unfinished
from tests.harness.history import Call, Fault, Try

FAULT = Fault(10.0, 20.0)
EDGES = ("west", "centre", "east")


@dataclass(slots=True)
class History:
    calls: list[Call]
    events: list[TaskEvent]
    expected: list[str]

    def violations(self, *faults: Fault) -> list[str]:
        return check(self.expected, self.calls, self.events, faults or (FAULT,))

    def change(self, number: int, **fields) -> None:
        self.calls[number] = replace(self.calls[number], **fields)

    def events_of(self, number: int, *kinds: str) -> list[TaskEvent]:
        wanted = {TASK_KINDS[kind] for kind in kinds}
        return [event for event in self.events if event.user_id == self.calls[number].call_id and event.kind in wanted]

    def end(self, number: int) -> TaskEvent:
        return self.events_of(number, "completed", "failed", "rejected")[0]


def make_event(call: Call, kind: str, attempt: int, **fields) -> TaskEvent:
    task_id = call.task_id or f"task-{call.call_id}"
    event_id = f"{task_id}:{kind}:{attempt}"
    return TaskEvent(event_id=event_id, task_id=task_id, kind=TASK_KINDS[kind], attempt=attempt, user_id=call.call_id, **fields)


def add_call(history: History, attempts: int, status: str) -> None:
    """A call with all its events. A failed one ends within the fault; one without attempts is rejected."""
    name = f"call-{len(history.calls)}"
    ok = status == "OK"
    call = Call(name, 9.0, 25.0, 12.0, status, f"t-{name}" if ok else "", EDGES[attempts - 1] if ok else "", "v1" if ok else "", attempts)
    call = replace(call, question="q", answer="a", summary="a") if ok else call
    for attempt in range(1, attempts + 1):
        history.events.append(make_event(call, "dispatched", attempt, edge_id=EDGES[attempt - 1]))
        history.events.append(make_event(call, "started", attempt, edge_id=EDGES[attempt - 1]))
    if ok:
        history.events.append(make_event(call, "completed", attempts, edge_id=call.edge_id, version=call.version))
    else:
        history.events.append(make_event(call, "failed" if attempts else "rejected", attempts, status=status))
    history.calls.append(call)
    history.expected.append(name)


@st.composite
def histories(draw) -> History:
    """Call 0 was answered at its second edge, call 1 failed at its first; others vary. Some events came twice, as delivery allows."""
    history = History([], [], [])
    add_call(history, 2, "OK")
    add_call(history, 1, "UNAVAILABLE")
    for _ in range(draw(st.integers(0, 6))):
        status = draw(st.sampled_from(["OK", "UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"]))
        add_call(history, draw(st.integers(1 if status in ("OK", "ABORTED") else 0, 3)), status)
    twice = draw(st.lists(st.sampled_from(history.events), max_size=4))
    history.events = draw(st.permutations([*history.events, *twice]))
    return history


@given(histories())
def test_a_history_that_keeps_every_promise_has_no_violation(history):
    assert history.violations() == []
    assert unfinished(history.calls, history.events) == set()


def never_ended(history):
    history.change(0, end_at_s=None)


def forgotten_call(history):
    del history.calls[0]


def ended_twice(history):
    history.calls.append(history.calls[0])


def call_that_nobody_sent(history):
    history.calls.append(replace(history.calls[1], call_id="stranger"))


def late_end(history):
    history.change(0, end_at_s=25.3)


def undocumented_status(history):
    history.end(1).status = "INTERNAL"
    history.change(1, status="INTERNAL")


def failure_outside_of_the_fault(history):
    history.change(1, end_at_s=9.5)


def lost_task(history):
    gone = [event for event in history.events if event.event_id == history.end(0).event_id]
    history.events = [event for event in history.events if event not in gone]


def task_without_any_event(history):
    history.events = [event for event in history.events if event.user_id != "call-0"]


def completed_twice_by_two_attempts(history):
    history.events.append(make_event(history.calls[0], "completed", 1, edge_id="west", version="v1"))


def completed_and_failed(history):
    history.events.append(make_event(history.calls[0], "failed", 2, status="UNAVAILABLE"))


def two_tasks_for_one_call(history):
    again = make_event(replace(history.calls[0], task_id="another"), "completed", 1, edge_id="west", version="v1")
    history.events.append(again)


def answered_but_written_as_failed(history):
    lost_task(history)
    history.events.append(make_event(history.calls[0], "failed", 2, status="ABORTED"))


def failed_but_written_as_completed(history):
    lost = history.end(1).event_id
    history.events = [event for event in history.events if event.event_id != lost]
    history.events.append(make_event(history.calls[1], "completed", 1, edge_id="west", version="v1"))


def other_status_than_the_user_saw(history):
    for event in history.events_of(1, "failed"):
        event.status = "ABORTED"


def other_edge_than_the_user_saw(history):
    history.change(0, edge_id="east")


def other_version_than_the_user_saw(history):
    history.change(0, version="v2")


def end_of_an_earlier_attempt(history):
    lost_task(history)
    history.events.append(make_event(history.calls[0], "completed", 1, edge_id="west", version="v1"))
    history.change(0, attempts=1, edge_id="west")


def attempt_that_was_never_dispatched(history):
    gone = "t-call-0:dispatched:2"
    history.events = [event for event in history.events if event.event_id != gone]


def rejected_after_dispatch(history):
    lost = history.end(1).event_id
    history.events = [event for event in history.events if event.event_id != lost]
    history.events.append(make_event(history.calls[1], "rejected", 1, status="UNAVAILABLE"))


def id_that_deduplication_cannot_use(history):
    history.end(0).event_id = "random"


def token_lost_on_the_way(history):
    history.change(0, answer="")


def moved_task_that_answers_otherwise(history):
    add_call(history, 1, "OK")
    history.change(len(history.calls) - 1, answer="b", summary="b")


DAMAGE: dict[Callable[[History], None], str] = {
    never_ended: "call-0: never ended",
    forgotten_call: "call-0: ended 0 times",
    ended_twice: "call-0: ended 2 times",
    call_that_nobody_sent: "stranger: was never sent",
    late_end: "call-0: ended 0.30 s after its deadline",
    undocumented_status: "call-1: ended in INTERNAL",
    failure_outside_of_the_fault: "call-1: UNAVAILABLE at 9.50 s, outside",
    lost_task: "call-0: task t-call-0 has 0 terminal events",
    task_without_any_event: "call-0: task t-call-0 is not in the ledger",
    completed_twice_by_two_attempts: "has 2 terminal events ['completed', 'completed']",
    completed_and_failed: "has 2 terminal events ['completed', 'failed']",
    two_tasks_for_one_call: "call-0: 2 tasks for one call",
    answered_but_written_as_failed: "call-0: task t-call-0: the ledger has",
    failed_but_written_as_completed: "the ledger has completed OK, the user was told UNAVAILABLE",
    other_status_than_the_user_saw: "the ledger has failed ABORTED, the user was told UNAVAILABLE",
    other_edge_than_the_user_saw: "call-0: task t-call-0: the ledger has",
    other_version_than_the_user_saw: "call-0: task t-call-0: the ledger has",
    end_of_an_earlier_attempt: "completed in attempt 1 of 2 dispatched",
    attempt_that_was_never_dispatched: "completed in attempt 2 of 1 dispatched",
    rejected_after_dispatch: "rejected in attempt 1 of 1 dispatched",
    id_that_deduplication_cannot_use: "event id 'random'",
    token_lost_on_the_way: "call-0: streamed ''",
    moved_task_that_answers_otherwise: "version v1 answered 'q' with 'a' and 'b'",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@given(history=histories())
def test_damage_is_caught(damage, history):
    damage(history)
    found = history.violations()
    assert any(DAMAGE[damage] in violation for violation in found), found


def make_orphan(kind: str, status: str = "") -> History:
    """A call that was in flight when its broker was killed: another process closed its task."""
    history = History([Call("call", 9.0, 25.0, 12.0, "UNAVAILABLE")], [], ["call"])
    history.events = [make_event(history.calls[0], "dispatched", 1, edge_id="west"), make_event(history.calls[0], kind, 1, status=status)]
    return history


@pytest.mark.parametrize(("kind", "status"), [("completed", ""), ("failed", "CANCELLED")])
def test_a_task_whose_broker_was_killed_may_end_either_way_but_must_end_once(kind, status):
    history = make_orphan(kind, status)
    killed = Fault(10.0, 20.0, kills_broker=True)
    assert history.violations(killed) == []
    assert history.violations(FAULT) != []
    history.events.append(make_event(history.calls[0], "failed", 2, status="CANCELLED"))
    assert any("2 terminal events" in violation for violation in history.violations(killed))
    del history.events[1:]
    assert any("0 terminal events" in violation for violation in history.violations(killed))
    assert unfinished(history.calls, history.events) == {"task-call"}


def test_a_call_that_came_while_its_broker_was_dying_is_one_of_a_killed_broker_and_a_later_one_is_not():
    killed = Fault(10.0, 20.0, kills_broker=True)
    history = make_orphan("failed", "CANCELLED")
    history.change(0, sent_at_s=10.1)
    assert history.violations(killed) == []
    history.change(0, sent_at_s=11.0)
    assert history.violations(killed) != []


def test_a_call_that_a_stopping_server_cut_off_is_a_refusal_unless_it_was_accepted():
    cut = Call("call", 9.0, 25.0, 11.0, "CANCELLED", reason="TRANSPORT")
    assert History([cut], [], ["call"]).violations() == []
    assert History([replace(cut, end_at_s=21.0)], [], ["call"]).violations() != []
    assert any("ended in CANCELLED" in violation for violation in History([replace(cut, accepted=True)], [], ["call"]).violations())
    assert any("ended in CANCELLED" in violation for violation in History([replace(cut, reason="GONE")], [], ["call"]).violations())


def test_an_answer_counts_as_one_even_where_its_broker_was_killed_right_after():
    history = make_orphan("failed", "CANCELLED")
    history.change(0, status="OK", task_id="task-call", attempts=1)
    assert any("the ledger has" in violation for violation in history.violations(Fault(10.0, 20.0, kills_broker=True)))


def test_missing_numbers_of_a_producer_are_events_that_were_lost():
    events = [TaskEvent(producer_id="b1", sequence=number) for number in (1, 2, 4)] + [TaskEvent(producer_id="b2", sequence=9)]
    assert gaps(events, ["b1"]) == ["b1: events [3] are missing"]
    assert gaps(events[:2], ["b1"]) == []


def make_retried(first_status="UNAVAILABLE", first_word="failed", reason="") -> History:
    """A call whose first try failed within the fault and whose second was answered."""
    met = Try(9.0, 11.0, first_status, reason, True, "t-1")
    call = Call("call", 9.0, 25.0, 13.0, "OK", "t-2", "east", "v1", 1, "q", "a", "a", tries=(met,))
    history = History([call], [], ["call"])
    for task_id, word, fields in (
        ("t-1", first_word, {"status": first_status}),
        ("t-2", "completed", {"edge_id": "east", "version": "v1"}),
    ):
        task = replace(call, task_id=task_id)
        history.events += [make_event(task, "dispatched", 1), make_event(task, word, 1, **fields)]
    return history


def test_a_retried_call_may_begin_a_task_with_each_try():
    assert make_retried().violations() == []
    history = make_retried()
    history.change(0, tries=())
    assert any("call: 2 tasks for one call" in violation for violation in history.violations())


def test_a_refusal_on_the_way_counts_as_much_as_one_at_the_end():
    history = make_retried()
    assert any("call: UNAVAILABLE at 11.00 s, outside" in violation for violation in history.violations(Fault(12.0, 20.0)))
    history.change(0, tries=(replace(history.calls[0].tries[0], status="INTERNAL"),))
    assert any("ended in INTERNAL" in violation for violation in history.violations())


def test_the_task_of_each_try_has_an_end_of_its_own():
    history = make_retried()
    del history.events[1]
    assert any("task t-1 has 0 terminal events" in violation for violation in history.violations())
    history = make_retried()
    history.events = [event for event in history.events if event.task_id != "t-1"]
    assert any("task t-1 is not in the ledger" in violation for violation in history.violations())


def test_a_try_whose_connection_broke_is_a_user_who_left():
    history = make_retried(reason="TRANSPORT")
    history.events[1].status = "CANCELLED"
    assert history.violations() == []
    history = make_retried()
    history.events[1].status = "CANCELLED"
    assert any("the ledger has failed CANCELLED" in violation for violation in history.violations())


def test_a_task_that_a_drain_ended_is_caught_and_one_that_it_refused_is_not():
    draining = Fault(10.0, 20.0, drains=True)
    assert any("task t-1 was accepted and lost to a drain" in violation for violation in make_retried().violations(draining))
    history = make_retried(first_word="rejected")
    history.events[0:2] = [make_event(replace(history.calls[0], task_id="t-1"), "rejected", 0, status="UNAVAILABLE")]
    assert history.violations(draining) == []
