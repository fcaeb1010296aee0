"""The Kafka and the Redis that a benchmark of the broker uses: whether they answer and are free, and what was written to them."""

from __future__ import annotations

import asyncio
import logging

import redis.asyncio
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from services.runtime.errors import RuntimeFault
from services.runtime.eventlog import TASK_EVENTS
from services.runtime.kafka_consuming import partitions_of
from services.runtime.store import EdgeRegistry
from services.runtime.topics import create_topics

TIMEOUT_S = 10.0
START_THEM = 'services/README.md, "A stack of processes by hand", says how to start one'


class PlaceError(RuntimeFault):
    """Kafka or Redis cannot be used; the message says what to do."""


async def check_kafka(bootstrap: str) -> None:
    """Answers, and has the topics."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it reports each refused connection as an error of its own
    try:
        await create_topics(bootstrap)
    except (KafkaError, OSError, TimeoutError) as error:
        raise PlaceError(f"Kafka at {bootstrap} does not answer: give --kafka HOST:PORT of one that runs; {START_THEM}") from error


async def check_redis(client: redis.asyncio.Redis, url: str) -> None:
    """Answers, and no stack lives in it: its broker would send users' tasks to the benchmark's edges."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await client.set("moedge:bench", b"", ex=1)
    except (RedisError, OSError, TimeoutError, ValueError) as error:
        raise PlaceError(f"Redis at {url} does not answer: give --redis URL of one that runs; {START_THEM}") from error
    if living := await EdgeRegistry(client).all():
        raise PlaceError(f"Redis at {url} has edges of a running stack ({', '.join(living)}): give another database, such as {url}/1")


async def num_task_events(bootstrap: str) -> int:
    """Records of the task events' topic, ever."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await consumer.start()
            ends = await consumer.end_offsets(await partitions_of(consumer, TASK_EVENTS))
            return sum(ends.values())
    except (KafkaError, OSError, TimeoutError) as error:
        raise PlaceError(f"Kafka at {bootstrap} stopped answering: {error or type(error).__name__}") from error
    finally:
        await consumer.stop()
