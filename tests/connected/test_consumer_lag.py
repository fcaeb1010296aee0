"""How far a group is behind, asked of a real Kafka from outside the group."""

import uuid

import pytest

from services.runtime.clock import SystemClock
from services.runtime.eventlog import ACTIVATIONS, TASK_EVENTS, EventLogUnavailableError
from services.runtime.eventlog_kafka import KafkaEventLog
from services.runtime.events import EventWriter
from services.runtime.lag import group_lag
from services.runtime.topics import create_topics
from tests.fakes.processes import free_port
from tests.fakes.waiting import until

pytestmark = [pytest.mark.connected]


async def test_the_lag_of_a_group_counts_what_it_has_not_handled(kafka_bootstrap):
    clock, group, seen = SystemClock(), f"group-{uuid.uuid4().hex[:8]}", []
    await create_topics(kafka_bootstrap)

    async def handle(record):
        seen.append(record)

    async with KafkaEventLog(kafka_bootstrap, clock, "test") as log:
        writer = EventWriter(log, "test", clock)

        async def written(count):
            for _ in range(count):
                writer.task("started", uuid.uuid4().hex, 1)
            assert await log.flush(20.0) == 0

        await written(5)
        before = {lag.topic: lag for lag in await group_lag(kafka_bootstrap, group, [TASK_EVENTS, ACTIVATIONS], clock)}
        assert before[TASK_EVENTS].num_records >= 5
        assert before[TASK_EVENTS].behind_s > 0.0
        async with log.subscribe(TASK_EVENTS, group, handle):
            await until(lambda: len(seen) >= before[TASK_EVENTS].num_records, timeout_s=30.0, what="all handled")
            await until(lambda: [lag.num_records for lag in log.lags] == [0], timeout_s=30.0, what="no lag")
        await written(7)
        [after] = await group_lag(kafka_bootstrap, group, [TASK_EVENTS], clock)
        assert after.num_records == 7
        assert 0.0 < after.behind_s < 60.0


async def test_a_topic_that_does_not_exist_has_no_lag(kafka_bootstrap):
    [lag] = await group_lag(kafka_bootstrap, "nobody", [f"moedge.test-{uuid.uuid4().hex[:8]}.v1"], SystemClock())
    assert (lag.num_records, lag.behind_s) == (0, 0.0)


async def test_without_kafka_the_answer_is_an_error_in_time():
    clock = SystemClock()
    began_at_s = clock.now_s()
    with pytest.raises(EventLogUnavailableError, match="lag of nobody"):
        await group_lag(f"127.0.0.1:{free_port()}", "nobody", [TASK_EVENTS], clock, timeout_s=2.0)
    assert clock.now_s() - began_at_s < 10.0
