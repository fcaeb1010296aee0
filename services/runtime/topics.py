"""Kafka topics: names, partitions and retention, created explicitly (auto-create stays off)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS, TASK_EVENTS
from services.runtime.handling import DLQ_SUFFIX

CREATE_TIMEOUT_S = 15.0

logger = logging.getLogger(__name__)

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    num_partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


TOPICS: tuple[Topic, ...] = (
    Topic(TASK_EVENTS, 6, {"retention.ms": str(72 * HOUR_MS)}),
    Topic(ACTIVATIONS, 3, {"retention.ms": str(24 * HOUR_MS)}),
    Topic(MERGE_EVENTS, 1, {"cleanup.policy": "compact"}),
)


def with_dead_letters(topics: Iterable[Topic]) -> tuple[Topic, ...]:
    listed = tuple(topics)
    dead = (Topic(topic.name + DLQ_SUFFIX, 1, {"retention.ms": str(7 * 24 * HOUR_MS)}) for topic in listed)
    return (*listed, *dead)


async def create_topics(bootstrap: str, replication: int = 1, topics: Iterable[Topic] = TOPICS) -> tuple[str, ...]:
    """Create what is missing, dead-letter topics included; the names created. Raises a `KafkaError` or TimeoutError when that fails."""
    wanted = with_dead_letters(topics)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(CREATE_TIMEOUT_S * 1000))
    try:
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            await admin.start()
            present = set(await admin.list_topics())
            missing = [topic for topic in wanted if topic.name not in present]
            if missing:
                new = [NewTopic(t.name, t.num_partitions, replication, topic_configs=dict(t.config)) for t in missing]
                _raise_on_error(await admin.create_topics(new))
    finally:
        await _closed(admin)
    created = tuple(topic.name for topic in missing)
    if created:
        logger.info("created topics %s", ", ".join(created))
    return created


def _raise_on_error(response: object) -> None:
    for name, code, *rest in getattr(response, "topic_errors", ()):
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(f"topic {name}: {(rest[0] if rest else None) or error.__name__}")


async def _closed(admin: AIOKafkaAdminClient) -> None:
    try:
        async with asyncio.timeout(2.0):
            await admin.close()
    except (TimeoutError, KafkaError, OSError) as error:
        logger.debug("the admin client did not close cleanly: %r", error)
