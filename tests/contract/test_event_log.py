"""One body over every event log: in the process, and on a real Kafka. What holds for one holds for the other."""

import asyncio
import dataclasses
import uuid
from collections import Counter
from typing import cast

import pytest

from services.runtime.clock import SystemClock
from services.runtime.eventlog import EventLog, PoisonRecordError, Record
from services.runtime.eventlog_kafka import KafkaEventLog
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.events import EventWriter
from services.runtime.topics import Topic, create_topics
from tests.fakes.waiting import until

WAIT_S = 30.0


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.connected)])
def new_log(request):
    """Makes logs that share one broker, as the services of one stack do."""
    clock = SystemClock()
    if request.param == "memory":
        broker = MemoryBroker()
        return lambda: MemoryEventLog(clock, broker)
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    return lambda: KafkaEventLog(bootstrap, clock, "contract", creates_topics=False)


@pytest.fixture
async def topic(request, new_log):
    name = f"moedge.test-{uuid.uuid4().hex[:8]}.v1"
    if isinstance(new_log(), KafkaEventLog):
        await create_topics(request.getfixturevalue("kafka_bootstrap"), topics=[Topic(name, 3)])
    return name


@pytest.fixture
def group():
    return f"group-{uuid.uuid4().hex[:8]}"


def make_record(topic, number, key=None):
    return Record(topic, key or f"task-{number}", f"value-{number}".encode(), {"event-id": str(number)})


class Seen:
    """A handler that remembers, and raises what it is told for some values."""

    def __init__(self, errors=None):
        self.records = []
        self.num_calls: Counter[bytes] = Counter()
        self._errors = errors or {}

    async def __call__(self, record):
        self.num_calls[record.value] += 1
        error = self._errors.get(record.value)
        if error is not None:
            raise error
        self.records.append(record)

    @property
    def values(self):
        return [record.value for record in self.records]

    async def has(self, count):
        await until(lambda: len(self.records) >= count, WAIT_S, f"{count} records (seen {len(self.records)})")


async def test_a_subscriber_gets_what_was_published_before_and_after_it_came_with_key_and_headers(new_log, topic, group):
    seen = Seen()
    async with new_log() as log:
        log.publish(make_record(topic, 1))
        async with log.subscribe(topic, group, seen):
            log.publish(make_record(topic, 2))
            await seen.has(2)
    first = next(record for record in seen.records if record.value == b"value-1")
    assert (first.topic, first.key, dict(first.headers)) == (topic, "task-1", {"event-id": "1"})
    assert first.partition >= 0
    assert first.offset >= 0


async def test_records_of_one_key_keep_their_order(new_log, topic, group):
    seen = Seen()
    async with new_log() as log, log.subscribe(topic, group, seen):
        for number in range(200):
            log.publish(make_record(topic, number, key=f"key-{number % 5}"))
        await seen.has(200)
    for key in range(5):
        numbers = [int(r.headers["event-id"]) for r in seen.records if r.key == f"key-{key}"]
        assert numbers == list(range(key, 200, 5))


async def test_two_groups_each_get_everything(new_log, topic):
    one, two = Seen(), Seen()
    async with new_log() as log, log.subscribe(topic, "one" + topic, one), log.subscribe(topic, "two" + topic, two):
        for number in range(20):
            log.publish(make_record(topic, number))
        await one.has(20)
        await two.has(20)


async def test_the_members_of_one_group_share_the_records(new_log, topic, group):
    one, two = Seen(), Seen()
    async with new_log() as first, new_log() as second, first.subscribe(topic, group, one), second.subscribe(topic, group, two):
        published = 0
        for _ in range(60):  # until both members have joined and hold partitions
            for number in range(published, published + 30):
                first.publish(make_record(topic, number))
            published += 30
            await until(lambda: len({*one.values, *two.values}) >= published, WAIT_S, "all records")  # noqa: B023
            if one.records and two.records:
                break
            await SystemClock().sleep(0.2)
        assert one.records
        assert two.records


async def test_the_position_of_a_group_outlives_its_subscription(new_log, topic, group):
    first, second = Seen(), Seen()
    async with new_log() as log:
        async with log.subscribe(topic, group, first):
            for number in range(10):
                log.publish(make_record(topic, number))
            await first.has(10)
        log.publish(make_record(topic, 10))
        async with log.subscribe(topic, group, second):
            await second.has(1)
    assert second.values == [b"value-10"]


async def test_a_poison_record_goes_to_the_dead_letters_at_once_and_the_rest_goes_on(new_log, topic, group):
    seen = Seen({b"value-1": PoisonRecordError("not readable")})
    async with new_log() as log, log.subscribe(topic, group, seen):
        for number in range(3):
            log.publish(make_record(topic, number, key="same"))
        await seen.has(2)
        dead = Seen()
        async with log.subscribe(topic + ".dlq", group, dead):
            await dead.has(1)
    assert seen.values == [b"value-0", b"value-2"]
    assert seen.num_calls[b"value-1"] == 1
    letter = dead.records[0]
    assert (letter.value, letter.key) == (b"value-1", "same")
    assert letter.headers["dlq-topic"] == topic
    assert "not readable" in letter.headers["dlq-error"]
    assert letter.headers["event-id"] == "1"


async def test_a_handler_that_keeps_failing_is_tried_three_times_and_then_passed_over(new_log, topic, group):
    seen = Seen({b"value-0": RuntimeError("always")})
    async with new_log() as log, log.subscribe(topic, group, seen):
        for number in range(2):
            log.publish(make_record(topic, number, key="same"))
        await seen.has(1)
    assert seen.values == [b"value-1"]
    assert seen.num_calls[b"value-0"] == 3


async def test_a_record_whose_handler_was_cut_off_is_seen_again(new_log, topic, group):
    reached = asyncio.Event()
    seen = Seen()

    async def never_done(record):
        reached.set()
        await asyncio.Event().wait()

    async with new_log() as log:
        log.publish(make_record(topic, 0))
        async with log.subscribe(topic, group, never_done):
            async with asyncio.timeout(WAIT_S):
                await reached.wait()
        async with log.subscribe(topic, group, seen):
            await seen.has(1)
    assert seen.values == [b"value-0"]


async def test_read_all_gives_everything_up_to_now_and_ends(new_log, topic):
    async with new_log() as log:
        for number in range(50):
            log.publish(make_record(topic, number, key="same"))
        assert await log.flush(WAIT_S) == 0
        values = [record.value async for record in log.read_all(topic)]
        again = [record.value async for record in log.read_all(topic)]
    assert values == [f"value-{number}".encode() for number in range(50)]
    assert again == values


async def test_read_all_of_an_empty_topic_is_empty(new_log, topic):
    async with new_log() as log:
        assert [record async for record in log.read_all(topic)] == []


async def test_a_late_reader_without_history_sees_only_what_comes_after_it_joined(new_log, topic, group):
    seen = Seen()
    async with new_log() as log:
        log.publish(make_record(topic, 0))
        await log.flush(WAIT_S)
        async with log.subscribe(topic, group, seen, from_start=False):
            number = 1
            while not seen.records:
                log.publish(make_record(topic, number))
                number += 1
                await SystemClock().sleep(0.1)
                assert number < 300
    assert b"value-0" not in seen.values


async def test_publishing_and_leaving_leaves_nothing_in_the_outbox(new_log, topic):
    log = new_log()
    async with log:
        for number in range(100):
            log.publish(make_record(topic, number), droppable=bool(number % 2))
    assert log.outbox_depth == 0


async def test_a_subscription_knows_how_far_it_is_behind(new_log, topic, group):
    clock, release, seen = SystemClock(), asyncio.Event(), []

    async def handle(record):
        await release.wait()
        seen.append(record)

    log = new_log()
    async with log:
        assert list(log.lags) == []
        for number in range(10):
            EventWriter(cast(EventLog, _Onto(log, topic)), "test", clock).task("started", f"task-{number}", 1)
        await log.flush(WAIT_S)
        async with log.subscribe(topic, group, handle):
            await until(lambda: [lag.num_records for lag in log.lags] == [10], timeout_s=WAIT_S, what="ten records to wait")
            release.set()
            await until(lambda: [lag.num_records for lag in log.lags] == [0], timeout_s=WAIT_S, what="nothing to wait")
            [lag] = log.lags
            assert (lag.topic, lag.group, lag.behind_s, len(seen)) == (topic, group, 0.0, 10)
        assert list(log.lags) == []


@dataclasses.dataclass
class _Onto:
    """Publishes everything onto one topic."""

    log: EventLog
    topic: str

    def publish(self, record, *, droppable=False):
        self.log.publish(dataclasses.replace(record, topic=self.topic), droppable=droppable)
