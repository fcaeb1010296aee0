"""Versions, counts and rates of fault tests: a history that keeps the promises has no violation, and each kind of damage is caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moedge.v1.events_pb2 import ActivationReport, LayerCounts, TaskEvent
from services.runtime.events import TASK_KINDS
from tests.harness.history import (
    Call,
    Fault,
    Try,
    read_calls,
    read_events,
    read_faults,
    write_calls,
    write_events,
    write_faults,
)
from tests.harness.versions import check_counts, check_not_lower, check_versions

EDGES = ("west", "east")
PROMPT_TOKENS, OUTPUT_TOKENS = 5, 3


def make_history(versions_by_edge):
    """One task after the other on each edge, on the versions given; every one was answered."""
    calls, events = [], []
    for edge, versions in versions_by_edge.items():
        for n, version in enumerate(versions):
            task_id = f"{edge}-{n}"
            calls.append(Call(f"call-{task_id}", 1.0, 9.0, 2.0, "OK", task_id, edge, version, 1))
            events.append(make_started(task_id, edge, version, sequence=2 * n + 1))
            completed = TaskEvent(event_id=f"{task_id}:completed:1", task_id=task_id, kind=TASK_KINDS["completed"], attempt=1, edge_id=edge)
            completed.prompt_tokens, completed.output_tokens = PROMPT_TOKENS, OUTPUT_TOKENS
            events.append(completed)
    return calls, events


def make_started(task_id, edge, version, sequence, epoch="epoch-1"):
    event = TaskEvent(event_id=f"{task_id}:started:1", task_id=task_id, kind=TASK_KINDS["started"], attempt=1, edge_id=edge)
    event.version, event.sequence, event.producer_id = version, sequence, f"worker:{edge}:{epoch}"
    event.event_time.FromSeconds(sequence)
    return event


def make_report(edge, version, num_tasks, layers=(PROMPT_TOKENS, OUTPUT_TOKENS), number=1):
    counts = [LayerCounts(counts=[num_tasks * tokens - 1, 1]) for tokens in layers]
    event_id = f"{edge}:{version}:{number}"
    return ActivationReport(event_id=event_id, edge_id=edge, version=version, num_tasks=num_tasks, layers=counts, epoch="epoch-1")


forward = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(
    lambda lengths: [f"v{n}" for n, times in enumerate(lengths) for _ in range(times)]
)


@given(st.fixed_dictionaries({edge: forward for edge in EDGES}), st.randoms(use_true_random=False))
def test_edges_that_only_go_forward_have_no_violation(versions, rng):
    calls, events = make_history(versions)
    events = [*events, *rng.sample(events, len(events) // 2)]
    rng.shuffle(events)
    assert check_versions(calls, events) == []


@given(forward)
def test_an_edge_that_goes_back_is_caught_unless_it_was_sent_back(versions):
    calls, events = make_history({"west": [*versions, versions[0]]})
    assert any("west: went back to version v0 1 times" in violation for violation in check_versions(calls, events))
    assert check_versions(calls, events, [("west", "v0")]) == []
    assert check_versions(calls, events, [("east", "v0")]) != []


def test_an_edge_that_goes_back_with_a_new_process_is_caught():
    calls, events = make_history({"west": ["v1", "v1", "v2"]})
    events.append(make_started("later", "west", "v1", sequence=1, epoch="epoch-2"))
    events[-1].event_time.FromSeconds(100)
    assert any("west: went back to version v1" in violation for violation in check_versions(calls, events))


@given(forward, st.data())
def test_a_reply_of_another_version_than_its_task_began_on_is_caught(versions, data):
    calls, events = make_history({"west": versions})
    number = data.draw(st.integers(0, len(calls) - 1))
    calls[number] = replace(calls[number], version="v9")
    assert any(f"{calls[number].call_id}: began on" in violation for violation in check_versions(calls, events))
    calls[number] = replace(calls[number], version="")
    assert any("names no version" in violation for violation in check_versions(calls, events))


@given(st.lists(st.integers(20, 30), min_size=1, max_size=3))
def test_counts_are_exact_once_every_task_was_reported(sizes):
    _, events = make_history({"west": ["v1"] * sum(sizes)})
    reports = [make_report("west", "v1", size, number=n) for n, size in enumerate(sizes)]
    counted = check_counts([*reports, reports[0]], [*events, *events[:3]])
    assert (counted.violations, counted.exact, counted.bounded) == ([], 1, 0)
    reports[0].layers[1].counts[0] += 1
    assert any("its tasks had" in violation for violation in check_counts(reports, events).violations)
    lost = check_counts(reports[1:], events)
    assert lost.exact == 0


def test_layers_of_more_than_two_kinds_are_caught_although_tasks_are_missing():
    _, events = make_history({"west": ["v1"] * 40})
    assert check_counts([make_report("west", "v1", 20)], events).violations == []
    damaged = check_counts([make_report("west", "v1", 20, layers=(5, 3, 4))], events)
    assert any("more than two kinds" in violation for violation in damaged.violations)


def test_a_lower_success_rate_without_a_control_service_is_caught():
    calls, _ = make_history({"west": ["v1"] * 100})
    assert check_not_lower(calls, calls) == []
    failed = [replace(calls[0], status="UNAVAILABLE"), *calls[1:]]
    assert check_not_lower(calls, failed) == ["99.00% succeeded during the fault, 100.00% before it"]


def test_what_is_written_is_what_is_read(tmp_path):
    calls, events = make_history({"west": ["v1", "v2"]})
    calls[0] = replace(calls[0], tries=(Try(1.0, 1.5, "UNAVAILABLE", "NO_EDGE", True, "t-1"),), intended_at_s=0.5)
    faults = [Fault(1.0, 2.0, kills_broker=True, name="broker killed")]
    write_calls(tmp_path / "calls.jsonl", calls)
    write_events(tmp_path / "events.jsonl", events)
    write_faults(tmp_path / "faults.jsonl", faults)
    assert read_calls(tmp_path / "calls.jsonl") == calls
    assert read_events(tmp_path / "events.jsonl") == events
    assert read_faults(tmp_path / "faults.jsonl") == faults


@pytest.mark.parametrize("status", ["OK", "UNAVAILABLE"])
def test_every_try_that_did_not_answer_counts_as_a_refusal(status):
    met = Try(1.0, 1.5, "UNAVAILABLE")
    call = Call("call", 1.0, 9.0, 2.0, status, tries=(met,))
    assert len(call.refusals) == (1 if status == "OK" else 2)
    assert call.refusals[0] == met
