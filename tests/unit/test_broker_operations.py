"""BrokerService, several brokers together, profiles from the merger, health, and the drain."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moedge.v1 import broker_pb2, merger_pb2, merger_pb2_grpc
from services.broker.settings import BrokerSettings
from services.core.offload.values import StepTimes
from services.runtime.codec import seconds
from services.runtime.errors import SettingsError
from services.runtime.net import bind, channel, server
from services.runtime.status import failure_of
from services.runtime.store import WaitStore, open_redis
from tests.fakes.waiting import until
from tests.unit.broker_harness import running


async def test_listing_shows_every_edge_with_queue_and_version():
    async with running() as house:
        worker = await house.worker("e1", max_batch=1, step_times=StepTimes(0.5, 0.0, 0.0, 0.0), memory_bytes=123)
        worker.start_s = 30.0
        call = asyncio.create_task(house.ask())
        await until(lambda: worker.num_active == 1)
        listed = await house.operations.ListEdges(broker_pb2.ListEdgesRequest(), timeout=5)
        assert (listed.policy, listed.base_model, listed.quality_scale) == ("onto", "toy", 1.0)
        assert listed.kafka_connected
        assert listed.redis_connected
        edge = listed.edges[0]
        assert (edge.edge_id, edge.version, edge.outstanding_tasks, edge.memory_bytes) == ("e1", "v1", 1, 123)
        assert seconds(edge.predicted_queue_wait) > 1.0
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_explaining_shows_every_candidate_and_sends_nothing():
    async with running(quality_scale=10.0) as house:
        workers = [await house.worker("a", quality={"facts": 0.2}), await house.worker("b", quality={"facts": 0.7})]
        explained = await house.operations.Explain(broker_pb2.ExplainRequest(prompt="why", task_type="facts", alpha=0.5), timeout=5)
        assert (explained.chosen, explained.policy, explained.reason) == ("b", "onto", "lowest predicted cost")
        assert [c.edge_id for c in explained.candidates] == ["a", "b"]
        for candidate in explained.candidates:
            parts = (candidate.uplink, candidate.queue_wait, candidate.inference, candidate.downlink)
            assert seconds(candidate.completion_time) == pytest.approx(sum(map(seconds, parts)), abs=1e-6)
            assert candidate.cost == pytest.approx(seconds(candidate.completion_time) - 0.5 * 10.0 * candidate.quality, abs=1e-6)
        assert dict(explained.posterior) == {"facts": 1.0}
        assert not any(worker.requests for worker in workers)
        assert not await house.events()
        assert not house.broker.engine.outstanding(0.0)


async def test_explaining_without_an_edge_says_why():
    async with running() as house:
        explained = await house.operations.Explain(broker_pb2.ExplainRequest(prompt="why"), timeout=5)
        assert (explained.chosen, explained.reason) == ("", "no edge can take the task")


async def test_scores_sent_back_move_the_predicted_quality_once_a_task():
    async with running() as house:
        await house.worker("e1", quality={"facts": 0.8})
        for _ in range(20):
            task_id = (await house.ask(task_type="facts")).summary.task_id
            for _ in range(3):
                await house.operations.ScoreTask(broker_pb2.ScoreTaskRequest(task_id=task_id, score=0.0), timeout=5)
        explained = await house.operations.Explain(broker_pb2.ExplainRequest(prompt="q", task_type="facts"), timeout=5)
        assert explained.candidates[0].quality == pytest.approx(0.4)


async def test_edge_commands_reach_the_worker_and_its_refusals_come_back():
    async with running() as house:
        worker = await house.worker("e1")
        assert (await house.operations.PinEdge(broker_pb2.PinEdgeRequest(edge_id="e1"), timeout=5)).version == "v1"
        assert worker.entry.pinned
        await house.operations.UnpinEdge(broker_pb2.UnpinEdgeRequest(edge_id="e1"), timeout=5)
        assert not worker.entry.pinned
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.operations.RollBackEdge(broker_pb2.RollBackEdgeRequest(edge_id="e1"), timeout=5)
        assert failure_of(caught.value).reason == "NO_PREVIOUS_VERSION"
        await house.operations.DrainEdge(broker_pb2.DrainEdgeRequest(edge_id="e1"), timeout=5)
        await until(lambda: house.snapshots[0].state.value == "draining")
        refused = await house.ask()
        assert refused.failure is not None
        assert refused.failure.code is grpc.StatusCode.UNAVAILABLE


async def test_a_broker_with_kafka_and_redis_tells_a_worker_how_to_join():
    client = open_redis(None)
    addresses = {"kafka_bootstrap": "kafka:9092", "redis_url": "redis://redis:6379", "merger_address": "127.0.0.1:1"}
    async with running(redis_client=client, base_model="switch", **addresses) as house:
        joined = await house.operations.Join(broker_pb2.JoinRequest(edge_id="e9"), timeout=5)
        assert (joined.kafka_bootstrap, joined.redis_url, joined.merger_address, joined.base_model) == (*addresses.values(), "switch")
    await client.aclose()


async def test_two_brokers_count_each_others_work_once():
    client = open_redis(None)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(redis_client=client, broker_id="one"))
        two = await stack.enter_async_context(running(redis_client=client, broker_id="two"))
        worker = await one.worker("e1", max_batch=1, max_queue=64)
        await two.known("e1")
        worker.start_s = 30.0
        calls = [asyncio.create_task(one.ask()) for _ in range(3)]
        await until(lambda: worker.num_active == 3)
        await until(lambda: two.snapshots[0].others.num_tasks == 3)
        assert one.snapshots[0].others.num_tasks == 0
        assert two.broker.engine.wait_s(two.snapshots[0], 0.0) > 0.0
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: two.snapshots[0].others.num_tasks == 0)
    await client.aclose()


async def test_an_idle_broker_shows_that_it_lives():
    async with running(republish_s=0.05) as house:
        await house.worker("e1")

        async def sequence():
            values = await house.redis.hgetall("moedge:wait:{e1}")
            return next(iter(values.values()), b"")

        await until(lambda: bool(house.broker._publisher._published))
        first = await sequence()
        while await sequence() == first:
            await asyncio.gather(house.ask())
        assert house.broker.broker_id.encode() in await house.redis.hgetall("moedge:wait:{e1}")


async def test_leaving_takes_the_brokers_work_out_of_redis():
    client = open_redis(None)
    reader = WaitStore(client, "reader")
    async with running(redis_client=client) as house:
        await house.worker("e1")
        await until(lambda: bool(house.broker._publisher._published))
    assert await reader.others() == {}
    assert await client.hgetall("moedge:wait:{e1}") == {}
    await client.aclose()


class FakeProfiles(merger_pb2_grpc.MergerServiceServicer):
    """A merger that has profiles of two task types, from its second call on."""

    def __init__(self):
        self.num_calls = 0

    async def GetProfiles(self, request, context):
        self.num_calls += 1
        if self.num_calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "calibrating")
        return merger_pb2.GetProfilesResponse(
            base_model="toy",
            output_tokens={"facts": 3.0, "sums": 30.0},
            prompt_words={
                "facts": merger_pb2.PromptWords(counts={"who": 20, "is": 20}),
                "sums": merger_pb2.PromptWords(counts={"how": 20, "much": 20}),
            },
        )

    async def BuildModel(self, request, context):
        yield merger_pb2.BuildModelResponse()

    async def GetManifest(self, request, context):
        return merger_pb2.GetManifestResponse()

    async def FetchBlob(self, request, context):
        yield merger_pb2.FetchBlobResponse()


async def test_profiles_give_the_posterior_and_the_first_answer_lengths():
    merger, grpc_server = FakeProfiles(), server()
    merger_pb2_grpc.add_MergerServiceServicer_to_server(merger, grpc_server)
    address = bind(grpc_server, "127.0.0.1", 0)
    await grpc_server.start()
    async with running(merger_address=address) as house:
        await house.worker("e1")
        await until(lambda: house.broker._parts.knowledge.base_model == "toy")
        explained = await house.operations.Explain(broker_pb2.ExplainRequest(prompt="how much is it?"), timeout=5)
        assert explained.posterior["sums"] > 0.8
        assert explained.candidates[0].output_tokens > 20.0
        assert (await house.ask("who is it?")).summary.task_type == "facts"
    assert merger.num_calls == 2
    await grpc_server.stop(None)


async def test_health_is_serving_only_while_an_edge_can_take_tasks():
    async with running() as house, channel(house.broker.address) as users:
        health = health_pb2_grpc.HealthStub(users)

        async def status(name):
            return (await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status

        for name in ("", "moedge.v1.InferenceService", "moedge.v1.BrokerService"):
            assert await status(name) == health_pb2.HealthCheckResponse.NOT_SERVING
        worker = await house.worker("e1")
        while await status("") != health_pb2.HealthCheckResponse.SERVING:
            await asyncio.gather(house.ask())
        await worker.die()
        await until(lambda: not house.broker._parts.edges.any_ready)
        while await status("") != health_pb2.HealthCheckResponse.NOT_SERVING:
            await asyncio.gather(house.ask())


async def test_a_drain_lets_tasks_in_flight_finish_and_takes_no_new_ones():
    async with running(drain_s=10.0) as house:
        worker = await house.worker("e1")
        worker.token_s = 0.1
        call = asyncio.create_task(house.ask())
        await until(lambda: worker.num_active == 1)
        leaving = asyncio.create_task(house.broker.__aexit__(None, None, None))
        await until(lambda: house.broker._servicer.draining)
        refused = await house.ask()
        assert refused.failure is not None
        assert (refused.failure.code, refused.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert (await call).summary.output_tokens == 6
        await leaving
        assert list((await house.lives()).values()) == [["dispatched", "completed"]]


async def test_tasks_that_outlast_the_drain_end_in_a_clear_status():
    async with running(drain_s=0.2) as house:
        worker = await house.worker("e1")
        worker.token_s = 60.0
        call = asyncio.create_task(house.ask(timeout_s=120))
        await until(lambda: worker.num_active == 1)
        await house.broker.__aexit__(None, None, None)
        got = await call
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert [(e.status, e.reason) for e in await house.events()][1:] == [("UNAVAILABLE", "DRAINING")]
        await house.lives()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"policy": "best"}, "choose one of"),
        ({"publish_s": 5.0}, "stale"),
        ({"default_alpha": 2.0}, "DEFAULT_ALPHA"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, named):
    with pytest.raises(SettingsError, match=named):
        BrokerSettings.load(**settings)


def test_an_unknown_variable_is_refused_with_the_nearest_known_one(monkeypatch):
    monkeypatch.setenv("MOEDGE_BROKER_POLCY", "onto")
    with pytest.raises(SettingsError, match="MOEDGE_BROKER_POLICY"):
        BrokerSettings.load()
