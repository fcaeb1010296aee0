"""The broker's main job: a task goes to an edge, tokens come back, events are written, users can follow and cancel."""

from __future__ import annotations

import asyncio

import pytest

from moedge.v1 import inference_pb2
from services.core.offload.values import Link, StepTimes
from services.runtime.clock import SystemClock
from services.runtime.codec import seconds
from tests.fakes.waiting import until
from tests.fakes.worker import answer
from tests.unit.broker_harness import Answer, running


async def test_a_task_is_answered_by_an_edge_and_says_which():
    async with running() as house:
        worker = await house.worker("e1")
        got = await house.ask("hi there", task_type="facts", alpha=0.7)
        assert got.kinds == ["accepted", *["token"] * 6, "summary"]
        assert got.of("accepted")[0].edge_id == "e1"
        assert got.of("accepted")[0].predicted_quality == pytest.approx(0.8)
        summary = got.summary
        assert summary.text == got.text == "".join(answer("v1", "hi there"))
        assert (summary.edge_id, summary.version, summary.attempts, summary.task_type) == ("e1", "v1", 1, "facts")
        assert (summary.prompt_tokens, summary.output_tokens) == (2, 6)
        assert seconds(summary.timings.completion_time) >= seconds(summary.timings.inference) > 0.0
        assert seconds(summary.timings.decision) > 0.0
        assert worker.requests[0].dispatch.broker_id == house.broker.broker_id
        assert await house.lives() == {summary.task_id: ["dispatched", "completed"]}
        await house.quiet()


async def test_events_carry_what_was_predicted_and_what_was_observed():
    async with running() as house:
        await house.worker("e1")
        got = await house.ask(user_id="ann", task_type="sums", alpha=0.3)
        completed = (await house.events())[-1]
        assert completed.event_id == f"{got.summary.task_id}:completed:1"
        assert (completed.user_id, completed.task_type) == ("ann", "sums")
        assert completed.alpha == pytest.approx(0.3)
        assert completed.predicted_quality == pytest.approx(0.4)
        assert completed.output_tokens == 6


async def test_the_edge_with_the_lowest_cost_gets_the_task():
    async with running(quality_scale=100.0) as house:
        await house.worker("a", quality={"facts": 0.3})
        await house.worker("b", quality={"facts": 0.9})
        assert (await house.ask(task_type="facts")).summary.edge_id == "b"


async def test_a_burst_is_spread_because_every_decision_counts_at_once():
    async with running() as house:
        workers = [await house.worker(f"e{n}", step_times=StepTimes(0.05, 0.0, 0.0, 0.0), max_queue=64) for n in range(4)]
        for worker in workers:
            worker.start_s = 0.5  # so that none finishes before the last came
        await asyncio.gather(*(house.ask() for _ in range(80)))
        shares = [len(worker.requests) for worker in workers]
        assert sum(shares) == 80
        assert max(shares) / 20 <= 1.15
        assert all(kinds == ["dispatched", "completed"] for kinds in (await house.lives()).values())


async def test_without_a_task_type_the_posterior_stands_in():
    async with running() as house:
        await house.worker("e1")
        got = await house.ask()
        assert got.of("accepted")[0].predicted_quality == pytest.approx(0.6)
        assert got.summary.task_type in {"facts", "sums"}


async def test_link_times_are_felt_and_reported():
    async with running() as house:
        worker = await house.worker("e1", wait=False)
        worker.link("west", Link(latency_s=0.1, uplink_bytes_per_s=50.0, downlink_bytes_per_s=1e9))
        await worker.announce()
        await until(lambda: house.snapshots and "west" in house.snapshots[0].links)
        clock = SystemClock()
        began_at_s = clock.now_s()
        got = await house.ask("hello", region="west")
        took_s = clock.now_s() - began_at_s
        timings = got.summary.timings
        # never shorter; a machine that is busy makes sleeps longer, though not ten times
        assert 0.1 + 5 / 50 <= seconds(timings.uplink) < 2.0
        assert seconds(timings.downlink) == pytest.approx(0.1, abs=0.01)
        assert 0.3 <= seconds(timings.completion_time) <= took_s + 0.01


async def test_a_user_who_cancels_stops_the_work_at_the_edge():
    async with running() as house:
        worker = await house.worker("e1")
        worker.token_s = 30.0
        call = asyncio.create_task(house.ask())
        await until(lambda: worker.num_active == 1)
        call.cancel()
        await until(lambda: worker.num_active == 0)
        await house.quiet()
        assert worker.num_cancelled == 1
        events = await house.events()
        assert [(e.status, e.reason) for e in events[1:]] == [("CANCELLED", "CANCELLED")]
        assert list((await house.lives()).values()) == [["dispatched", "failed"]]


async def test_the_same_key_while_running_follows_the_same_task_from_its_beginning():
    async with running() as house:
        worker = await house.worker("e1")
        worker.token_s = 0.05
        first = asyncio.create_task(house.ask(idempotency_key="k", user_id="ann"))
        await until(lambda: worker.num_active == 1)
        second, other = await asyncio.gather(house.ask(idempotency_key="k", user_id="ann"), house.ask(idempotency_key="k", user_id="bob"))
        assert (await first).responses == second.responses
        assert other.summary.task_id != second.summary.task_id
        assert len(worker.requests) == 2


async def test_a_follower_who_leaves_does_not_cancel_a_task_that_another_follows():
    async with running() as house:
        worker = await house.worker("e1")
        worker.token_s = 0.05
        first = asyncio.create_task(house.ask(idempotency_key="k"))
        second = asyncio.create_task(house.ask(idempotency_key="k"))
        await until(lambda: worker.num_active == 1)
        first.cancel()
        assert (await second).summary.output_tokens == 6
        assert len(worker.requests) == 1


async def test_the_same_key_after_the_end_is_told_the_same_answer():
    async with running() as house:
        worker = await house.worker("e1")
        first, second, third = [await house.ask(idempotency_key="k") for _ in range(3)]
        assert first.responses == second.responses == third.responses
        assert len(worker.requests) == 1
        misused = await house.ask("another prompt", idempotency_key="k")
        assert misused.failure is not None
        assert misused.failure.field == "idempotency_key"


async def test_the_key_of_a_failed_task_is_free_for_a_retry():
    async with running() as house:
        failed = await house.ask(idempotency_key="k")
        assert failed.failure is not None
        await house.worker("e1")
        assert (await house.ask(idempotency_key="k")).summary.edge_id == "e1"


async def test_a_key_is_forgotten_after_the_retention_time():
    async with running(retention_s=0.0) as house:
        worker = await house.worker("e1")
        first = await house.ask(idempotency_key="k")
        await house.quiet()
        await asyncio.gather(house.ask())
        assert (await house.ask(idempotency_key="k")).summary.task_id != first.summary.task_id
        assert len(worker.requests) == 3


async def test_answer_lengths_and_prompt_lengths_are_learnt_while_serving():
    async with running() as house:
        await house.worker("e1")
        for _ in range(30):
            await house.ask("one two three four", task_type="facts")
        predictors = house.broker.engine.predictors
        assert predictors.output_length.tokens({"facts": 1.0}, 64) == pytest.approx(6.0, abs=0.5)
        assert predictors.prompt_length.tokens(1000) < 250 * 0.95


async def test_nothing_is_left_open_after_many_calls_of_which_some_are_cancelled():
    async with running() as house:
        worker = await house.worker("e1", max_queue=256)
        worker.token_s = 0.01
        answers = [Answer() for _ in range(60)]
        calls = [asyncio.create_task(house.ask(into=into)) for into in answers]
        await until(lambda: len(worker.requests) >= 30)
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: worker.num_active == 0)
        await house.quiet()
        await house.lives()
        assert all(not link.calls for link in house.broker._parts.edges.links)


async def test_max_tokens_is_the_default_unless_given():
    async with running(default_max_tokens=3) as house:
        await house.worker("e1")
        assert (await house.ask()).summary.output_tokens == 3
        assert (await house.ask(max_tokens=2)).summary.output_tokens == 2


async def test_a_broker_without_link_emulation_sleeps_no_link_times():
    async with running(emulate_links=False) as house:
        worker = await house.worker("e1", wait=False)
        worker.link("default", Link(latency_s=5.0, uplink_bytes_per_s=0.0, downlink_bytes_per_s=0.0))
        await worker.announce()
        await until(lambda: house.snapshots and "default" in house.snapshots[0].links)
        got = await house.ask(timeout_s=None)
        assert seconds(got.summary.timings.completion_time) < 2.0
        assert got.summary.finish_reason == inference_pb2.FINISH_REASON_STOP
