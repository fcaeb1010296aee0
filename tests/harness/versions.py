"""Checks what is promised of model versions, expert counts and success rates. Pure: values in, violations out.

Versions: each reply has one, the one that its last attempt began on, and an edge never goes back to a version that it left unless somebody
sent it there. Counts: what an edge reports of its experts is what its tasks had tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from moedge.v1 import events_pb2
from tests.harness.history import OK, Call

TOP_K = 1  # experts that the demo model's router chooses for a token


def deduplicated(events: Iterable[events_pb2.TaskEvent]) -> list[events_pb2.TaskEvent]:
    return list({event.event_id: event for event in reversed(list(events))}.values())[::-1]


def check_versions(calls: Sequence[Call], events: Iterable[events_pb2.TaskEvent], sent_back: Collection[tuple[str, str]] = ()) -> list[str]:
    """`sent_back`: (edge, version) for each time that an update or an operator took an edge to a version, in any order."""
    begun = [event for event in deduplicated(events) if event.kind == events_pb2.TASK_EVENT_KIND_STARTED]
    return _of_replies(calls, begun) + _forward(begun, Counter(sent_back))


def _of_replies(calls: Sequence[Call], begun: Iterable[events_pb2.TaskEvent]) -> list[str]:
    started = {(event.task_id, event.attempt): event for event in begun}
    violations = []
    for call in calls:
        if call.status != OK:
            continue
        if not call.version:
            violations.append(f"{call.call_id}: the reply names no version")
        event = started.get((call.task_id, call.attempts))
        if event is not None and (event.version, event.edge_id) != (call.version, call.edge_id):
            said = f"{call.version} at {call.edge_id}"
            violations.append(f"{call.call_id}: began on {event.version} at {event.edge_id}, and the reply says {said}")
    return violations


def _forward(begun: Iterable[events_pb2.TaskEvent], sent_to: Counter[tuple[str, str]]) -> list[str]:
    """A worker process numbers its events; its processes follow one another. Tasks that began beside a swap belong to either version."""
    by_edge: dict[str, dict[str, list[events_pb2.TaskEvent]]] = defaultdict(lambda: defaultdict(list))
    for event in begun:
        by_edge[event.edge_id][event.producer_id].append(event)
    violations = []
    for edge_id, processes in sorted(by_edge.items()):
        ordered = sorted(processes.values(), key=lambda events: min(event.event_time.ToNanoseconds() for event in events))
        versions = [event.version for events in ordered for event in sorted(events, key=lambda event: event.sequence)]
        runs = Counter(version for version, _ in groupby(versions))
        for version, times in sorted(runs.items()):
            back = times - 1 - sent_to[edge_id, version]
            if back > 0:
                violations.append(f"{edge_id}: went back to version {version} {back} times, and nobody sent it there")
    return violations


@dataclass(frozen=True, slots=True)
class Counted:
    """`exact` groups (edge, process, version) were compared to the token; of others only the bound was checked."""

    violations: list[str]
    exact: int
    bounded: int


def check_counts(reports: Iterable[events_pb2.ActivationReport], events: Iterable[events_pb2.TaskEvent], top_k: int = TOP_K) -> Counted:
    """Sums of expert counts after deduplication against the tokens of the tasks that began there.

    Exact where the reports cover every task of the group and all of them were completed at their first attempt: each layer saw every
    prompt token (encoder) or every generated one (decoder) `top_k` times.
    """
    groups: dict[tuple[str, str, str], list[events_pb2.ActivationReport]] = defaultdict(list)
    for report in {report.event_id: report for report in reports}.values():
        groups[report.edge_id, report.epoch[:8], report.version].append(report)
    known = deduplicated(events)
    completed = {event.task_id: event for event in known if event.kind == events_pb2.TASK_EVENT_KIND_COMPLETED}
    tasks: dict[tuple[str, str, str], list[events_pb2.TaskEvent]] = defaultdict(list)
    for event in known:
        if event.kind == events_pb2.TASK_EVENT_KIND_STARTED:
            tasks[event.edge_id, event.producer_id.rpartition(":")[2], event.version].append(event)
    violations, num_exact = [], 0
    for group, of_group in sorted(groups.items()):
        totals = [sum(layer) for layer in zip(*([sum(layer.counts) for layer in r.layers] for r in of_group), strict=True)]
        ends = [completed.get(event.task_id) for event in tasks[group]]
        first = [end for end in ends if end is not None and end.attempt == 1]
        whole = len(first) == len(ends) == sum(report.num_tasks for report in of_group)
        num_exact += whole
        violations += _of_group(group, totals, first, top_k) if whole else _of_shape(group, totals)
    return Counted(violations, num_exact, len(groups) - num_exact)


def _of_group(group: tuple[str, str, str], totals: Sequence[int], ends: Sequence[events_pb2.TaskEvent], top_k: int) -> list[str]:
    right = {top_k * sum(end.prompt_tokens for end in ends), top_k * sum(end.output_tokens for end in ends)}
    wrong = sorted(set(totals) - right)
    return [f"{'/'.join(group)}: layers count {wrong} tokens, its tasks had {sorted(right)}"] if wrong else []


def _of_shape(group: tuple[str, str, str], totals: Sequence[int]) -> list[str]:
    """Every encoder layer sees the same tokens, and every decoder layer does."""
    return [f"{'/'.join(group)}: layers count {sorted(set(totals))} tokens: more than two kinds"] if len(set(totals)) > 2 else []


def success_rate(calls: Sequence[Call]) -> float:
    return sum(call.status == OK for call in calls) / len(calls) if calls else 1.0


def check_not_lower(quiet: Sequence[Call], faulty: Sequence[Call], within: float = 0.001) -> list[str]:
    """P5: without a control service as many calls succeed as with it."""
    before, during = success_rate(quiet), success_rate(faulty)
    return [f"{during:.2%} succeeded during the fault, {before:.2%} before it"] if during < before - within else []
