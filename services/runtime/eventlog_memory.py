"""The event log inside one process, for the embedded default and for tests: partitions, groups and positions as Kafka has them, no disk.

Several logs (one a service) may share one `MemoryBroker`. It keeps the newest `max_records` of each partition.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Self

from services.runtime.clock import Clock
from services.runtime.eventlog import Handler, Lag, Record
from services.runtime.events import age_s, event_time
from services.runtime.handling import handle_record

NUM_PARTITIONS = 4


@dataclass(slots=True)
class _Partition:
    first_offset: int = 0
    records: list[Record] = field(default_factory=list)

    @property
    def end_offset(self) -> int:
        return self.first_offset + len(self.records)

    def read(self, offset: int) -> Record | None:
        index = max(0, offset - self.first_offset)
        return self.records[index] if index < len(self.records) else None


@dataclass(slots=True)
class _Group:
    """Members share the partitions of one topic; `positions` are what a commit would have stored."""

    positions: list[int]
    members: list[object] = field(default_factory=list)
    busy: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(NUM_PARTITIONS)])

    def assigned(self, member: object) -> list[int]:
        return [p for p in range(NUM_PARTITIONS) if self.members and self.members[p % len(self.members)] is member]


class MemoryBroker:
    """What several `MemoryEventLog`s share."""

    def __init__(self, max_records: int = 100_000) -> None:
        self._max_records = max_records
        self._topics: dict[str, list[_Partition]] = defaultdict(lambda: [_Partition() for _ in range(NUM_PARTITIONS)])
        self._groups: dict[tuple[str, str], _Group] = {}
        self._changed = asyncio.Event()

    def append(self, record: Record) -> None:
        number = zlib.crc32(record.key.encode()) % NUM_PARTITIONS
        partition = self._topics[record.topic][number]
        partition.records.append(replace(record, partition=number, offset=partition.end_offset))
        if len(partition.records) > self._max_records:
            dropped = len(partition.records) - self._max_records
            del partition.records[:dropped]
            partition.first_offset += dropped
        self.wake()

    def partitions(self, topic: str) -> list[_Partition]:
        return self._topics[topic]

    def group(self, topic: str, name: str, *, from_start: bool) -> _Group:
        key = (topic, name)
        if key not in self._groups:
            partitions = self._topics[topic]
            self._groups[key] = _Group([p.first_offset if from_start else p.end_offset for p in partitions])
        return self._groups[key]

    def wake(self) -> None:
        """Every waiter looks again: a record came, or a group changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        return self._changed


class MemoryEventLog:
    """`EventLog` over a `MemoryBroker`. Publishing is immediate, so the outbox is always empty."""

    def __init__(self, clock: Clock, broker: MemoryBroker | None = None) -> None:
        self._clock = clock
        self._broker = broker or MemoryBroker()
        self._subscribed: list[tuple[str, str, _Group, object]] = []  # topic, group's name, group, this member of it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.flush(0.0)

    def publish(self, record: Record, *, droppable: bool = False) -> None:
        self._broker.append(record)

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str, handler: Handler, *, from_start: bool = True) -> AsyncIterator[None]:
        members = self._broker.group(topic, group, from_start=from_start)
        me = object()
        members.members.append(me)
        mine = (topic, group, members, me)
        self._subscribed.append(mine)
        self._broker.wake()
        consumer = asyncio.create_task(self._consume(topic, members, me, handler), name=f"consume {topic} as {group}")
        try:
            yield
        finally:
            members.members.remove(me)
            self._subscribed.remove(mine)
            self._broker.wake()
            consumer.cancel()
            with suppress(asyncio.CancelledError):
                await consumer

    async def _consume(self, topic: str, group: _Group, me: object, handler: Handler) -> None:
        partitions = self._broker.partitions(topic)
        while True:
            changed = self._broker.changed
            for number in group.assigned(me):
                async with group.busy[number]:
                    while (record := partitions[number].read(group.positions[number])) is not None and number in group.assigned(me):
                        dead_letter = await handle_record(record, handler, self._clock)
                        if dead_letter is not None:
                            self._broker.append(dead_letter)
                        group.positions[number] = record.offset + 1
            await changed.wait()

    async def read_all(self, topic: str) -> AsyncIterator[Record]:
        snapshot = [list(partition.records) for partition in self._broker.partitions(topic)]
        for records in snapshot:
            for record in records:
                yield record

    async def flush(self, timeout_s: float) -> int:
        return 0

    @property
    def outbox_depth(self) -> int:
        return 0

    @property
    def num_dropped(self) -> int:
        return 0

    @property
    def connected(self) -> bool:
        return True

    @property
    def lags(self) -> tuple[Lag, ...]:
        return tuple(self._lag(*subscribed) for subscribed in self._subscribed)

    def _lag(self, topic: str, group: str, members: _Group, me: object) -> Lag:
        partitions = self._broker.partitions(topic)
        waiting = {n: partitions[n].end_offset - members.positions[n] for n in members.assigned(me)}
        heads = [partitions[n].read(members.positions[n]) for n, num_records in waiting.items() if num_records > 0]
        times = [at for head in heads if head is not None and (at := event_time(head)) is not None]
        return Lag(topic, group, sum(max(0, n) for n in waiting.values()), age_s(min(times, default=None), self._clock))
