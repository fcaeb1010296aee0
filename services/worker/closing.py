"""Closes tasks whose broker died: writes the terminal events that the broker would have written, and no others.

The rule. A broker writes the terminal event of each of its tasks. The worker remembers how each call ended and writes the same event
(same task, kind and attempt, hence the same event id) once the broker is seen to be dead: its sequence number in Redis stood still.
- A call that completed is written as COMPLETED. If the broker had written it too, the ids are equal and deduplication keeps one.
- A call that was lost (its stream ended before its task) is written as FAILED, CALLER_LOST. A broker that ends a call itself (user gone,
  deadline, another edge tried) is alive afterwards, settles the task under its own rules, and the worker forgets it.
- A call that the worker itself refused or failed is the broker's to settle and not remembered.
While Redis does not answer nobody can be seen dead, and nothing is written. Calls without a broker are closed by the worker at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis.asyncio
from redis.exceptions import RedisError

from services.runtime.clock import Clock
from services.runtime.eventlog import OutboxFullError
from services.runtime.events import EventWriter
from services.runtime.store import WAIT_KEY, heeding_cancellation

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.5
DEAD_AFTER_S = 3.5  # a living broker's sequence number moves at least once a second
COMPLETED_KEPT_S = 10.0  # longest that a living broker may take to write a completed task down
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How one call of a broker ended: what the terminal event would say."""

    broker_id: str
    task_id: str
    attempt: int
    kind: str  # "completed" | "failed"
    fields: Mapping[str, Any]


class BrokerPulse(Protocol):
    """What brokers show of themselves."""

    async def sequences(self) -> Mapping[str, int] | None:
        """A number by broker id that moves while the broker lives; None when it cannot be told."""
        ...


class RedisPulse:
    """The newest sequence number among a broker's fields of outstanding work, over all edges."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client

    async def sequences(self) -> Mapping[str, int] | None:
        return await heeding_cancellation(self._answer())

    async def _answer(self) -> Mapping[str, int] | None:
        try:
            async with asyncio.timeout(LOOK_INTERVAL_S):
                return await self._read()
        except (RedisError, OSError, TimeoutError):
            return None

    async def _read(self) -> Mapping[str, int]:
        newest: dict[str, int] = {}
        async for key in self._redis.scan_iter(match=f"{WAIT_KEY}*", count=1000):
            for name, value in (await self._redis.hgetall(key)).items():
                broker_id = name.decode() if isinstance(name, bytes) else str(name)
                newest[broker_id] = max(newest.get(broker_id, 0), _sequence(value))
        return newest


def _sequence(value: bytes | str) -> int:
    try:
        return int(json.loads(value)["seq"])
    except (ValueError, KeyError, TypeError):
        return 0


@dataclass(slots=True)
class _Broker:
    sequence: int | None = None
    moved_at_s: float | None = None  # when the sequence number was last seen to move
    watched_since_s: float | None = None  # Redis has answered without a break since then
    ends: list[tuple[float, CallEnd]] = field(default_factory=list)


class TaskCloser:
    def __init__(self, events: EventWriter, pulse: BrokerPulse, clock: Clock) -> None:
        self._events = events
        self._pulse = pulse
        self._clock = clock
        self._brokers: dict[str, _Broker] = defaultdict(_Broker)
        self.num_closed = 0
        self.num_forgotten_unseen = 0

    @property
    def num_remembered(self) -> int:
        return sum(len(broker.ends) for broker in self._brokers.values())

    def ended(self, end: CallEnd) -> None:
        """A call is over. Without a broker the event is written at once."""
        if not end.broker_id:
            self._write(end)
            return
        if self.num_remembered >= MAX_REMEMBERED:
            self.num_forgotten_unseen += 1
            return
        self._brokers[end.broker_id].ends.append((self._clock.now_s(), end))

    async def run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_INTERVAL_S)
            if self._brokers:
                await self.look()

    async def look(self) -> None:
        """One look at the brokers that calls are remembered for."""
        sequences = await self._pulse.sequences()
        now_s = self._clock.now_s()
        for broker_id, broker in sorted(self._brokers.items()):
            if sequences is None:
                broker.watched_since_s = None
                continue
            if broker.watched_since_s is None:
                broker.watched_since_s = now_s
            restarted = self._see(broker, sequences.get(broker_id), now_s)
            if restarted or self._is_dead(broker, now_s):
                for _, end in broker.ends:
                    self._write(end)
                broker.ends.clear()
        for broker_id in [broker_id for broker_id, broker in self._brokers.items() if not broker.ends]:
            del self._brokers[broker_id]

    def _see(self, broker: _Broker, sequence: int | None, now_s: float) -> bool:
        """Whether another process goes by the same name: its numbers start again."""
        if sequence is not None and broker.sequence is not None and sequence < broker.sequence:
            broker.sequence = sequence
            return True
        if sequence is not None and broker.sequence is not None and sequence != broker.sequence:
            broker.moved_at_s = now_s
            broker.ends = [(at_s, end) for at_s, end in broker.ends if self._is_open(at_s, end, now_s)]
        broker.sequence = sequence if sequence is not None else broker.sequence
        return False

    def _is_open(self, ended_at_s: float, end: CallEnd, now_s: float) -> bool:
        """Whether a broker that is alive now may still leave the task unclosed by dying."""
        if end.kind == "completed":
            return now_s - ended_at_s < COMPLETED_KEPT_S
        return now_s - ended_at_s < 2 * LOOK_INTERVAL_S

    def _is_dead(self, broker: _Broker, now_s: float) -> bool:
        """Silent for long enough, after the last call of it ended and while somebody looked."""
        if broker.watched_since_s is None or not broker.ends:
            return False
        since_s = max(broker.watched_since_s, broker.moved_at_s or 0.0, max(at_s for at_s, _ in broker.ends))
        return now_s - since_s >= DEAD_AFTER_S

    def _write(self, end: CallEnd) -> None:
        try:
            self._events.task(end.kind, end.task_id, end.attempt, **end.fields)
        except OutboxFullError:
            logger.error("outbox full: the end of task %s (%s) was not written", end.task_id, end.kind, extra={"task_id": end.task_id})
            return
        self.num_closed += bool(end.broker_id)
