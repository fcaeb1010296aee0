"""The event log while Kafka is absent, frozen, killed and started again: publishing never waits, nothing is lost, stopping is bounded."""

import asyncio
import uuid

import pytest

from services.runtime.clock import SystemClock
from services.runtime.eventlog import OutboxFullError, Record
from services.runtime.eventlog_kafka import KafkaEventLog
from services.runtime.topics import Topic, create_topics
from tests.fakes.processes import KAFKA_START, KafkaProcess, free_port, started_kafka
from tests.fakes.waiting import until

pytestmark = [pytest.mark.connected, pytest.mark.timeout(240)]

WAIT_S = 60.0


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """A Kafka of this module's own: it gets hurt."""
    with started_kafka(tmp_path_factory.mktemp("hurt-kafka")) as kafka:
        yield kafka


@pytest.fixture
async def topic(kafka):
    name = f"moedge.test-{uuid.uuid4().hex[:8]}.v1"
    await create_topics(kafka.bootstrap, topics=[Topic(name, 2)])
    return name


def make_log(kafka, **overrides):
    return KafkaEventLog(kafka.bootstrap, SystemClock(), "outages", **{"creates_topics": False, "ack_timeout_s": 5.0} | overrides)


def make_record(topic, number):
    return Record(topic, f"key-{number}", str(number).encode(), {"event-id": str(number)})


def elapsed(started_at_s):
    return asyncio.get_running_loop().time() - started_at_s


async def values_in(log, topic):
    return {int(record.value) async for record in log.read_all(topic)}


async def test_events_published_while_kafka_is_killed_arrive_after_it_is_back(kafka, topic):
    handled = []

    async def handle(record):
        handled.append(int(record.value))

    async with make_log(kafka) as log, log.subscribe(topic, f"group-{topic}", handle):
        log.publish(make_record(topic, 0))
        await until(lambda: handled == [0], WAIT_S, "the first record")
        await asyncio.to_thread(kafka.stop, kill=True)
        started_at_s = asyncio.get_running_loop().time()
        for number in range(1, 301):
            log.publish(make_record(topic, number))
        assert elapsed(started_at_s) < 0.5
        await until(lambda: not log.connected, WAIT_S, "the log noticing")
        assert log.outbox_depth == 300
        await asyncio.to_thread(kafka.start)
        assert await log.flush(WAIT_S) == 0
        await until(lambda: set(handled) == set(range(301)), WAIT_S, "every record handled")
        assert await values_in(log, topic) == set(range(301))


async def test_a_frozen_kafka_holds_up_nobody_and_loses_nothing(kafka, topic):
    async with make_log(kafka) as log:
        log.publish(make_record(topic, 0))
        assert await log.flush(WAIT_S) == 0
        kafka.freeze()
        try:
            started_at_s = asyncio.get_running_loop().time()
            for number in range(1, 2001):
                log.publish(make_record(topic, number))
            assert elapsed(started_at_s) < 0.5
            await SystemClock().sleep(7.0)  # past the time that the sender waits for an acknowledgement
            assert log.outbox_depth >= 2000
            assert not log.connected
        finally:
            kafka.thaw()
        assert await log.flush(WAIT_S) == 0
        assert await values_in(log, topic) == set(range(2001))


async def test_leaving_while_kafka_is_frozen_is_bounded_and_says_what_is_lost(kafka, topic, caplog):
    log = make_log(kafka, flush_s=1.0)
    async with log:
        log.publish(make_record(topic, 0))
        assert await log.flush(WAIT_S) == 0
        kafka.freeze()
        try:
            for number in range(10):
                log.publish(make_record(topic, number))
            await SystemClock().sleep(0.5)
            started_at_s = asyncio.get_running_loop().time()
            await log.__aexit__(None, None, None)
            assert elapsed(started_at_s) < 6.0
        finally:
            kafka.thaw()
    assert "10 events were not delivered" in caplog.text


async def test_starting_without_kafka_takes_no_time_and_connects_when_it_comes(tmp_path):
    if not KAFKA_START.exists():
        pytest.skip("no Kafka: ../shared/kafka/start.sh is not beside the checkout")
    kafka = KafkaProcess(free_port(2), tmp_path / "data")
    topic = "moedge.test-late.v1"
    handled = []

    async def handle(record):
        handled.append(record.value)

    started_at_s = asyncio.get_running_loop().time()
    async with KafkaEventLog(kafka.bootstrap, SystemClock(), "late") as log, log.subscribe(topic, "late", handle):
        log.publish(make_record(topic, 1))
        assert elapsed(started_at_s) < 0.5
        assert not log.connected
        try:
            await asyncio.to_thread(kafka.start)
            await create_topics(kafka.bootstrap, topics=[Topic(topic, 1)])
            await until(lambda: handled == [b"1"], WAIT_S, "the record published before Kafka was there")
            assert log.connected
        finally:
            await asyncio.to_thread(kafka.stop, kill=True)


async def test_without_kafka_leaving_is_bounded_and_a_full_outbox_refuses(tmp_path):
    log = KafkaEventLog("127.0.0.1:1", SystemClock(), "absent", outbox_records=3, flush_s=0.2)
    started_at_s = asyncio.get_running_loop().time()
    async with log:
        for number in range(3):
            log.publish(make_record("topic", number))
        with pytest.raises(OutboxFullError, match="holds 3 records"):
            log.publish(make_record("topic", 3))
        log.publish(make_record("topic", 4), droppable=True)
    assert log.outbox_depth == 3
    assert log.num_dropped == 1
    assert elapsed(started_at_s) < 6.0
