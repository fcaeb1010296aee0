"""The event log on Apache Kafka, through aiokafka. Nothing here ever makes a caller wait for Kafka.

Publishing fills a bounded outbox that one sender task empties; start-up, outages and restarts of Kafka are retry loops of that task and
of each subscription. Delivery is at least once: readers deduplicate by event id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, MessageSizeTooLargeError

from services.runtime.clock import Clock
from services.runtime.eventlog import EventLogUnavailableError, Handler, Lag, Record
from services.runtime.kafka_consuming import Subscription, partitions_of, to_record
from services.runtime.outbox import Outbox
from services.runtime.topics import create_topics

logger = logging.getLogger(__name__)

# Two minutes of events at 300 tasks/s, three events a task.
OUTBOX_RECORDS = 120_000
BATCH_RECORDS = 500
LINGER_MS = 10
START_TIMEOUT_S = 15.0
ACK_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 20.0
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 5.0


class KafkaEventLog:
    """`EventLog` on Kafka. Entering starts the sender and returns at once; leaving flushes for at most `flush_s` and logs what is left."""

    def __init__(
        self,
        bootstrap: str,
        clock: Clock,
        client_id: str,
        *,
        replication: int = 1,
        creates_topics: bool = True,
        outbox_records: int = OUTBOX_RECORDS,
        flush_s: float = 3.0,
        ack_timeout_s: float = ACK_TIMEOUT_S,
    ) -> None:
        self._bootstrap = bootstrap
        self._clock = clock
        self._client_id = client_id
        self._replication = replication
        self._creates_topics = creates_topics
        self._outbox = Outbox(outbox_records)
        self._flush_s = flush_s
        self._ack_timeout_s = ack_timeout_s
        self._connected = False
        self._sender: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> Self:
        self._sender = asyncio.create_task(self._send_for_ever(), name="event log sender")
        return self

    async def __aexit__(self, *_: object) -> None:
        left = await self.flush(self._flush_s)
        if left:
            logger.error("%d events were not delivered to Kafka at %s before the end", left, self._bootstrap)
        if self._sender is not None:
            self._sender.cancel()
            with suppress(asyncio.CancelledError):
                await self._sender

    def publish(self, record: Record, *, droppable: bool = False) -> None:
        self._outbox.put(record, droppable=droppable)

    async def flush(self, timeout_s: float) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._outbox.empty()
        return len(self._outbox)

    @property
    def outbox_depth(self) -> int:
        return len(self._outbox)

    @property
    def num_dropped(self) -> int:
        return self._outbox.num_dropped

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def lags(self) -> tuple[Lag, ...]:
        return tuple(subscription.lag for subscription in self._subscriptions)

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str, handler: Handler, *, from_start: bool = True) -> AsyncIterator[None]:
        """With `from_start=False`, records published before Kafka has first assigned the group its partitions are not seen."""
        subscription = Subscription(
            self._bootstrap, topic, group, handler, self._clock, self.publish, from_start=from_start, client_id=self._client_id
        )
        consumer = asyncio.create_task(subscription.run(), name=f"consume {topic} as {group}")
        self._subscriptions.append(subscription)
        try:
            yield
        finally:
            self._subscriptions.remove(subscription)
            consumer.cancel()
            with suppress(asyncio.CancelledError):
                await consumer

    async def read_all(self, topic: str) -> AsyncIterator[Record]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, client_id=self._client_id, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            ends = await self._start_reading(consumer, topic)
            while [partition for partition, end in ends.items() if await consumer.position(partition) < end]:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    batches = await consumer.getmany(timeout_ms=1000)
                for partition in sorted(batches):
                    for message in batches[partition]:
                        if message.offset < ends[partition]:
                            yield to_record(message)
        except (KafkaError, TimeoutError, OSError) as error:
            raise EventLogUnavailableError(f"{topic} cannot be read from Kafka at {self._bootstrap}: {error or 'no answer'}") from error
        finally:
            await stopped(consumer)

    async def _start_reading(self, consumer: AIOKafkaConsumer, topic: str) -> dict[TopicPartition, int]:
        """Assign every partition from its beginning; where each one ends."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            await consumer.start()
            partitions = await partitions_of(consumer, topic)
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
            return ends

    # The sender.

    async def _send_for_ever(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            producer = None
            try:
                producer = await self._started_producer()
                wait_s = FIRST_WAIT_S
                await self._send_through(producer)
            except (KafkaError, IllegalStateError, TimeoutError, OSError) as error:
                logger.log(
                    logging.WARNING if self._connected or wait_s == FIRST_WAIT_S else logging.DEBUG,
                    "Kafka at %s does not answer (%s); %d events wait",
                    self._bootstrap,
                    str(error) or type(error).__name__,
                    len(self._outbox),
                )
            except Exception:  # the top of a supervised loop
                logger.exception("the event log's sender failed; starting it again")
            finally:
                self._connected = False
                if producer is not None:
                    await stopped(producer)
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_WAIT_S)

    async def _started_producer(self) -> AIOKafkaProducer:
        if self._creates_topics:
            await create_topics(self._bootstrap, self._replication)
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=LINGER_MS,
            compression_type="zstd",
            request_timeout_ms=int(self._ack_timeout_s * 1000),
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await producer.start()
        except BaseException:
            await stopped(producer)
            raise
        return producer

    async def _send_through(self, producer: AIOKafkaProducer) -> None:
        """Empty the outbox through this producer until something fails."""
        logger.info("connected to Kafka at %s", self._bootstrap)
        self._connected = True
        while True:
            batch = await self._outbox.take(BATCH_RECORDS)
            delivered = [False] * len(batch)
            try:
                async with asyncio.timeout(self._ack_timeout_s):
                    await self._send_batch(producer, batch, delivered)
            finally:
                self._outbox.settled(delivered)

    async def _send_batch(self, producer: AIOKafkaProducer, batch: list[Record], delivered: list[bool]) -> None:
        """Marks in `delivered` what Kafka acknowledged, also when the rest fails."""
        acks: dict[int, Any] = {}
        try:
            for index, record in enumerate(batch):
                headers = [(name, value.encode()) for name, value in record.headers.items()]
                try:
                    acks[index] = await producer.send(record.topic, record.value, key=record.key.encode(), headers=headers)
                except MessageSizeTooLargeError:
                    logger.exception("a record of %d bytes is too large for %s and is lost", len(record.value), record.topic)
                    delivered[index] = True
            await asyncio.gather(*acks.values())
        finally:
            for index, ack in acks.items():
                delivered[index] = ack.done() and not ack.cancelled() and ack.exception() is None


async def stopped(client: Any) -> None:
    """Stop within a bound: aiokafka's own `stop` waits for ever on a broker that does not answer, and leaves tasks when cancelled."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await client.stop()
            return
    except (TimeoutError, KafkaError, OSError) as error:
        logger.debug("%s did not stop cleanly: %r", type(client).__name__, error)
    with suppress(TimeoutError, KafkaError, OSError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            if isinstance(client, AIOKafkaProducer):
                client._message_accumulator.fail_all(KafkaError("closed"))
                sender = client._sender.sender_task
                if sender is not None:
                    sender.cancel()
                await client.client.close()
            else:
                await client._client.close()
