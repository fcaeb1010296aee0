"""How one record of a subscription is handled, in every event log: a few tries, then the dead-letter topic. A partition never stalls."""

from __future__ import annotations

import logging

from services.runtime.clock import Clock
from services.runtime.eventlog import Handler, PoisonRecordError, Record

logger = logging.getLogger(__name__)

DLQ_SUFFIX = ".dlq"
NUM_TRIES = 3
RETRY_AFTER_S = 0.05


async def handle_record(record: Record, handler: Handler, clock: Clock) -> Record | None:
    """Run the handler, at most `NUM_TRIES` times; once where it says that no retry helps. Returns the dead letter to publish, if any."""
    for attempt in range(1, NUM_TRIES + 1):
        try:
            await handler(record)
            return None
        except PoisonRecordError as error:
            logger.warning("poison record at %s/%d/%d: %s", record.topic, record.partition, record.offset, error)
            return dead_letter(record, error)
        except Exception as error:  # the top of a supervised loop
            if attempt == NUM_TRIES:
                logger.exception("record at %s/%d/%d failed %d times", record.topic, record.partition, record.offset, attempt)
                return dead_letter(record, error)
            await clock.sleep(RETRY_AFTER_S * attempt)
    raise AssertionError("unreachable")


def dead_letter(record: Record, error: Exception) -> Record:
    """The record as it goes to `<topic>.dlq`, with where it came from and why."""
    headers = {
        **record.headers,
        "dlq-topic": record.topic,
        "dlq-partition": str(record.partition),
        "dlq-offset": str(record.offset),
        "dlq-error": f"{type(error).__name__}: {error}"[:500],
    }
    return Record(record.topic + DLQ_SUFFIX, record.key, record.value, headers)
