"""Collects the updates of a run, from merge events where the event log is at hand, else from version changes that edge samples show.

It only listens: it never asks for an update, and an event seen twice counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loadgen.results import EdgeSample, Swap, Update
from moedge.v1 import events_pb2, worker_pb2
from services.runtime.codec import seconds


def swap_of(report: worker_pb2.SwapReport) -> Swap:
    return Swap(
        from_version=report.from_version,
        to_version=report.to_version,
        fetch_s=seconds(report.fetch),
        load_s=seconds(report.load),
        stall_s=seconds(report.stall),
        downtime_s=seconds(report.downtime),
        bytes_fetched=report.bytes_fetched,
        bytes_full=report.bytes_full,
        peak_model_bytes=report.peak_model_bytes,
        in_flight_tasks=report.in_flight_tasks,
    )


@dataclass(slots=True)
class UpdateFeed:
    """Merge events in, updates out. `begin` sets the instant that update times count from; what came before it belongs to no run."""

    _start_at_s: float | None = None
    _seen: set[str] = field(default_factory=set)
    _asked: dict[str, Update] = field(default_factory=dict)  # by edge: the request that the next swap answers
    _updates: list[Update] = field(default_factory=list)

    def begin(self, start_at_s: float) -> None:
        self._start_at_s = start_at_s
        self._updates.clear()

    def put(self, event: events_pb2.MergeEvent, now_s: float) -> None:
        """Take one merge event, received at `now_s` of the clock that `begin` was given."""
        if event.event_id and event.event_id in self._seen:
            return
        self._seen.add(event.event_id)
        at_s = now_s - (self._start_at_s or 0.0)
        kinds = events_pb2.MergeEventKind
        if event.kind == kinds.MERGE_EVENT_KIND_REQUESTED:
            self._asked[event.edge_id] = Update(
                at_s, event.edge_id, event.version, at_s, True, event.reason, event.activation_shift, event.residual, dict(event.mix)
            )
        elif event.kind == kinds.MERGE_EVENT_KIND_BUILT and event.edge_id in self._asked:
            self._asked[event.edge_id] = replace(self._asked[event.edge_id], version=event.version, build_s=seconds(event.build))
        elif event.kind in (kinds.MERGE_EVENT_KIND_SWAPPED, kinds.MERGE_EVENT_KIND_FAILED) and self._start_at_s is not None:
            self._updates.append(self._ended(event, at_s, ok=event.kind == kinds.MERGE_EVENT_KIND_SWAPPED))

    def _ended(self, event: events_pb2.MergeEvent, at_s: float, *, ok: bool) -> Update:
        asked = self._asked.pop(event.edge_id, None) or Update(at_s, event.edge_id, event.version, at_s)
        return replace(
            asked,
            at_s=at_s,
            ok=ok,
            version=event.version or asked.version,
            reason=(asked.reason or event.reason) if ok else (event.reason or event.swap.error or asked.reason),
            activation_shift=asked.activation_shift or event.activation_shift,
            mix=asked.mix or dict(event.mix),
            build_s=asked.build_s or seconds(event.build),
            swap=swap_of(event.swap) if event.HasField("swap") else None,
        )

    @property
    def updates(self) -> tuple[Update, ...]:
        return tuple(self._updates)


def updates_seen(samples: Sequence[EdgeSample]) -> tuple[Update, ...]:
    """Updates as a user without the event log sees them: an edge lists another version than in its last sample."""
    last: dict[str, EdgeSample] = {}
    found = []
    for sample in samples:
        before = last.get(sample.edge_id)
        if before is not None and before.version and sample.version != before.version:
            found.append(_changed(before, sample))
        last[sample.edge_id] = sample
    return tuple(found)


def _changed(before: EdgeSample, after: EdgeSample) -> Update:
    mix: Mapping[str, float] = dict(after.mix)
    return Update(after.at_s, after.edge_id, after.version, before.at_s, True, "version changed", mix=mix)
