"""The stores on a real redis-server that is flushed, frozen, restarted, and that closes pooled connections."""

import asyncio

import pytest

from moedge.v1.worker_pb2 import EdgeEntry
from services.core.offload.values import Work
from services.runtime import store
from services.runtime.clock import SystemClock
from tests.fakes.processes import started_redis

pytestmark = pytest.mark.connected


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started_redis(tmp_path_factory.mktemp("hurt-redis")) as server:
        yield server


@pytest.fixture
async def client(server):
    client = store.open_redis(server.url)
    yield client
    await client.aclose()


async def settled(call, expected, timeout_s=10.0):
    """Until the store answers as expected: it is asked on a timer, as services do."""
    async with asyncio.timeout(timeout_s):
        while await call() != expected:
            await SystemClock().sleep(0.05)


async def test_registry_work_and_trigger_state_live_on_a_real_server(client):
    registry, mine, theirs = store.EdgeRegistry(client), store.WaitStore(client, "b1"), store.WaitStore(client, "b2")
    triggers = store.TriggerStore(client)

    async def written_and_read():
        await registry.put(EdgeEntry(edge_id="edge-a", version="v1"))
        await mine.publish({"edge-a": Work(1, 2.0, 3.0)})
        await triggers.put("edge-a", b"state")
        return list(await registry.all()), await theirs.others(), await triggers.get("edge-a")

    await settled(written_and_read, (["edge-a"], {"edge-a": Work(1, 2.0, 3.0)}, b"state"))
    assert 0 < await client.ttl("moedge:wait:{edge-a}") <= 5
    assert 0 < await client.pttl("moedge:edge:{edge-a}") <= 3000


async def test_connections_that_the_server_closed_are_replaced_unnoticed(client):
    await client.ping()
    await client.client_kill_filter(_type="normal", skipme=False)
    await client.ping()


async def test_a_frozen_server_costs_a_bounded_time_and_heals(client, server):
    registry = store.EdgeRegistry(client)

    async def connected():
        await registry.put(EdgeEntry(edge_id="edge-a"), ttl_s=60.0)
        return registry.connected and "edge-a" in await registry.all()

    await settled(connected, True)
    before = list(await registry.all())
    server.freeze()
    try:
        started_at_s = asyncio.get_running_loop().time()
        for _ in range(20):
            assert list(await registry.all()) == before
        assert asyncio.get_running_loop().time() - started_at_s < 3.0
        assert not registry.connected
    finally:
        server.thaw()
    await settled(connected, True)


async def test_a_restarted_server_is_filled_again(client, server):
    registry, mine, theirs = store.EdgeRegistry(client), store.WaitStore(client, "b1"), store.WaitStore(client, "b2")
    await mine.publish({"edge-a": Work(1, 1, 1)})
    server.stop()
    assert not await registry.all()
    server.start()

    async def republished():
        await registry.put(EdgeEntry(edge_id="edge-c"))
        await mine.publish({"edge-a": Work(2, 2, 2)})
        return "edge-c" in await registry.all(), await theirs.others()

    await settled(republished, (True, {"edge-a": Work(2, 2, 2)}))
