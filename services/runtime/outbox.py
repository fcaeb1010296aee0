"""A bounded queue of records on their way to Kafka: statistics give way, oldest first, everything else is kept or refused."""

from __future__ import annotations

import asyncio
from collections import deque

from services.runtime.eventlog import OutboxFullError, Record


class Outbox:
    """Records taken by the sender stay counted until `acknowledged` or `returned`."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity: at least 1")
        self._capacity = capacity
        self._kept: deque[Record] = deque()
        self._droppable: deque[Record] = deque()
        self._taken: list[tuple[Record, bool]] = []  # with the sender: record, droppable
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._kept) + len(self._droppable) + len(self._taken)

    def put(self, record: Record, *, droppable: bool) -> None:
        """Raises `OutboxFullError` when it is full of records that may not be dropped."""
        if len(self) >= self._capacity:
            if self._droppable:
                self._droppable.popleft()
            elif not droppable:
                raise OutboxFullError(f"the outbox holds {len(self)} records that may not be dropped")
            self.num_dropped += 1
            if len(self) >= self._capacity:
                return
        (self._droppable if droppable else self._kept).append(record)
        self._filled.set()
        self._emptied.clear()

    async def take(self, max_records: int) -> list[Record]:
        """Wait for records and hand over the oldest; those that may not be dropped go first."""
        while not (self._kept or self._droppable):
            self._filled.clear()
            await self._filled.wait()
        assert not self._taken, "the last batch was neither acknowledged nor returned"
        for queue, droppable in ((self._kept, False), (self._droppable, True)):
            while queue and len(self._taken) < max_records:
                self._taken.append((queue.popleft(), droppable))
        return [record for record, _ in self._taken]

    def settled(self, delivered: list[bool]) -> None:
        """One flag for each record taken: delivered ones are gone, the others go back to the front, in order."""
        again = [entry for entry, done in zip(self._taken, delivered, strict=True) if not done]
        self._taken = []
        self._kept.extendleft(record for record, droppable in reversed(again) if not droppable)
        self._droppable.extendleft(record for record, droppable in reversed(again) if droppable)
        if not len(self):
            self._emptied.set()

    async def empty(self) -> None:
        await self._emptied.wait()
