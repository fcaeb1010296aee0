"""Conversion between messages and values, and what an event record holds."""

import contextlib
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moedge.v1 import events_pb2, merger_pb2, worker_pb2
from services.core.offload.values import EdgeState, Link, StepTimes, Work
from services.runtime import codec, events
from services.runtime.clock import VirtualClock
from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS, TASK_EVENTS, PoisonRecordError, Record


class RecordingLog:
    """The publishing half of an event log, kept in a list."""

    def __init__(self):
        self.published = []

    def publish(self, record, *, droppable=False):
        self.published.append((record, droppable))


@pytest.fixture
def log():
    return RecordingLog()


@pytest.fixture
def writer(log):
    return events.EventWriter(log, "broker-1", VirtualClock(wall=datetime(2026, 5, 1, tzinfo=UTC)))


@given(st.floats(min_value=-1e6, max_value=1e6))
def test_seconds_survive_the_wire_to_the_nanosecond(value):
    assert codec.seconds(codec.duration(value)) == pytest.approx(value, abs=1e-9)


def test_links_and_step_times_survive_the_wire():
    link = Link(0.025, 1e6, 2.5e6)
    times = StepTimes(0.01, 0.002, 0.003, 0.0001)
    assert codec.link_from_proto(codec.link_to_proto(link)) == link
    assert codec.step_times_from_proto(codec.step_times_to_proto(times)) == times


@pytest.mark.parametrize("state", list(EdgeState))
def test_states_survive_the_wire(state):
    assert codec.state_from_proto(codec.state_to_proto(state)) is state


def test_a_state_of_a_newer_build_takes_no_tasks():
    assert codec.state_from_proto(99) is EdgeState.UNREACHABLE


def test_a_registry_entry_becomes_a_snapshot_whose_downtime_counts_down():
    entry = worker_pb2.EdgeEntry(
        edge_id="edge-1",
        version="v1",
        state=worker_pb2.EDGE_STATE_UPDATING,
        quality={"copa": 0.9},
        links={"near": codec.link_to_proto(Link(0.01, 1e6, 1e6))},
        step_times=codec.step_times_to_proto(StepTimes(1, 2, 3, 4)),
        max_batch=4,
        max_queue=16,
        unavailable=codec.duration(2.0),
        memory_bytes=7,
    )
    snapshot = codec.entry_to_snapshot(entry, Work(1, 2.0, 3.0), now_s=11.5, received_at_s=10.0)
    assert snapshot.state is EdgeState.UPDATING
    assert snapshot.unavailable_s == pytest.approx(0.5)
    assert snapshot.others == Work(1, 2.0, 3.0)
    assert snapshot.links["near"].latency_s == pytest.approx(0.01)
    assert codec.entry_to_snapshot(entry, now_s=99.0, received_at_s=10.0).unavailable_s == 0.0


def test_counts_and_frequencies_survive_the_wire():
    counts = np.array([[1, 0, 5], [2, 2, 2]])
    assert (codec.layers_to_counts(codec.counts_to_layers(counts)) == counts).all()
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    assert (codec.rows_to_frequencies(codec.frequencies_to_rows(frequencies)) == frequencies).all()
    manifest = merger_pb2.Manifest(
        layers=[merger_pb2.Layer(index_map=[0, 0, 1], frequencies=list(row)) for row in frequencies],
        profiles={"copa": codec.profile_to_proto(frequencies)},
    )
    assert (codec.manifest_frequencies(manifest) == frequencies).all()
    assert (codec.manifest_profiles(manifest)["copa"] == frequencies).all()
    assert codec.manifest_index_maps(manifest) == [(0, 0, 1), (0, 0, 1)]


def test_layers_of_different_widths_are_refused():
    with pytest.raises(ValueError, match="differ in experts"):
        codec.layers_to_counts([events_pb2.LayerCounts(counts=[1]), events_pb2.LayerCounts(counts=[1, 2])])


def test_a_task_event_carries_id_sequence_producer_time_and_headers(log, writer):
    writer.task("dispatched", "t1", 1, edge_id="edge-1", predicted_queue_wait=0.25)
    writer.task("completed", "t1", 1, output_tokens=7)
    (record, droppable), (second, _) = log.published
    assert not droppable
    assert (record.topic, record.key, record.headers["event-id"]) == (TASK_EVENTS, "t1", "t1:dispatched:1")
    assert record.headers["proto-message"] == "moedge.v1.TaskEvent"
    event = events.read_task(record)
    assert (event.sequence, event.producer_id, event.edge_id) == (1, "broker-1", "edge-1")
    assert codec.seconds(event.predicted_queue_wait) == 0.25
    assert event.event_time.ToDatetime(UTC) == datetime(2026, 5, 1, tzinfo=UTC)
    assert events.read_task(second).sequence == 2
    assert events.kind_word(event) == "dispatched"


def test_an_activation_report_may_be_dropped_and_a_merge_event_may_not(log, writer):
    writer.activations("edge-1", "v1", np.array([[3, 4]]), num_tasks=20, tasks_by_region={"west": 12}, window_s=2.0, epoch="e1")
    writer.merge("requested", "edge-1", mix={"copa": 1.0}, check_interval=5.0)
    (report, report_droppable), (merge, merge_droppable) = log.published
    assert (report.topic, report_droppable) == (ACTIVATIONS, True)
    assert (merge.topic, merge_droppable) == (MERGE_EVENTS, False)
    window = codec.report_to_window(events.read_activations(report), now_s=100.0)
    assert (window.start_at_s, window.end_at_s, window.num_tasks) == (98.0, 100.0, 20)
    assert (window.counts == [[3, 4]]).all()
    assert window.tasks_by_region == {"west": 12}
    assert codec.seconds(events.read_merge(merge).check_interval) == 5.0


def test_a_field_that_the_event_lacks_is_a_programming_error(writer):
    with pytest.raises(TypeError, match="TaskEvent has no field 'edge'"):
        writer.task("dispatched", "t1", 1, edge="edge-1")


@pytest.mark.parametrize(
    "record",
    [
        Record(TASK_EVENTS, "k", b"\xff\xff\xff"),
        Record(TASK_EVENTS, "k", b""),
        Record(TASK_EVENTS, "k", b"", {"proto-message": "moedge.v1.MergeEvent"}),
    ],
    ids=["garbage", "no event id", "another message"],
)
def test_a_record_that_is_no_event_is_poison(record):
    with pytest.raises(PoisonRecordError):
        events.read_task(record)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_poison(value):
    with contextlib.suppress(PoisonRecordError):
        events.read_activations(Record(ACTIVATIONS, "k", value))
