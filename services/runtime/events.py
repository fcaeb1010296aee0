"""Writes events: fills id, sequence, producer and time, encodes, and puts the record into the event log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from moedge.v1 import events_pb2
from services.core.merging.values import Counts
from services.runtime.clock import Clock
from services.runtime.codec import counts_to_layers, duration
from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS, TASK_EVENTS, EventLog, PoisonRecordError, Record
from services.runtime.scope import event_headers

CONTENT_TYPE = "application/x-protobuf"
SCHEMA_VERSION = "1"

# Kinds by the word that event ids and callers use.
TASK_KINDS: Mapping[str, events_pb2.TaskEventKind.ValueType] = {
    "dispatched": events_pb2.TASK_EVENT_KIND_DISPATCHED,
    "started": events_pb2.TASK_EVENT_KIND_STARTED,
    "completed": events_pb2.TASK_EVENT_KIND_COMPLETED,
    "failed": events_pb2.TASK_EVENT_KIND_FAILED,
    "rejected": events_pb2.TASK_EVENT_KIND_REJECTED,
}
MERGE_KINDS: Mapping[str, events_pb2.MergeEventKind.ValueType] = {
    "requested": events_pb2.MERGE_EVENT_KIND_REQUESTED,
    "built": events_pb2.MERGE_EVENT_KIND_BUILT,
    "swapped": events_pb2.MERGE_EVENT_KIND_SWAPPED,
    "failed": events_pb2.MERGE_EVENT_KIND_FAILED,
    "kept": events_pb2.MERGE_EVENT_KIND_KEPT,
}
TERMINAL_KINDS = frozenset({"completed", "failed", "rejected"})

_MESSAGES: Mapping[str, type[events_pb2.TaskEvent] | type[events_pb2.ActivationReport] | type[events_pb2.MergeEvent]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (events_pb2.TaskEvent, events_pb2.ActivationReport, events_pb2.MergeEvent)
}

# By field of each message.
_IS_DURATION: Mapping[str, Mapping[str, bool]] = {
    name: {
        field.name: field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name
        for field in kind.DESCRIPTOR.fields
    }
    for name, kind in _MESSAGES.items()
}

MessageT = TypeVar("MessageT", bound=Message)


class EventWriter:
    """One per process and event log. `sequence` counts this producer's events, so that a reader sees gaps."""

    def __init__(self, log: EventLog, producer_id: str, clock: Clock) -> None:
        self._log = log
        self._producer_id = producer_id
        self._clock = clock
        self._sequence = 0

    def task(self, kind: str, task_id: str, attempt: int, **fields: Any) -> events_pb2.TaskEvent:
        """`kind`: dispatched, started, completed, failed, rejected. Other fields by their names in the proto; durations as seconds.

        Raises `OutboxFullError` rather than lose the event.
        """
        event = events_pb2.TaskEvent(
            event_id=f"{task_id}:{kind}:{attempt}",
            task_id=task_id,
            kind=TASK_KINDS[kind],
            attempt=attempt,
            producer_id=self._producer_id,
            sequence=self._next(),
            event_time=self._now(),
            **_messages(events_pb2.TaskEvent, fields),
        )
        self._log.publish(to_record(TASK_EVENTS, task_id, event, event.event_id))
        return event

    def activations(
        self,
        edge_id: str,
        version: str,
        counts: Counts,
        *,
        num_tasks: int,
        window_s: float,
        epoch: str = "",
        tasks_by_region: Mapping[str, int] | None = None,
    ) -> events_pb2.ActivationReport:
        """Sums over a window. A report gives way when the outbox is full."""
        sequence = self._next()
        report = events_pb2.ActivationReport(
            event_id=f"{edge_id}:{epoch or self._producer_id}:{sequence}",
            edge_id=edge_id,
            version=version,
            num_tasks=num_tasks,
            layers=counts_to_layers(counts),
            event_time=self._now(),
            window=duration(window_s),
            sequence=sequence,
            epoch=epoch,
            tasks_by_region=tasks_by_region,
        )
        self._log.publish(to_record(ACTIVATIONS, edge_id, report, report.event_id), droppable=True)
        return report

    def merge(self, kind: str, edge_id: str, **fields: Any) -> events_pb2.MergeEvent:
        """`kind`: requested, built, swapped, failed, kept. Other fields by their names in the proto; durations as seconds."""
        event = events_pb2.MergeEvent(
            event_id=f"{edge_id}:{kind}:{self._producer_id}:{self._next()}",
            edge_id=edge_id,
            kind=MERGE_KINDS[kind],
            event_time=self._now(),
            **_messages(events_pb2.MergeEvent, fields),
        )
        self._log.publish(to_record(MERGE_EVENTS, edge_id, event, event.event_id))
        return event

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _now(self) -> Timestamp:
        message = Timestamp()
        message.FromDatetime(self._clock.wall())
        return message


def to_record(topic: str, key: str, message: Message, event_id: str) -> Record:
    headers = {
        "content-type": CONTENT_TYPE,
        "proto-message": message.DESCRIPTOR.full_name,
        "schema-version": SCHEMA_VERSION,
        "event-id": event_id,
        **event_headers(),
    }
    return Record(topic, key, message.SerializeToString(), headers)


def read_task(record: Record) -> events_pb2.TaskEvent:
    return _parsed(record, events_pb2.TaskEvent())


def read_activations(record: Record) -> events_pb2.ActivationReport:
    return _parsed(record, events_pb2.ActivationReport())


def read_merge(record: Record) -> events_pb2.MergeEvent:
    return _parsed(record, events_pb2.MergeEvent())


def kind_word(event: events_pb2.TaskEvent | events_pb2.MergeEvent) -> str:
    """The word of an event's kind; "unknown" for one that a newer build wrote."""
    kinds: Mapping[str, int] = TASK_KINDS if isinstance(event, events_pb2.TaskEvent) else MERGE_KINDS
    return next((word for word, value in kinds.items() if value == event.kind), "unknown")


def event_time(record: Record) -> datetime | None:
    """When the event of a record happened, by its producer's clock; None where the record does not tell."""
    kind = _MESSAGES.get(record.headers.get("proto-message", ""))
    if kind is None:
        return None
    try:
        message = kind.FromString(record.value)
    except DecodeError:
        return None
    return message.event_time.ToDatetime(UTC) if message.HasField("event_time") else None


def age_s(at: datetime | None, clock: Clock) -> float:
    """Compares clocks of two hosts: good to a second, for people and alerts, never for a decision. 0 where the instant is unknown."""
    return 0.0 if at is None else max(0.0, (clock.wall() - at).total_seconds())


def _parsed(record: Record, message: MessageT) -> MessageT:
    """Raises `PoisonRecordError` for bytes that are not this message, or that name another."""
    named = record.headers.get("proto-message", message.DESCRIPTOR.full_name)
    if named != message.DESCRIPTOR.full_name:
        raise PoisonRecordError(f"holds {named}, not {message.DESCRIPTOR.full_name}")
    try:
        message.ParseFromString(record.value)
    except DecodeError as error:
        raise PoisonRecordError(f"not a {message.DESCRIPTOR.full_name}: {error}") from error
    if not getattr(message, "event_id", ""):
        raise PoisonRecordError(f"a {message.DESCRIPTOR.full_name} without event_id")
    return message


def _messages(message: type[Message], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds become Durations where the proto has one; everything else is left to protobuf's own checks."""
    known = _IS_DURATION[message.DESCRIPTOR.full_name]
    converted: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in known:
            raise TypeError(f"{message.DESCRIPTOR.name} has no field {name!r}")
        converted[name] = duration(value) if known[name] and isinstance(value, int | float) else value
    return converted
