"""When the ledger says `dispatched`: not before the edge has the call, so that somebody can close the task should the broker die."""

from __future__ import annotations

import asyncio

from services.core.offload.values import Link
from services.runtime.events import kind_word
from tests.fakes.waiting import until
from tests.unit.broker_harness import running

UPLINK_S = 0.4


async def test_a_task_on_its_way_up_has_no_event_yet():
    async with running() as house:
        worker = await house.worker("far", wait=False)
        worker.link("home", Link(UPLINK_S, 0.0, 0.0))
        await worker.announce()
        await house.known("far")
        await until(lambda: any("home" in edge.links for edge in house.snapshots))
        call = asyncio.create_task(house.ask("q", region="home"))
        await until(lambda: house.broker._parts.book.num_running == 1)
        assert await house.events() == []
        got = await call
        assert got.summary.attempts == 1
        assert list((await house.lives()).values()) == [["dispatched", "completed"]]


async def test_a_task_given_up_on_its_way_up_was_never_dispatched():
    async with running() as house:
        worker = await house.worker("far", wait=False)
        worker.link("home", Link(3.0, 0.0, 0.0))
        await worker.announce()
        await house.known("far")
        await until(lambda: any("home" in edge.links for edge in house.snapshots))
        call = asyncio.create_task(house.ask("q", region="home"))
        await until(lambda: house.broker._parts.book.num_running == 1)
        call.cancel()
        await house.quiet()
        assert [(kind_word(event), event.status) for event in await house.events()] == [("rejected", "CANCELLED")]
        assert worker.requests == []
