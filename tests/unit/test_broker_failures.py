"""Edges that die, freeze, refuse or change under a task: no token lost or repeated, one terminal event, never silence."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from moedge.v1 import worker_pb2
from services.core.offload.values import EdgeState
from services.runtime.clock import SystemClock
from services.runtime.status import RpcFailure, queue_full
from tests.fakes.waiting import until
from tests.fakes.worker import answer
from tests.unit.broker_harness import running


async def two_workers(house, *, second_version="v1"):
    """`first` is preferred for its quality, `second` is what remains."""
    first = await house.worker("first", quality={"facts": 0.9})
    second = await house.worker("second", quality={"facts": 0.1}, version=second_version)
    return first, second


async def test_an_edge_that_dies_mid_stream_is_gone_on_from_at_another_with_the_same_version():
    async with running(quality_scale=100.0) as house:
        first, second = await two_workers(house)
        first.die_after_tokens = 3
        got = await house.ask("q", task_type="facts")
        assert got.kinds == ["accepted", *["token"] * 6, "summary"]
        assert got.text == got.summary.text == "".join(answer("v1", "q"))
        assert (got.summary.edge_id, got.summary.attempts, got.summary.output_tokens) == ("second", 2, 6)
        dispatch = second.requests[0].dispatch
        assert (list(dispatch.emitted_token_ids), dispatch.required_version, dispatch.attempt) == ([0, 1, 2], "v1", 2)
        assert list((await house.lives()).values()) == [["dispatched", "dispatched", "completed"]]
        await house.quiet()


async def test_with_another_version_the_task_starts_over_and_says_so():
    async with running(quality_scale=100.0) as house:
        first, second = await two_workers(house, second_version="v2")
        first.die_after_tokens = 3
        got = await house.ask("q", task_type="facts")
        assert got.kinds == ["accepted", *["token"] * 3, "restarted", *["token"] * 6, "summary"]
        restarted = got.of("restarted")[0]
        assert (restarted.edge_id, restarted.version) == ("second", "v2")
        assert restarted.reason
        assert got.text == got.summary.text == "".join(answer("v2", "q"))
        assert list(second.requests[0].dispatch.emitted_token_ids) == []
        assert got.summary.version == "v2"


async def test_a_version_that_vanished_before_the_rest_could_be_made_starts_over_at_the_same_edge():
    async with running(quality_scale=100.0, poll_s=1.0, heartbeat_s=5.0) as house:
        first, second = await two_workers(house)
        first.die_after_tokens = 2
        second.entry.version = "v2"  # the broker still believes v1
        got = await house.ask("q", task_type="facts")
        assert got.kinds == ["accepted", "token", "token", "restarted", *["token"] * 6, "summary"]
        assert got.text == "".join(answer("v2", "q"))
        assert got.summary.attempts == 3
        assert list((await house.lives()).values()) == [["dispatched"] * 3 + ["completed"]]


async def test_an_edge_that_dies_before_the_task_began_is_not_felt():
    async with running(quality_scale=100.0) as house:
        first, _ = await two_workers(house)
        first.start_s = 30.0
        call = asyncio.create_task(house.ask("q", task_type="facts"))
        await until(lambda: first.num_active == 1)
        await first.die()
        got = await call
        assert got.kinds == ["accepted", *["token"] * 6, "summary"]
        assert (got.summary.edge_id, got.summary.attempts) == ("second", 2)


async def test_a_refused_connection_takes_the_edge_out_at_once():
    async with running(quality_scale=100.0, heartbeat_s=60.0) as house:
        first, _ = await two_workers(house)
        await first.die()
        got = await house.ask(task_type="facts")
        assert got.summary.edge_id == "second"
        by_id = {edge.edge_id: edge.state for edge in house.snapshots}
        assert by_id["first"] is EdgeState.UNREACHABLE
        assert (await house.ask(task_type="facts")).summary.attempts == 1


async def test_a_frozen_edge_is_noticed_by_heartbeats_and_its_tasks_go_elsewhere():
    async with running(quality_scale=100.0) as house:
        first, _ = await two_workers(house)
        first.token_s = 0.05
        call = asyncio.create_task(house.ask("q", task_type="facts"))
        await until(lambda: first.num_active == 1)
        began_at_s = SystemClock().now_s()
        first.frozen.set()
        got = await call
        assert got.text == "".join(answer("v1", "q"))
        assert got.summary.edge_id == "second"
        assert SystemClock().now_s() - began_at_s < 1.5
        first.frozen.clear()
        await house.known("first")
        assert (await house.ask(task_type="facts")).summary.edge_id == "first"
        await house.lives()


async def test_an_edge_cut_off_from_this_broker_alone_is_noticed_later():
    async with running(quality_scale=100.0, heartbeat_s=0.05) as house:
        first, _ = await two_workers(house)
        link = house.broker._parts.edges.find("first")
        assert link is not None
        await until(lambda: link.answered)
        first.deaf = True
        await until(lambda: house.snapshots[0].state is EdgeState.UNREACHABLE)
        assert link.num_missed >= 9
        assert (await house.ask(task_type="facts")).summary.edge_id == "second"


async def test_an_edge_that_refuses_is_passed_over():
    async with running(quality_scale=100.0) as house:
        first, _ = await two_workers(house)
        first.refuse = queue_full()
        got = await house.ask(task_type="facts")
        assert (got.summary.edge_id, got.summary.attempts) == ("second", 2)
        assert {edge.state for edge in house.snapshots} == {EdgeState.READY}


async def test_when_every_edge_is_dead_the_task_ends_with_a_clear_status():
    async with running() as house:
        first, second = await two_workers(house)
        await first.die()
        await second.die()
        began_at_s = SystemClock().now_s()
        got = await house.ask(task_type="facts")
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_EDGE")
        assert got.failure.retry_after_s
        assert SystemClock().now_s() - began_at_s < 1.0
        await house.lives()


async def test_tokens_that_cannot_be_gone_on_from_end_in_aborted_with_their_number():
    async with running() as house:
        worker = await house.worker("only")
        worker.die_after_tokens = 4
        got = await house.ask()
        assert got.failure is not None
        assert (got.failure.code, got.failure.reason) == (grpc.StatusCode.ABORTED, "EDGE_DIED")
        assert got.failure.metadata == {"tokens_emitted": "4"}
        assert list((await house.lives()).values()) == [["dispatched", "failed"]]


async def test_attempts_are_bounded():
    async with running(max_attempts=2) as house:
        workers = [await house.worker(f"e{n}") for n in range(4)]
        for worker in workers:
            worker.refuse = RpcFailure(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
        got = await house.ask()
        assert got.failure is not None
        assert got.failure.code is grpc.StatusCode.UNAVAILABLE
        assert sum(len(worker.requests) for worker in workers) == 2


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (RpcFailure(grpc.StatusCode.OUT_OF_RANGE, "PROMPT_TOO_LONG", "prompt: 900 tokens", field="prompt"), grpc.StatusCode.OUT_OF_RANGE),
        (RpcFailure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "max_tokens", field="max_tokens"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_an_edge_says_of_the_task_itself_is_passed_on_and_not_tried_elsewhere(told, status):
    async with running() as house:
        first, second = await two_workers(house)
        first.refuse = second.refuse = told
        got = await house.ask()
        assert got.failure is not None
        assert (got.failure.code, got.failure.field) == (status, told.field)
        assert len(first.requests) + len(second.requests) == 1
        assert list((await house.lives()).values()) == [["dispatched", "failed"]]


async def test_a_restarted_worker_is_found_again_under_its_new_address():
    async with running() as house:
        old = await house.worker("e1")
        await old.die()
        assert (await house.ask()).failure is not None
        await house.worker("e1", version="v2")
        await until(lambda: any(edge.version == "v2" and edge.state is EdgeState.READY for edge in house.snapshots))
        assert (await house.ask()).summary.version == "v2"


async def test_a_flushed_redis_takes_no_edge_away():
    async with running() as house:
        await house.worker("e1")
        for _ in range(5):
            await house.redis.flushall()
            assert (await house.ask()).failure is None


async def test_an_edge_whose_registry_entry_is_gone_for_good_stays_while_it_answers():
    async with running() as house:
        worker = await house.worker("e1")
        worker._presence.cancel()
        await house.redis.flushall()
        await SystemClock().sleep(2.0)
        assert (await house.ask()).summary.edge_id == "e1"
        await worker._server.stop(None)
        await until(lambda: not house.snapshots, what="the edge left")


async def test_a_draining_edge_gets_no_new_tasks():
    async with running(quality_scale=100.0) as house:
        first, _ = await two_workers(house)
        first.entry.state = worker_pb2.EDGE_STATE_DRAINING
        await first.announce()
        await house.known("first", state=EdgeState.DRAINING)
        assert (await house.ask(task_type="facts")).summary.edge_id == "second"


async def test_many_tasks_survive_the_death_of_one_of_three_edges():
    async with running() as house:
        workers = [await house.worker(f"e{n}", max_queue=200) for n in range(3)]
        for worker in workers:
            worker.token_s = 1.0  # none is done before the edge dies, however slowly this machine sends them
        calls = [asyncio.create_task(house.ask(f"q{n}")) for n in range(90)]
        await until(lambda: workers[1].num_active > 10)
        for worker in workers:
            worker.token_s = 0.001
        await workers[1].die()
        answers = await asyncio.gather(*calls)
        assert [a.failure for a in answers if a.failure] == []
        assert [a.text for a in answers] == ["".join(answer("v1", f"q{n}")) for n in range(90)]
        assert not any(a.of("restarted") for a in answers)
        assert len(await house.lives()) == 90
        await house.quiet()
