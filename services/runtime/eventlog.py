"""The event log: the one abstraction over Kafka. Publish and subscribe, nothing else; delivery is at least once.

Implementations: `eventlog_kafka.KafkaEventLog`, `eventlog_memory.MemoryEventLog`. Payloads are protobuf bytes, the key decides the order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

TASK_EVENTS = "moedge.task-events.v1"
ACTIVATIONS = "moedge.activations.v1"
MERGE_EVENTS = "moedge.merge-events.v1"


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    partition: int = -1
    offset: int = -1


Handler = Callable[[Record], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer group is behind in a topic."""

    topic: str
    group: str
    num_records: int  # not yet handled
    behind_s: float  # age of an event that waits, or of the last one handled, by event time; 0 where nothing waits


class EventLog(Protocol):
    """An async context manager: entering never blocks on an absent Kafka, leaving flushes within a bound."""

    def publish(self, record: Record, *, droppable: bool = False) -> None:
        """Put into the bounded outbox and return at once. Droppable records (statistics) give way, oldest first, when it is full;
        others raise `OutboxFullError`."""
        ...

    def subscribe(self, topic: str, group: str, handler: Handler, *, from_start: bool = True) -> AbstractAsyncContextManager[None]:
        """Run `handler` for each record of the topic within the `async with`; the position of `group` moves after the handler returned.
        A handler that raises `PoisonRecordError` sends the record to `<topic>.dlq`."""
        ...

    def read_all(self, topic: str) -> AsyncIterator[Record]:
        """Every record from the beginning to the end as of the call (compacted topics: rebuild state)."""
        ...

    async def flush(self, timeout_s: float) -> int:
        """Wait for the outbox to empty; the number of records still in it."""
        ...

    @property
    def outbox_depth(self) -> int: ...

    @property
    def num_dropped(self) -> int:
        """Records that gave way or were refused because the outbox was full."""
        ...

    @property
    def connected(self) -> bool: ...

    @property
    def lags(self) -> Sequence[Lag]:
        """Of this log's own subscriptions, each over the partitions that it has."""
        ...


class OutboxFullError(Exception):
    """The outbox holds as many undroppable records as it may."""


class PoisonRecordError(Exception):
    """A record that no retry will make readable."""


class EventLogUnavailableError(Exception):
    """The log could not be read within its time limit."""
