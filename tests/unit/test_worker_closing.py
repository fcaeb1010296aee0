"""Which terminal events a worker writes for tasks of brokers, after every way in which a broker can live, die or fall silent."""

from __future__ import annotations

import json

import pytest

from services.core.offload.values import Work
from services.runtime.clock import VirtualClock
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.events import EventWriter, kind_word, read_task
from services.runtime.store import WaitStore, open_redis, wait_key
from services.worker.closing import CallEnd, RedisPulse, TaskCloser

COMPLETED = CallEnd("b", "t", 1, "completed", {"status": ""})
LOST = CallEnd("b", "t", 1, "failed", {"status": "CANCELLED", "reason": "CALLER_LOST"})


class Pulse:
    """A broker whose heart beats until it is stopped; None for a Redis that does not answer."""

    def __init__(self):
        self.sequence = 0
        self.beats = True
        self.answers = True

    async def sequences(self):
        if not self.answers:
            return None
        self.sequence += self.beats
        return {"b": self.sequence}


class Scene:
    def __init__(self):
        self.clock = VirtualClock()
        self.log = MemoryEventLog(self.clock)
        self.pulse = Pulse()
        self.closer = TaskCloser(EventWriter(self.log, "w", self.clock), self.pulse, self.clock)

    async def live(self, seconds):
        for _ in range(int(seconds / 0.5)):
            await self.clock.advance(0.5)
            await self.closer.look()

    async def written(self):
        events = [read_task(record) async for record in self.log.read_all("moedge.task-events.v1")]
        return [(kind_word(event), event.event_id, event.reason) for event in events]


@pytest.fixture
def scene():
    return Scene()


async def test_a_task_without_a_broker_is_closed_at_once(scene):
    scene.closer.ended(CallEnd("", "t", 1, "completed", {}))
    assert await scene.written() == [("completed", "t:completed:1", "")]


async def test_tasks_of_a_dead_broker_are_closed_with_the_event_ids_it_would_have_used(scene):
    await scene.live(2)
    scene.closer.ended(LOST)
    scene.closer.ended(CallEnd("b", "u", 2, "completed", {}))
    scene.pulse.beats = False
    await scene.live(3)
    assert await scene.written() == []
    await scene.live(2)
    assert sorted(await scene.written()) == [("completed", "u:completed:2", ""), ("failed", "t:failed:1", "CALLER_LOST")]
    await scene.live(20)
    assert len(await scene.written()) == 2
    assert scene.closer.num_remembered == 0


async def test_a_broker_that_ended_the_call_itself_and_lives_on_closes_its_task_itself(scene):
    scene.closer.ended(LOST)
    await scene.live(20)
    assert await scene.written() == []
    scene.pulse.beats = False
    await scene.live(20)
    assert await scene.written() == []


async def test_a_completed_task_is_remembered_until_its_broker_must_have_written_it(scene):
    scene.closer.ended(COMPLETED)
    await scene.live(5)
    scene.pulse.beats = False
    await scene.live(5)
    assert await scene.written() == [("completed", "t:completed:1", "")]


async def test_a_completed_task_is_forgotten_once_its_broker_outlived_it(scene):
    scene.closer.ended(COMPLETED)
    await scene.live(15)
    scene.pulse.beats = False
    await scene.live(15)
    assert await scene.written() == []


async def test_a_broker_whose_numbers_start_again_is_another_process_and_the_one_before_is_dead(scene):
    await scene.live(5)
    scene.closer.ended(COMPLETED)
    await scene.live(1)
    scene.pulse.sequence = 0
    await scene.live(1)
    assert await scene.written() == [("completed", "t:completed:1", "")]


async def test_nobody_is_seen_dead_while_redis_does_not_answer(scene):
    await scene.live(1)
    scene.closer.ended(LOST)
    scene.pulse.answers = False
    await scene.live(20)
    assert await scene.written() == []
    scene.pulse.answers = True
    await scene.live(3)
    assert await scene.written() == []


async def test_the_pulse_is_the_newest_sequence_number_of_a_broker_over_all_edges():
    redis = open_redis(None)
    store = WaitStore(redis, "b")
    await store.publish({"e1": Work(), "e2": Work()})
    await store.publish({"e1": Work(), "e2": Work()})
    await redis.hset(wait_key("e1"), "b", json.dumps({"seq": 1}))
    await redis.hset(wait_key("e1"), "odd", b"\x00")
    assert await RedisPulse(redis).sequences() == {"b": 2, "odd": 0}
    await redis.aclose()
