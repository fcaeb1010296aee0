"""The status table at the broker: each way that a call can end badly, with its code, details and event."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from moedge.v1 import broker_pb2, inference_pb2
from services.core.offload.values import StepTimes
from services.runtime.clock import SystemClock
from services.runtime.eventlog import OutboxFullError
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.status import failure_of
from tests.fakes.waiting import until
from tests.unit.broker_harness import running


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"prompt": ""}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": " \n\t"}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "x" * 2000}, grpc.StatusCode.OUT_OF_RANGE, "prompt"),
        ({"alpha": 0.0}, grpc.StatusCode.INVALID_ARGUMENT, "alpha"),
        ({"alpha": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, "alpha"),
        ({"alpha": 1.5}, grpc.StatusCode.INVALID_ARGUMENT, "alpha"),
        ({"alpha": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT, "alpha"),
        ({"task_type": "poetry"}, grpc.StatusCode.INVALID_ARGUMENT, "task_type"),
        ({"max_tokens": 4_000_000_000}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"max_tokens": 40}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"user_id": "u" * 500}, grpc.StatusCode.INVALID_ARGUMENT, "user_id"),
        ({"region": "r" * 500}, grpc.StatusCode.INVALID_ARGUMENT, "region"),
        ({"idempotency_key": "k" * 500}, grpc.StatusCode.INVALID_ARGUMENT, "idempotency_key"),
        ({"dispatch": inference_pb2.Dispatch(task_id="mine")}, grpc.StatusCode.INVALID_ARGUMENT, "dispatch"),
    ],
)
async def test_bad_fields_are_refused_by_name_before_anything_happens(fields, code, field):
    async with running(max_prompt_bytes=1000) as house:
        worker = await house.worker("e1", max_new_tokens=32)
        got = await house.ask(**({"prompt": "hello"} | fields))
        assert got.failure is not None
        assert (got.failure.code, got.failure.field) == (code, field)
        assert field in got.failure.message
        assert not worker.requests
        assert not await house.events()


async def test_a_region_that_no_edge_links_to_is_refused_with_those_that_are_linked():
    async with running() as house:
        worker = await house.worker("e1", wait=False)
        worker.entry.links["west"].SetInParent()
        await worker.announce()
        await until(lambda: house.snapshots and house.snapshots[0].links)
        got = await house.ask(region="moon")
        assert got.failure is not None
        assert got.failure.field == "region"
        assert "west" in got.failure.message
        assert (await house.ask()).failure is None


async def test_no_edge_is_unavailable_and_says_when_to_retry():
    async with running() as house:
        got = await house.ask()
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_EDGE")
        assert got.failure.retry_after_s == pytest.approx(1.0)
        events = await house.events()
        assert [(e.event_id.split(":")[1], e.status, e.reason) for e in events] == [("rejected", "UNAVAILABLE", "NO_EDGE")]
        await house.quiet()


async def test_full_queues_are_resource_exhausted_and_say_when_to_retry():
    async with running() as house:
        worker = await house.worker("e1", max_batch=1, max_queue=1, step_times=StepTimes(0.1, 0.0, 0.0, 0.0))
        worker.start_s = 30.0
        calls = [asyncio.create_task(house.ask()) for _ in range(2)]
        await until(lambda: worker.num_active == 2)
        got = await house.ask()
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert got.failure.retry_after_s
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await house.quiet()
        assert sorted((await house.lives()).values()) == [["dispatched", "failed"], ["dispatched", "failed"], ["rejected"]]


async def test_more_tasks_than_the_broker_holds_are_resource_exhausted():
    async with running(max_tasks=1) as house:
        worker = await house.worker("e1")
        worker.start_s = 30.0
        call = asyncio.create_task(house.ask())
        await until(lambda: worker.num_active == 1)
        got = await house.ask()
        assert got.failure is not None
        assert got.failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    async with running() as house:
        worker = await house.worker("e1", step_times=StepTimes(3.0, 0.0, 0.0, 0.0))
        began_at_s = SystemClock().now_s()
        got = await house.ask(timeout_s=5.0)
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "PREDICTED_LATE")
        assert "predicted" in got.failure.message
        assert SystemClock().now_s() - began_at_s < 1.0
        assert not worker.requests
        assert list((await house.lives()).values()) == [["rejected"]]


async def test_the_remaining_deadline_goes_with_the_task_and_its_passing_ends_it():
    async with running() as house:
        worker = await house.worker("e1")
        worker.token_s = 30.0
        got = await house.ask(timeout_s=0.5)
        assert got.failure is not None
        assert got.failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: worker.num_active == 0)
        await house.quiet()
        assert [e.status for e in await house.events()] == ["", "DEADLINE_EXCEEDED"]
        await house.lives()


class FullLog(MemoryEventLog):
    """An outbox with no room."""

    def publish(self, record, *, droppable=False):
        raise OutboxFullError


async def test_a_full_outbox_refuses_tasks_rather_than_lose_their_events():
    async with running(FullLog(SystemClock())) as house:
        worker = await house.worker("e1")
        got = await house.ask()
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL")
        assert not worker.requests
        await house.quiet()


async def test_unknown_edges_and_tasks_are_not_found():
    async with running() as house:
        for method, request in (
            (house.operations.PinEdge, broker_pb2.PinEdgeRequest(edge_id="nowhere")),
            (house.operations.DrainEdge, broker_pb2.DrainEdgeRequest(edge_id="nowhere")),
            (house.operations.ScoreTask, broker_pb2.ScoreTaskRequest(task_id="none", score=1.0)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, timeout=5)
            assert failure_of(caught.value).code is grpc.StatusCode.NOT_FOUND


async def test_where_an_edge_is_not_known_those_that_are_get_named():
    async with running() as house:
        await house.worker("e1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.operations.PinEdge(broker_pb2.PinEdgeRequest(edge_id="nowhere"), timeout=5)
        assert failure_of(caught.value).message == "edge 'nowhere' is not known here; there are e1"


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
async def test_a_score_outside_zero_to_one_is_refused_by_name(score):
    async with running() as house:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.operations.ScoreTask(broker_pb2.ScoreTaskRequest(task_id="t", score=score), timeout=5)
        assert failure_of(caught.value).field == "score"


async def test_joining_a_broker_without_kafka_is_a_failed_precondition():
    async with running() as house:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.operations.Join(broker_pb2.JoinRequest(edge_id="e9"), timeout=5)
        failure = failure_of(caught.value)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "kafka_bootstrap" in failure.message
