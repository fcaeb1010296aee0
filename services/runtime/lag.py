"""How far any consumer group is behind, asked of Kafka without joining the group. A log tells of its own subscriptions itself (`lags`)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from services.runtime.clock import Clock
from services.runtime.eventlog import EventLogUnavailableError, Lag
from services.runtime.events import age_s, event_time
from services.runtime.kafka_consuming import ended, partitions_of, to_record

TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0


async def group_lag(bootstrap: str, group: str, topics: Collection[str], clock: Clock, timeout_s: float = TIMEOUT_S) -> tuple[Lag, ...]:
    """One lag a topic. A partition that the group never stored a position for counts from its beginning.

    Raises `EventLogUnavailableError` when Kafka does not answer in time. Costs a connection: call it on a timer, never on a request path.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        async with asyncio.timeout(timeout_s):
            await consumer.start()
            return tuple([await _lag(consumer, group, topic, clock) for topic in sorted(topics)])
    except (KafkaError, TimeoutError, OSError) as error:
        raise EventLogUnavailableError(f"the lag of {group} cannot be read from Kafka at {bootstrap}: {error or 'no answer'}") from error
    finally:
        await ended(consumer.stop(), STOP_TIMEOUT_S)


async def _lag(consumer: AIOKafkaConsumer, group: str, topic: str, clock: Clock) -> Lag:
    partitions = await partitions_of(consumer, topic)
    if not partitions:
        return Lag(topic, group, 0, 0.0)
    consumer.assign(partitions)
    ends = await consumer.end_offsets(partitions)
    begins = await consumer.beginning_offsets(partitions)
    positions = {partition: await consumer.committed(partition) for partition in partitions}
    starts = {p: max(begins[p], begins[p] if positions[p] is None else positions[p]) for p in partitions}
    waiting = [partition for partition in partitions if ends[partition] > starts[partition]]
    num_records = sum(ends[partition] - starts[partition] for partition in waiting)
    return Lag(topic, group, num_records, age_s(await _oldest(consumer, waiting, starts), clock))


async def _oldest(consumer: AIOKafkaConsumer, waiting: Sequence[TopicPartition], starts: dict[TopicPartition, int]) -> datetime | None:
    """Event time of the oldest of the first waiting records."""
    times: list[datetime] = []
    for partition in waiting:
        consumer.seek(partition, starts[partition])
        batches = await consumer.getmany(partition, timeout_ms=1000, max_records=1)
        times += [at for messages in batches.values() for message in messages if (at := event_time(to_record(message))) is not None]
    return min(times, default=None)
