"""The virtual clock."""

import asyncio

from services.runtime.clock import SystemClock, VirtualClock


async def test_sleepers_wake_in_order_of_their_instant_and_first_come_first_on_ties():
    clock = VirtualClock()
    woken = []

    async def sleeper(name, seconds):
        await clock.sleep(seconds)
        woken.append((name, clock.now_s()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in [("late", 2.0), ("first", 1.0), ("second", 1.0)]:
            group.create_task(sleeper(name, seconds))
        await clock.advance(1.5)
        assert woken == [("first", 1.0), ("second", 1.0)]
        await clock.advance(1.0)
    assert woken[-1] == ("late", 2.0)
    assert clock.now_s() == 2.5


async def test_a_sleeper_that_sleeps_again_wakes_within_the_same_advance():
    clock = VirtualClock()
    ticks = []

    async def ticker():
        while True:
            await clock.sleep(1.0)
            ticks.append(clock.now_s())

    task = asyncio.create_task(ticker())
    await clock.advance(3.5)
    task.cancel()
    assert ticks == [1.0, 2.0, 3.0]


async def test_a_cancelled_sleeper_leaves_the_clock():
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(5.0))
    await clock.advance(0.0)
    assert clock.num_sleepers == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.num_sleepers == 0


def test_wall_and_monotonic_time_of_the_virtual_clock_move_together():
    clock = VirtualClock(now_s=10.0)
    before = clock.wall()
    asyncio.run(clock.advance(60.0))
    assert (clock.wall() - before).total_seconds() == 60.0


def test_the_system_clock_stamps_carry_a_time_zone():
    assert SystemClock().wall().tzinfo is not None
