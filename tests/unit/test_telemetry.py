"""What a whole stack shows of itself: one trace for one task, ids in every log line, no prompt anywhere, nothing felt by users."""

import asyncio
import io
import json
import logging
import urllib.request

import pytest

from services.runtime import logs
from services.runtime.clock import SystemClock
from services.runtime.eventlog import TASK_EVENTS
from services.runtime.scope import TraceContext, within
from services.runtime.tracing import consuming, open_tracer
from tests.fakes.collector import running_collector
from tests.fakes.processes import free_port
from tests.fakes.waiting import until
from tests.unit.pico_stack import answered, running_stack

GENERATE = "moedge.v1.InferenceService/Generate"
CANARY = "canaryword w1 w2"
THEIRS = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


@pytest.fixture
def lines():
    """The JSON log of everything in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("json", "DEBUG", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_one_task_is_one_trace_from_the_broker_to_the_reader_of_its_events(tmp_path, monkeypatch):
    async with running_collector() as collector:
        monkeypatch.setenv("MOEDGE_OTLP_ENDPOINT", collector.address)
        tracer = open_tracer(collector.address, "reader", "test", lambda outcome, number: None)
        kinds = []

        async def handle(record):
            kinds.append(record.headers["traceparent"])

        async with running_stack(tmp_path) as (stack, stub):
            reading = consuming(handle, tracer, "readers")
            async with stack.event_log.subscribe(TASK_EVENTS, "readers", reading):
                summary = await answered(stub)
                await until(lambda: len(kinds) == 3, what="dispatched, started, completed")
        await tracer.close()
        [decide], [dispatch] = collector.named("decide"), collector.named("dispatch")
        [at_broker] = [seen for seen in collector.named(GENERATE) if seen.service == "moedge-broker"]
        [at_worker] = [seen for seen in collector.named(GENERATE) if seen.service == "moedge-worker"]
        [queue], [inference] = collector.named("queue"), collector.named("inference")
        assert {seen.trace_id for seen in (decide, dispatch, at_worker, queue, inference)} == {at_broker.trace_id}
        assert at_broker.parent_id == ""
        assert decide.parent_id == dispatch.parent_id == at_broker.span_id
        assert at_worker.parent_id == dispatch.span_id
        assert queue.parent_id == inference.parent_id == at_worker.span_id
        assert {a.key: a.value.string_value for a in dispatch.span.attributes}["edge_id"] == summary.edge_id
        read = collector.named(f"process {TASK_EVENTS}")
        assert [seen.links for seen in read] == [[at_broker.trace_id]] * 3
        assert {seen.parent_id for seen in read} == {""}
        assert inference.span.start_time_unix_nano >= queue.span.start_time_unix_nano
        assert inference.span.end_time_unix_nano > inference.span.start_time_unix_nano


async def test_activation_reports_reach_the_controller_with_a_link(tmp_path, monkeypatch):
    async with running_collector() as collector:
        monkeypatch.setenv("MOEDGE_OTLP_ENDPOINT", collector.address)
        async with running_stack(tmp_path, edges=1, worker={"report_interval_s": 0.05}) as (_, stub):
            for _ in range(20):
                await answered(stub)
            await until(lambda: collector.named("process moedge.activations.v1") != [], what="the consumer's span", timeout_s=20.0)
        [report] = collector.named("report activations")
        [process] = collector.named("process moedge.activations.v1")
        assert (report.service, process.service) == ("moedge-worker", "moedge-controller")
        assert process.links == [report.trace_id]
        assert process.trace_id != report.trace_id


async def test_a_callers_trace_goes_on_without_a_collector(tmp_path, lines):
    async with running_stack(tmp_path) as (stack, stub):
        kinds = []

        async def handle(record):
            kinds.append(record.headers.get("traceparent"))

        async with stack.event_log.subscribe(TASK_EVENTS, "readers", handle):
            summary = await answered(stub, metadata=(("traceparent", THEIRS.header), ("x-request-id", "request-1")))
            await until(lambda: len(kinds) == 3, what="three events")
        for worker in stack.workers.values():
            worker._parts.loop.drain()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await answered(stub, metadata=(("traceparent", THEIRS.header), ("x-request-id", "request-2")))
    assert kinds == [THEIRS.header] * 3
    assert summary.text
    traced = [line for line in lines() if line.get("trace_id") == THEIRS.trace_id]
    lost = [line for line in traced if "lost" in line["message"]]
    assert lost
    assert {line["request_id"] for line in lost} == {"request-2"}
    assert all(line["task_id"] for line in lost)


async def test_prompts_are_neither_in_logs_nor_in_metrics_nor_in_spans(tmp_path, monkeypatch, lines):
    async with running_collector() as collector:
        monkeypatch.setenv("MOEDGE_OTLP_ENDPOINT", collector.address)
        async with running_stack(tmp_path, metrics_port=0) as (stack, stub):
            await answered(stub, CANARY)
            for bad in ({"max_tokens": 100_000}, {"task_type": "canaryword"}, {"prompt": "canaryword " * 200_000}):
                with pytest.raises(Exception, match="StatusCode"):
                    await answered(stub, **({"prompt": CANARY} | bad))
            broken = next(iter(stack.workers.values()))._parts.loop
            monkeypatch.setattr(broken._engine, "step", _fail)
            monkeypatch.setattr(stack._broker._parts.engine, "decide", _fail)
            with pytest.raises(Exception, match="INTERNAL"):
                await answered(stub, CANARY)
            shown = [await asyncio.to_thread(_read, port) for port in stack.metrics_ports.values()]
        spans = "".join(str(seen.span) for seen in collector.spans)
    logged = json.dumps(lines())
    assert "Injected" in logged
    assert len(shown) == 5
    for where in (logged, "".join(shown), spans):
        assert "canaryword" not in where


async def test_every_error_about_a_request_or_task_has_its_id(tmp_path, monkeypatch, lines):
    async with running_stack(tmp_path) as (stack, stub):
        for worker in stack.workers.values():
            monkeypatch.setattr(worker._parts.loop._engine, "_decode", _fail)
        with pytest.raises(Exception, match="StatusCode"):
            await answered(stub, metadata=(("x-request-id", "request-1"),))
        monkeypatch.setattr(stack._broker._parts.engine, "decide", _fail)
        with pytest.raises(Exception, match="INTERNAL"):
            await answered(stub, metadata=(("x-request-id", "request-2"),))
    errors = [line for line in lines() if line["level"] == "ERROR"]
    of_batches = [line for line in errors if line["message"].startswith("step failed")]
    of_tasks = [line for line in errors if line not in of_batches]
    assert of_batches
    assert len(of_tasks) >= 3, "two edges dropped the task, then the broker failed"
    assert all(line.get("task_id") and line.get("request_id") for line in of_tasks), of_tasks
    assert of_tasks[-1]["request_id"] == "request-2"


async def test_a_dead_collector_costs_spans_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEDGE_OTLP_ENDPOINT", f"127.0.0.1:{free_port()}")
    clock = SystemClock()
    async with running_stack(tmp_path, edges=1) as (stack, stub):
        for _ in range(10):
            assert (await answered(stub)).text
        leaving_at_s = clock.now_s()
        spans = stack._broker._telemetry.metrics._spans
    assert clock.now_s() - leaving_at_s < 15.0
    assert spans["exported"]._value.get() == 0


async def test_a_full_queue_drops_spans_and_counts_them(monkeypatch):
    counted = {"exported": 0, "failed": 0, "dropped": 0}

    def count(outcome, number):
        counted[outcome] += number

    monkeypatch.setattr("services.runtime.tracing_otel.MAX_WAITING", 16)
    monkeypatch.setattr("services.runtime.tracing_otel.BATCH", 16)
    tracer = open_tracer(f"127.0.0.1:{free_port()}", "test", "test", count)
    clock = SystemClock()
    began_at_s = clock.now_s()
    for _ in range(1000):
        with tracer.span("one"):
            pass
    assert clock.now_s() - began_at_s < 2.0
    assert counted["dropped"] >= 1000 - 3 * 16
    assert counted["exported"] == 0
    await tracer.close()


async def test_a_callers_unsampled_trace_stays_unsampled():
    async with running_collector() as collector:
        tracer = open_tracer(collector.address, "test", "test", lambda outcome, number: None)
        with within(trace=TraceContext(THEIRS.trace_id, THEIRS.span_id, "00")), tracer.span("unsampled"):
            pass
        with within(trace=THEIRS), tracer.span("sampled"):
            pass
        await tracer.close()
    assert [seen.name for seen in collector.spans] == ["sampled"]


def _fail(*_, **__):
    raise RuntimeError("Injected")


def _read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()
