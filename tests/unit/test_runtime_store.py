"""Registry, outstanding work and trigger state over an in-process Redis, and what remains known when it is gone."""

import asyncio
import socket

import pytest
import redis.asyncio

from moedge.v1.worker_pb2 import EdgeEntry
from services.core.offload.values import Work
from services.runtime import store
from services.runtime.breaker import Breaker
from services.runtime.clock import VirtualClock


@pytest.fixture
async def client():
    client = store.open_redis(None)
    yield client
    await client.aclose()


@pytest.fixture
async def refused():
    """A client whose server is not there: every connection is refused."""
    client = store.open_redis("redis://127.0.0.1:1")
    yield client
    await client.aclose()


async def test_the_registry_returns_every_edge_sorted(client):
    registry = store.EdgeRegistry(client, VirtualClock())
    for edge_id in ("edge-b", "edge-a"):
        await registry.put(EdgeEntry(edge_id=edge_id, version="v1"))
    assert list(await registry.all()) == ["edge-a", "edge-b"]
    assert await client.pttl("moedge:edge:{edge-a}") > 0


async def test_a_removed_edge_is_gone_for_other_readers_at_once(client):
    clock = VirtualClock()
    writer, reader = store.EdgeRegistry(client, clock), store.EdgeRegistry(client, clock)
    await writer.put(EdgeEntry(edge_id="edge-a"))
    assert list(await reader.all()) == ["edge-a"]
    await writer.remove("edge-a")
    assert await reader.all() == {}


async def test_a_flush_empties_nobodys_view_while_heartbeats_come(client):
    clock = VirtualClock()
    registry = store.EdgeRegistry(client, clock)
    await registry.put(EdgeEntry(edge_id="edge-a"))
    await registry.all()
    await client.flushall()
    assert list(await registry.all()) == ["edge-a"]
    await clock.advance(2.0)
    assert await registry.all() == {}


async def test_garbage_in_the_registry_is_counted_and_passed_over(client):
    registry = store.EdgeRegistry(client, VirtualClock())
    await registry.put(EdgeEntry(edge_id="edge-a"))
    await client.set("moedge:edge:{edge-x}", b"\xff\xff\xff")
    assert list(await registry.all()) == ["edge-a"]
    assert registry.num_errors == 1


async def test_brokers_see_one_anothers_work_and_not_their_own(client):
    clock = VirtualClock()
    one, two, three = (store.WaitStore(client, name, clock) for name in ("b1", "b2", "b3"))
    await one.publish({"edge-a": Work(1, 10, 20)}, {"edge-a": 0.5})
    await two.publish({"edge-a": Work(2, 1, 2), "edge-b": Work(1, 5, 5)})
    assert await three.others() == {"edge-a": Work(3, 11, 22), "edge-b": Work(1, 5, 5)}
    assert await one.others(["edge-a"]) == {"edge-a": Work(2, 1, 2)}
    assert await client.ttl("moedge:wait:{edge-a}") > 0


async def test_work_that_is_done_leaves_the_store(client):
    clock = VirtualClock()
    one, two = store.WaitStore(client, "b1", clock), store.WaitStore(client, "b2", clock)
    await one.publish({"edge-a": Work(1, 10, 20)})
    assert await two.others() == {"edge-a": Work(1, 10, 20)}
    await one.publish({})
    assert await two.others() == {}


async def test_a_dead_brokers_share_expires_on_the_readers_clock_and_is_dropped(client):
    clock = VirtualClock()
    dead, alive, reader = (store.WaitStore(client, name, clock) for name in ("dead", "alive", "reader"))
    await dead.publish({"edge-a": Work(9, 9, 9)})
    for _ in range(4):
        await alive.publish({"edge-a": Work(1, 1, 1)})
        assert (await reader.others())["edge-a"].num_tasks == 10
        await clock.advance(1.0)
    await alive.publish({"edge-a": Work(1, 1, 1)})
    assert await reader.others() == {"edge-a": Work(1, 1, 1)}
    assert await client.hkeys("moedge:wait:{edge-a}") == [b"alive"]


async def test_a_flush_heals_with_the_next_publish(client):
    clock = VirtualClock()
    one, two = store.WaitStore(client, "b1", clock), store.WaitStore(client, "b2", clock)
    await one.publish({"edge-a": Work(1, 1, 1)})
    await client.flushall()
    assert await two.others() == {}
    await one.publish({"edge-a": Work(1, 1, 1)})
    assert await two.others() == {"edge-a": Work(1, 1, 1)}


@pytest.mark.parametrize("value", [b"", b"{}", b"[1]", b'{"seq": "x"}', b"\xff"])
async def test_a_field_that_cannot_be_read_counts_as_absent(client, value):
    await client.hset("moedge:wait:{edge-a}", "odd", value)
    assert await store.WaitStore(client, "b1", VirtualClock()).others() == {}


async def test_trigger_state_survives_the_store(client):
    triggers = store.TriggerStore(client, VirtualClock())
    assert await triggers.get("edge-a") is None
    await triggers.put("edge-a", b"\x00state")
    assert await triggers.get("edge-a") == b"\x00state"
    await triggers.remove("edge-a")
    assert await triggers.get("edge-a") is None


async def test_without_redis_the_answers_are_unchanged_and_the_breaker_spares_it(refused):
    clock = VirtualClock()
    registry = store.EdgeRegistry(refused, clock)
    assert registry.connected
    for _ in range(10):
        await registry.put(EdgeEntry(edge_id="edge-a"))
        assert await registry.all() == {}
    assert not registry.connected
    assert registry.num_errors == 3
    await clock.advance(1.0)
    await registry.all()
    assert registry.num_errors == 4


async def test_edges_stay_known_while_redis_is_away(client, refused):
    clock = VirtualClock()
    registry = store.EdgeRegistry(client, clock)
    await registry.put(EdgeEntry(edge_id="edge-a"))
    await registry.all()
    client.connection_pool = refused.connection_pool
    await clock.advance(60.0)
    assert list(await registry.all()) == ["edge-a"]


async def test_a_server_that_never_answers_costs_a_bounded_time():
    """A socket that listens and says nothing, as a frozen Redis does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = store.open_redis(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        registry = store.EdgeRegistry(client)
        started_at_s = asyncio.get_running_loop().time()
        assert await registry.all() == {}
        assert asyncio.get_running_loop().time() - started_at_s < 1.0
        assert not registry.connected
        await client.aclose()


async def test_the_client_speaks_resp2_with_hard_timeouts():
    client = store.open_redis("redis://127.0.0.1:1")
    options = client.connection_pool.connection_kwargs
    assert isinstance(client, redis.asyncio.Redis)
    assert (options["protocol"], options["socket_timeout"], options["socket_connect_timeout"]) == (2, 0.1, 0.1)
    await client.aclose()


async def test_an_open_breaker_allows_one_call_each_interval():
    clock = VirtualClock()
    breaker = Breaker(clock, max_failures=2, open_s=1.0)
    for _ in range(2):
        assert breaker.allows
        breaker.failed()
    assert not breaker.allows
    await clock.advance(1.0)
    assert breaker.allows
    breaker.failed()
    assert not breaker.allows
    await clock.advance(1.0)
    breaker.succeeded()
    assert breaker.allows
    assert breaker.healthy
