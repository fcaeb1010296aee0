"""The bounded outbox between callers and Kafka."""

import asyncio

import pytest

from services.runtime.eventlog import OutboxFullError, Record
from services.runtime.outbox import Outbox


def make_record(key):
    return Record("topic", key, b"")


def keys(records):
    return [record.key for record in records]


async def test_a_full_outbox_drops_the_oldest_statistics_for_what_must_be_kept():
    outbox = Outbox(3)
    for key in ("s1", "s2"):
        outbox.put(make_record(key), droppable=True)
    for key in ("e1", "e2"):
        outbox.put(make_record(key), droppable=False)
    assert outbox.num_dropped == 1
    assert keys(await outbox.take(10)) == ["e1", "e2", "s2"]


async def test_it_refuses_when_it_is_full_of_what_must_be_kept_and_drops_a_new_statistic():
    outbox = Outbox(2)
    for key in ("e1", "e2"):
        outbox.put(make_record(key), droppable=False)
    with pytest.raises(OutboxFullError, match="holds 2 records"):
        outbox.put(make_record("e3"), droppable=False)
    outbox.put(make_record("s1"), droppable=True)
    assert outbox.num_dropped == 1
    assert keys(await outbox.take(10)) == ["e1", "e2"]


async def test_what_was_not_delivered_goes_back_to_the_front_in_order():
    outbox = Outbox(10)
    for key in "abcd":
        outbox.put(make_record(key), droppable=False)
    assert keys(await outbox.take(3)) == ["a", "b", "c"]
    assert len(outbox) == 4
    outbox.settled([False, True, False])
    assert len(outbox) == 3
    assert keys(await outbox.take(10)) == ["a", "c", "d"]


async def test_empty_waits_for_the_last_acknowledgement():
    outbox = Outbox(10)
    outbox.put(make_record("a"), droppable=False)
    waiting = asyncio.create_task(outbox.empty())
    await outbox.take(10)
    await asyncio.sleep(0)  # noqa: TID251
    assert not waiting.done()
    outbox.settled([True])
    await waiting


async def test_take_waits_for_a_record():
    outbox = Outbox(10)
    taking = asyncio.create_task(outbox.take(10))
    await asyncio.sleep(0)  # noqa: TID251
    assert not taking.done()
    outbox.put(make_record("a"), droppable=False)
    assert keys(await taking) == ["a"]
