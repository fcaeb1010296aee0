"""A worker over real loopback gRPC: answers, refusals, cancellation, deadlines, resume and what the event log says of them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from moedge.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from services.runtime.events import read_activations
from services.runtime.net import channel, open_stream
from services.runtime.status import failure_of
from services.runtime.store import open_redis
from tests.unit.serving_builders import PROMPT, budget_of, eventually, make_edge, running_merger, running_site


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture
async def site(shared, tmp_path):
    async with running_merger(shared) as merger, running_site(tmp_path, merger.address, make_edge(budget_of(merger, 12))) as started:
        yield started


@pytest.fixture
async def slow_site(shared, tmp_path):
    """One slot, two places in the queue, a step of a fiftieth of a second or so."""
    async with running_merger(shared) as merger:
        edge = make_edge(budget_of(merger, 12), max_batch=1, max_queue=2, speed=0.1)
        async with running_site(tmp_path, merger.address, edge, report_tasks=20, report_interval_s=0.2) as started:
            yield started


async def refusal(site, **fields):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.answer(**fields)
    return failure_of(caught.value)


async def idle(site):
    status = await site.control.GetStatus(worker_pb2.GetStatusRequest(), timeout=5)
    return status.running_tasks == 0 and status.queued_tasks == 0


async def running(site):
    return (await site.control.GetStatus(worker_pb2.GetStatusRequest(), timeout=5)).running_tasks


async def test_a_task_is_answered_with_version_tokens_and_timings(site):
    request = inference_pb2.GenerateRequest(prompt=PROMPT, max_tokens=6)
    responses = [response async for response in site.inference.Generate(request, timeout=10)]
    kinds = [response.WhichOneof("event") for response in responses]
    summary = responses[-1].summary
    assert kinds == ["accepted", *["token"] * 6, "summary"]
    assert "".join(response.token.text for response in responses[1:-1]) == summary.text
    assert (summary.edge_id, summary.version, summary.output_tokens) == ("small", site.worker.version, 6)
    assert summary.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert summary.timings.inference.ToNanoseconds() > 0


async def test_tasks_sent_at_once_get_the_answers_they_get_alone(site):
    prompts = [f"w{n} w{n + 1} w{n + 7}" for n in range(12)]
    alone = [(await site.answer(prompt)).text for prompt in prompts]
    at_once = await asyncio.gather(*(site.answer(prompt) for prompt in prompts))
    assert [summary.text for summary in at_once] == alone


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"prompt": "  "}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "w1 " * 30}, grpc.StatusCode.OUT_OF_RANGE, "prompt"),
        ({"prompt": "w" * 2_000_000}, grpc.StatusCode.OUT_OF_RANGE, "prompt"),
        ({"max_tokens": 10**9}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        (
            {"dispatch": inference_pb2.Dispatch(task_id="t", emitted_token_ids=[4])},
            grpc.StatusCode.INVALID_ARGUMENT,
            "dispatch.required_version",
        ),
        ({"dispatch": inference_pb2.Dispatch(task_id="t", required_version="no")}, grpc.StatusCode.FAILED_PRECONDITION, None),
    ],
    ids=["empty", "too-long", "too-many-bytes", "max-tokens", "resume-without-version", "other-version"],
)
async def test_bad_requests_are_refused_with_the_field_named(site, fields, code, field):
    failure = await refusal(site, **fields)
    assert (failure.code, failure.field) == (code, field)
    assert await site.task_events() == []


async def test_a_resumed_task_goes_on_after_the_tokens_the_user_has(site):
    request = inference_pb2.GenerateRequest(prompt=PROMPT, max_tokens=6)
    tokens = [r.token.token_id async for r in site.inference.Generate(request, timeout=10) if r.WhichOneof("event") == "token"]
    dispatch = inference_pb2.Dispatch(task_id="t", attempt=2, emitted_token_ids=tokens[:2], required_version=site.worker.version)
    resumed = inference_pb2.GenerateRequest(prompt=PROMPT, max_tokens=6, dispatch=dispatch)
    responses = [response async for response in site.inference.Generate(resumed, timeout=10)]
    assert [r.token.token_id for r in responses if r.WhichOneof("event") == "token"] == tokens[2:]
    assert responses[-1].summary.output_tokens == 6


async def test_a_full_queue_refuses_with_a_time_to_come_back(slow_site):
    tasks = [asyncio.create_task(slow_site.answer(max_tokens=40)) for _ in range(6)]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [failure_of(error) for error in done if isinstance(error, grpc.aio.AioRpcError)]
    assert len(refused) == 3
    assert {failure.code for failure in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(failure.retry_after_s for failure in refused)


async def test_a_cancelled_task_stops_computing_and_frees_its_slot(slow_site):
    request = inference_pb2.GenerateRequest(prompt=PROMPT, max_tokens=256)
    async with open_stream(slow_site.inference.Generate(request, timeout=60)) as stream:
        async for response in stream:
            if response.WhichOneof("event") == "token":
                break
    await eventually(lambda: idle(slow_site), 2.0)
    assert (await slow_site.answer(max_tokens=2)).output_tokens == 2
    assert sorted(kind for kind, _ in await slow_site.task_events()) == ["completed", "failed", "started", "started"]


async def test_a_deadline_ends_the_task_in_the_queue_and_on_the_device(slow_site):
    running = asyncio.create_task(slow_site.answer(max_tokens=256, timeout_s=1.0))
    waiting = asyncio.create_task(slow_site.answer(max_tokens=256, timeout_s=0.5))
    done = await asyncio.gather(running, waiting, return_exceptions=True)
    codes = [error.code() for error in done if isinstance(error, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    await eventually(lambda: idle(slow_site), 2.0)


async def test_queue_wait_is_the_time_before_the_slot_was_free(slow_site):
    first = asyncio.create_task(slow_site.answer(max_tokens=20))
    await eventually(lambda: running(slow_site))
    second = await slow_site.answer(max_tokens=2)
    first_s = (await first).timings.inference.ToNanoseconds() / 1e9
    assert (await first).timings.queue_wait.ToNanoseconds() < 0.1e9
    assert 0.5 * first_s < second.timings.queue_wait.ToNanoseconds() / 1e9 <= first_s


async def test_a_task_without_a_broker_leaves_started_and_one_terminal_event(site):
    summary = await site.answer(user_id="u", region="west", task_type="left")
    started, completed = await site.events()
    assert (started.event_id, completed.event_id) == (f"{summary.task_id}:started:1", f"{summary.task_id}:completed:1")
    assert (completed.edge_id, completed.version, completed.output_tokens) == ("small", summary.version, 6)
    assert (completed.user_id, completed.region, completed.task_type) == ("u", "west", "left")


async def test_a_task_of_a_broker_leaves_its_end_to_the_broker(site):
    await site.answer(dispatch=inference_pb2.Dispatch(task_id="t", broker_id="b", attempt=3))
    assert await site.task_events() == [("started", "t:started:3")]


async def test_activation_reports_sum_over_at_least_twenty_tasks_and_count_every_token(shared, tmp_path):
    async with running_merger(shared) as merger:
        edge = make_edge(budget_of(merger, 12), max_batch=4)
        async with running_site(tmp_path, merger.address, edge, report_interval_s=0.1) as site:

            async def reports():
                return [read_activations(record) async for record in site.log.read_all("moedge.activations.v1")]

            await asyncio.gather(*(site.answer(region="west") for _ in range(19)))
            await asyncio.sleep(0.3)  # noqa: TID251  nothing may come, and waiting is the only way to see that
            assert await reports() == []
            await site.answer()
            (report,) = await eventually(reports)
            assert (report.num_tasks, dict(report.tasks_by_region)) == (20, {"west": 19})
            assert report.version == site.worker.version
            assert [sum(layer.counts) for layer in report.layers] == [20 * 4, 20 * 4, 20 * 6, 20 * 6]


async def test_the_registry_entry_tells_version_times_and_state_and_ends_with_the_worker(shared, tmp_path):
    from services.runtime.store import EdgeRegistry, open_redis

    redis = open_redis(None)
    registry = EdgeRegistry(redis)
    async with running_merger(shared) as merger:
        async with running_site(tmp_path, merger.address, make_edge(budget_of(merger, 12)), redis=redis) as site:
            entry = (await registry.all())["small"]
            assert (entry.version, entry.address) == (site.worker.version, site.worker.address)
            assert entry.state == worker_pb2.EDGE_STATE_READY
            assert entry.step_times.step_base_s + entry.step_times.step_row_s > 0  # a line through noise may start at 0
            assert set(entry.quality) == {"left", "right"}
            await site.control.Drain(worker_pb2.DrainRequest(), timeout=5)

            async def draining():
                return (await registry.all())["small"].state == worker_pb2.EDGE_STATE_DRAINING

            await eventually(draining)
            failure = await refusal(site)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await registry.all() == {}
    await redis.aclose()


async def test_leaving_lets_tasks_in_flight_finish(shared, tmp_path):
    async with running_merger(shared) as merger:
        edge = make_edge(budget_of(merger, 12))
        async with running_site(tmp_path, merger.address, edge, drain_s=10) as site:
            await site.answer()
            task = asyncio.create_task(site.answer(max_tokens=60))
            await asyncio.sleep(0.05)  # noqa: TID251  until it is in flight
            leaving = asyncio.create_task(site.worker.__aexit__(None, None, None))
            assert (await task).output_tokens == 60
            await leaving


class Reading:
    """Redis as a broker with no time to lose reads it: whoever an entry tells of is asked at once."""

    def __init__(self, redis):
        self._redis = redis
        self.statuses = []

    def __getattr__(self, name):
        return getattr(self._redis, name)

    async def set(self, key, value, **options):
        if not self.statuses:
            entry = worker_pb2.EdgeEntry.FromString(value)
            async with channel(entry.address) as connection:
                stub = worker_pb2_grpc.WorkerServiceStub(connection)
                self.statuses.append(await stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=5))
        return await self._redis.set(key, value, **options)


async def test_an_edge_takes_tasks_from_the_moment_in_which_its_first_entry_is_written(shared, tmp_path):
    redis = open_redis(None)
    reading = Reading(redis)
    async with running_merger(shared) as merger:
        edge = make_edge(budget_of(merger, 12))
        async with running_site(tmp_path, merger.address, edge, redis=reading):
            assert {status.entry.edge_id for status in reading.statuses} == {"small"}
    await redis.aclose()
