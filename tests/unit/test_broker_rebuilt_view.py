"""A broker that starts beside work that it did not send: it counts what the edges say they have, and nothing twice."""

from __future__ import annotations

import asyncio

from moedge.v1 import broker_pb2
from services.core.offload.values import Work
from services.runtime.store import WaitStore, open_redis
from tests.fakes.waiting import until
from tests.unit.broker_harness import running


def others(house, edge_id="e1"):
    return next(edge.others for edge in house.snapshots if edge.edge_id == edge_id)


async def test_a_broker_that_starts_sees_the_tasks_that_a_dead_one_left_until_they_end():
    async with running() as house:
        worker = await house.worker("e1")
        worker.others["dead-broker"] = 3
        await until(lambda: others(house).num_tasks == 3)
        listed = await house.operations.ListEdges(broker_pb2.ListEdgesRequest(), timeout=5)
        assert listed.edges[0].outstanding_tasks == 3
        worker.others.clear()
        await until(lambda: others(house).num_tasks == 0)


async def test_tasks_go_round_an_edge_that_a_dead_broker_left_full():
    async with running() as house:
        loaded, idle = await house.worker("a"), await house.worker("b")
        loaded.others["dead-broker"] = 8
        await until(lambda: others(house, "a").num_tasks == 8)
        answers = [await house.ask() for _ in range(3)]
        assert {answer.summary.edge_id for answer in answers} == {idle.edge_id}


async def test_work_that_another_broker_publishes_is_not_counted_again():
    client = open_redis(None)
    async with running(redis_client=client) as house:
        worker = await house.worker("e1")
        other = WaitStore(client, "other-broker")
        worker.others["other-broker"] = 2
        await until(lambda: others(house).num_tasks == 2)
        seen = []
        for _ in range(20):
            await other.publish({"e1": Work(2, 5.0, 30.0)})
            await until(lambda: others(house).decode_tokens == 30.0, what="the published work")
            seen.append(others(house).num_tasks)
        assert set(seen) == {2}
    await client.aclose()


async def test_an_edge_of_which_nothing_is_new_keeps_its_snapshot_when_others_change():
    async with running() as house:
        await house.worker("a")
        changing = await house.worker("b")
        edges = house.broker._parts.edges
        # Heartbeats and polls go on; `a` renews its entry, so its snapshot is made anew now and then, and has to be equal.
        before = {edge.edge_id: edge for edge in house.snapshots}
        changing.entry.version = "v2"
        await changing.announce()
        await until(lambda: {edge.edge_id: edge.version for edge in house.snapshots} == {"a": "v1", "b": "v2"})
        assert next(edge for edge in house.snapshots if edge.edge_id == "a") == before["a"]
        link = edges.link("a")
        first, again = edges._snapshot(link, 0.0), edges._snapshot(link, 1.0)
        assert first is again
        link.entry.unavailable.FromSeconds(5)
        assert edges._snapshot(link, link.received_at_s + 1.0).unavailable_s == 4.0, "downtime counts down"
        assert edges._snapshot(link, link.received_at_s + 2.0).unavailable_s == 3.0


async def test_own_tasks_are_not_counted_again():
    async with running() as house:
        worker = await house.worker("e1", max_batch=4)
        worker.start_s = 30.0
        calls = [asyncio.create_task(house.ask()) for _ in range(2)]
        await until(lambda: worker.num_active == 2)
        link = house.broker._parts.edges.link("e1")
        await until(lambda: link.num_tasks_by_broker == {house.broker.broker_id: 2})
        assert others(house) == Work()
        listed = await house.operations.ListEdges(broker_pb2.ListEdgesRequest(), timeout=5)
        assert (listed.edges[0].outstanding_tasks, listed.edges[0].running_tasks) == (2, 2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_drained_edge_takes_tasks_again_when_resumed():
    async with running() as house:
        await house.worker("e1")
        await house.operations.DrainEdge(broker_pb2.DrainEdgeRequest(edge_id="e1"), timeout=5)
        await until(lambda: house.snapshots[0].state.value == "draining")
        assert (await house.ask()).failure is not None
        resumed = await house.operations.ResumeEdge(broker_pb2.ResumeEdgeRequest(edge_id="e1"), timeout=5)
        assert resumed.version == "v1"
        await house.known("e1")
        assert (await house.ask()).summary.edge_id == "e1"


async def test_an_edge_that_never_answered_is_out_after_the_usual_misses_and_told_of_once(caplog):
    async with running(heartbeat_misses=3) as house:
        worker = await house.worker("e1", wait=False)
        worker.deaf = True
        await until(lambda: [edge.state.value for edge in house.snapshots] == ["unreachable"])
        told = [record.getMessage() for record in caplog.records if "is unreachable" in record.getMessage()]
        assert len(told) == 1
        assert f"does its advertised address {worker.entry.address} lead here?" in told[0]


async def test_joining_tells_workers_elsewhere_the_addresses_meant_for_them():
    inside = {"kafka_bootstrap": None, "redis_url": None, "merger_address": "127.0.0.1:9"}
    outside = {"join_kafka_bootstrap": "198.51.100.1:9094", "join_redis_url": "redis://198.51.100.1:6379"}
    async with running(**inside, **outside) as house:
        told = await house.operations.Join(broker_pb2.JoinRequest(edge_id="far"), timeout=5)
        assert told.kafka_bootstrap == "198.51.100.1:9094"
        assert told.redis_url == "redis://198.51.100.1:6379"
        assert told.merger_address == "127.0.0.1:9"
    async with running(**inside, **outside, join_merger_address="198.51.100.1:50061") as house:
        told = await house.operations.Join(broker_pb2.JoinRequest(edge_id="far"), timeout=5)
        assert told.merger_address == "198.51.100.1:50061"
