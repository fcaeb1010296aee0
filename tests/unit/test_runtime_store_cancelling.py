"""A loop that talks to Redis ends when it is cancelled, at whatever moment that comes."""

from __future__ import annotations

import asyncio

import pytest

from moedge.v1.worker_pb2 import EdgeEntry
from services.runtime import store


async def deaf(result):
    """As `asyncio.wait_for` of Python 3.11 when a cancellation meets its result."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if isinstance(result, Exception):
            raise result from None
        return result


@pytest.mark.parametrize("result", ["answer", ConnectionError("reset")], ids=["result", "error"])
async def test_a_dropped_cancellation_is_raised_after_the_call(result):
    task = asyncio.create_task(store.heeding_cancellation(deaf(result)))
    await asyncio.sleep(0)  # noqa: TID251  one step of the loop
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_limit_within_the_call_is_no_cancellation():
    async def limited():
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await store.heeding_cancellation(limited())


async def test_cleaning_up_after_a_cancellation_still_reaches_redis():
    client = store.open_redis(None)
    registry = store.EdgeRegistry(client)

    async def body():
        try:
            await asyncio.Event().wait()
        finally:
            await registry.put(EdgeEntry(edge_id="left"))

    task = asyncio.create_task(body())
    await asyncio.sleep(0)  # noqa: TID251  one step of the loop
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(await registry.all()) == ["left"]
    await client.aclose()


async def test_a_loop_that_writes_to_redis_ends_when_cancelled_at_any_step():
    client = store.open_redis(None)
    registry = store.EdgeRegistry(client)

    async def renew():
        while True:
            await registry.put(EdgeEntry(edge_id="edge"))

    for steps in range(60):
        task = asyncio.create_task(renew())
        for _ in range(steps):
            await asyncio.sleep(0)  # noqa: TID251  one step of the loop
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5.0)
        assert done, f"cancelled after {steps} steps, it went on"
    await client.aclose()
