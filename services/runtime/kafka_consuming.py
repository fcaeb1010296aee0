"""One subscription to a Kafka topic: survives outages, moves its position after the handler, never stalls on a bad record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from services.runtime.clock import Clock
from services.runtime.eventlog import Handler, Lag, Record
from services.runtime.events import age_s, event_time
from services.runtime.handling import handle_record

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
COMMIT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
POSITION_TIMEOUT_S = 1.0
POLL_S = 0.5
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 5.0


def to_record(message: Any) -> Record:
    """From aiokafka's record. Text that is not UTF-8 is replaced: a bad header must not stop a partition."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers}
    key = (message.key or b"").decode(errors="replace")
    return Record(message.topic, key, message.value or b"", headers, message.partition, message.offset)


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """Of a started consumer, also where the topic was created after its first look at Kafka; empty where there is no such topic."""
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        await consumer._client.force_metadata_update()
        if topic in await consumer.topics():
            consumer._client.add_topic(topic)
            await consumer._client._wait_on_metadata(topic)
            numbers = consumer.partitions_for_topic(topic)
    return [TopicPartition(topic, number) for number in sorted(numbers or ())]


class Subscription:
    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        handler: Handler,
        clock: Clock,
        publish: Callable[[Record], None],
        *,
        from_start: bool,
        client_id: str,
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._handler = handler
        self._clock = clock
        self._publish = publish
        self._from_start = from_start
        self._client_id = client_id
        self._running: AIOKafkaConsumer | None = None
        self._next: dict[TopicPartition, int] = {}  # the record that is handled next
        self._last: Record | None = None

    @property
    def lag(self) -> Lag:
        """Over the partitions that this member has. While Kafka does not answer: as last known."""
        consumer = self._running
        assigned = consumer.assignment() if consumer is not None else set()
        ends = {partition: consumer.highwater(partition) for partition in assigned} if consumer is not None else {}
        num_records = sum(max(0, (end or 0) - self._next[partition]) for partition, end in ends.items() if partition in self._next)
        newest = event_time(self._last) if num_records and self._last is not None else None
        return Lag(self._topic, self._group, num_records, age_s(newest, self._clock))

    async def run(self) -> None:
        """Consume until cancelled, starting over after every failure of Kafka."""
        wait_s = FIRST_WAIT_S
        while True:
            consumer = self._consumer()
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await consumer.start()
                wait_s = FIRST_WAIT_S
                self._running = consumer
                await self._consume(consumer)
            except (KafkaError, IllegalStateError, TimeoutError, OSError) as error:
                logger.log(
                    logging.WARNING if wait_s == FIRST_WAIT_S else logging.DEBUG,
                    "%s cannot be consumed as %s (%s); trying again",
                    self._topic,
                    self._group,
                    str(error) or type(error).__name__,
                )
            except Exception:  # the top of a supervised loop
                logger.exception("consuming %s as %s failed; starting again", self._topic, self._group)
            finally:
                await self._stopped(consumer)
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_WAIT_S)

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if self._from_start else "latest",
            max_poll_records=500,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=3_000,
            metadata_max_age_ms=10_000,
        )

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        assigned: frozenset[TopicPartition] = frozenset()
        while True:
            batches = await consumer.getmany(timeout_ms=int(POLL_S * 1000))
            if consumer.assignment() != assigned:
                assigned = consumer.assignment()
                self._next = await self._where(consumer, assigned, batches)
            positions: dict[TopicPartition, int] = {}
            try:
                for partition in sorted(batches):
                    for message in batches[partition]:
                        record = to_record(message)
                        await self._handle(record)
                        self._last = record
                        self._next[partition] = positions[partition] = message.offset + 1
            finally:
                if positions:
                    await self._commit(consumer, positions)

    async def _where(
        self, consumer: AIOKafkaConsumer, assigned: Iterable[TopicPartition], batches: Mapping[TopicPartition, Sequence[Any]]
    ) -> dict[TopicPartition, int]:
        """Where handling goes on in newly assigned partitions; those whose position is not known yet are left out."""
        found = {partition: messages[0].offset for partition, messages in batches.items() if messages}
        for partition in set(assigned) - found.keys():
            with suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(POSITION_TIMEOUT_S):
                    found[partition] = await consumer.position(partition)
        return found

    async def _handle(self, record: Record) -> None:
        dead_letter = await handle_record(record, self._handler, self._clock)
        if dead_letter is not None:
            self._publish(dead_letter)

    async def _commit(self, consumer: AIOKafkaConsumer, positions: dict[TopicPartition, int]) -> None:
        """A commit that a rebalance refuses means that another member sees the records again: they are deduplicated."""
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await consumer.commit(positions)
        except (CommitFailedError, IllegalStateError) as error:
            logger.info("position of %s not stored (%s); records will be seen again", self._group, error)

    async def _stopped(self, consumer: AIOKafkaConsumer) -> None:
        if not await ended(consumer.stop(), STOP_TIMEOUT_S):
            await ended(consumer._client.close(), STOP_TIMEOUT_S)


async def ended(call: Coroutine[Any, Any, None], timeout_s: float) -> bool:
    """Whether the call ended well in time; one that did not is cancelled and left behind.

    It runs in a task of its own: aiokafka's `stop` may raise the CancelledError of a task that it cancelled itself, and may swallow ours.
    In the subscription's own task the one would end the subscription silently, the other hold it up for ever.
    """
    task = asyncio.create_task(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.cancel()
    if not done or task.cancelled():
        logger.debug("a consumer did not stop within %s s", timeout_s)
        return False
    error = task.exception()
    if error is not None:
        logger.debug("a consumer stopped with %s", str(error) or type(error).__name__)
    return error is None
