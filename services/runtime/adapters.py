"""Which event log a service gets, from its settings: Kafka where one is named, else the one inside the process."""

from __future__ import annotations

from services.runtime.clock import Clock
from services.runtime.eventlog_kafka import KafkaEventLog
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.settings import ServiceSettings


def open_event_log(
    settings: ServiceSettings, clock: Clock, *, client_id: str = "moedge", memory: MemoryBroker | None = None
) -> KafkaEventLog | MemoryEventLog:
    """Not entered yet: `async with open_event_log(...) as log`. `memory` is what several logs of one process share."""
    if settings.kafka_bootstrap is None:
        return MemoryEventLog(clock, memory)
    return KafkaEventLog(settings.kafka_bootstrap, clock, client_id, replication=settings.kafka_replication)
