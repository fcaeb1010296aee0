"""Between protobuf messages and the core's values. Conversion only: nothing is decided or defaulted here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from moedge.v1 import events_pb2, merger_pb2, worker_pb2
from services.core.merging.values import ActivationWindow, Counts, Frequencies
from services.core.offload.values import EdgeSnapshot, EdgeState, Link, StepTimes, Work

STATE_TO_PROTO: Mapping[EdgeState, worker_pb2.EdgeState.ValueType] = {
    EdgeState.READY: worker_pb2.EDGE_STATE_READY,
    EdgeState.UPDATING: worker_pb2.EDGE_STATE_UPDATING,
    EdgeState.DRAINING: worker_pb2.EDGE_STATE_DRAINING,
    EdgeState.UNREACHABLE: worker_pb2.EDGE_STATE_UNREACHABLE,
}
NO_WORK = Work()
STATE_FROM_PROTO: Mapping[int, EdgeState] = {int(value): state for state, value in STATE_TO_PROTO.items()}


def duration(seconds_: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds_ * 1e9))
    return message


def seconds(message: Duration) -> float:
    return message.ToNanoseconds() / 1e9


def timestamp_s(message: Timestamp) -> float:
    """Seconds since the epoch: for people and files, never to subtract from another host's."""
    return message.ToNanoseconds() / 1e9


def link_to_proto(link: Link) -> worker_pb2.Link:
    return worker_pb2.Link(
        latency=duration(link.latency_s), uplink_bytes_per_s=link.uplink_bytes_per_s, downlink_bytes_per_s=link.downlink_bytes_per_s
    )


def link_from_proto(message: worker_pb2.Link) -> Link:
    return Link(seconds(message.latency), message.uplink_bytes_per_s, message.downlink_bytes_per_s)


def step_times_to_proto(times: StepTimes) -> worker_pb2.StepTimes:
    return worker_pb2.StepTimes(
        step_base_s=times.step_base_s,
        step_row_s=times.step_row_s,
        prefill_base_s=times.prefill_base_s,
        prefill_token_s=times.prefill_token_s,
    )


def step_times_from_proto(message: worker_pb2.StepTimes) -> StepTimes:
    return StepTimes(message.step_base_s, message.step_row_s, message.prefill_base_s, message.prefill_token_s)


def state_to_proto(state: EdgeState) -> worker_pb2.EdgeState.ValueType:
    return STATE_TO_PROTO[state]


def state_from_proto(value: int) -> EdgeState:
    """A state that this build does not know takes no tasks."""
    return STATE_FROM_PROTO.get(value, EdgeState.UNREACHABLE)


def entry_to_snapshot(
    entry: worker_pb2.EdgeEntry, others: Work = NO_WORK, now_s: float = 0.0, *, received_at_s: float | None = None
) -> EdgeSnapshot:
    """The edge as its registry entry tells it. Remaining downtime counts down from when the entry was received, on this process's clock."""
    age_s = 0.0 if received_at_s is None else max(0.0, now_s - received_at_s)
    return EdgeSnapshot(
        edge_id=entry.edge_id,
        version=entry.version,
        state=state_from_proto(entry.state),
        links={region: link_from_proto(link) for region, link in sorted(entry.links.items())},
        quality=dict(sorted(entry.quality.items())),
        step_times=step_times_from_proto(entry.step_times),
        max_batch=entry.max_batch,
        max_queue=entry.max_queue,
        others=others,
        unavailable_s=max(0.0, seconds(entry.unavailable) - age_s),
        memory_bytes=entry.memory_bytes,
    )


def counts_to_layers(counts: Counts) -> list[events_pb2.LayerCounts]:
    return [events_pb2.LayerCounts(counts=[int(c) for c in row]) for row in counts]


def layers_to_counts(layers: Iterable[events_pb2.LayerCounts]) -> Counts:
    """(num_layers, num_experts). Raises ValueError when the rows differ in length."""
    rows = [list(layer.counts) for layer in layers]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"layers of one report differ in experts: {sorted({len(row) for row in rows})}")
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]) if rows else 0)


def report_to_window(report: events_pb2.ActivationReport, now_s: float) -> ActivationWindow:
    """The window ends when it was received: intervals come from one process's clock."""
    return ActivationWindow(
        edge_id=report.edge_id,
        version=report.version,
        counts=layers_to_counts(report.layers),
        num_tasks=report.num_tasks,
        start_at_s=now_s - seconds(report.window),
        end_at_s=now_s,
        tasks_by_region=dict(sorted(report.tasks_by_region.items())),
    )


def frequencies_to_rows(frequencies: Frequencies) -> list[merger_pb2.LayerFrequencies]:
    return [merger_pb2.LayerFrequencies(values=[float(v) for v in row]) for row in frequencies]


def rows_to_frequencies(rows: Sequence[merger_pb2.LayerFrequencies]) -> Frequencies:
    return np.array([list(row.values) for row in rows], dtype=np.float64).reshape(len(rows), -1 if rows else 0)


def profile_to_proto(frequencies: Frequencies, tokens_per_task: Sequence[float] = ()) -> merger_pb2.TaskProfile:
    return merger_pb2.TaskProfile(layers=frequencies_to_rows(frequencies), tokens_per_task=[float(t) for t in tokens_per_task])


def manifest_frequencies(manifest: merger_pb2.Manifest) -> Frequencies:
    """f' of the version: (num_layers, num_experts)."""
    return np.array([list(layer.frequencies) for layer in manifest.layers], dtype=np.float64).reshape(
        len(manifest.layers), -1 if manifest.layers else 0
    )


def manifest_profiles(manifest: merger_pb2.Manifest) -> dict[str, Frequencies]:
    """f' of the version for each task type alone."""
    return {task_type: rows_to_frequencies(profile.layers) for task_type, profile in sorted(manifest.profiles.items())}


def manifest_index_maps(manifest: merger_pb2.Manifest) -> list[tuple[int, ...]]:
    return [tuple(layer.index_map) for layer in manifest.layers]
