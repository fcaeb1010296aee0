"""Metrics: bounded whatever users send, read on the event loop, served over HTTP only where a port is set."""

import asyncio
import socket
import sys
import threading
import urllib.request

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.broker.metrics import BrokerMetrics
from services.controller.metrics import ControllerMetrics
from services.runtime.clock import SystemClock
from services.runtime.errors import SettingsError
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.metrics import MetricsServer, ServiceMetrics, gauge, methods_of
from services.runtime.settings import ServiceSettings
from services.runtime.status import queue_full
from services.runtime.telemetry import Telemetry
from tests.unit.broker_harness import running

METHODS = methods_of(["moedge.v1.InferenceService"])
GENERATE = "/moedge.v1.InferenceService/Generate"


def samples(metrics):
    """Every series with its value."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def of(found, name, **labels):
    return found[(name, *sorted(labels.items()))]


def read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


async def test_ten_thousand_users_task_types_edges_and_reasons_make_a_bounded_number_of_series():
    metrics = ServiceMetrics("broker", METHODS)
    broker = BrokerMetrics(metrics)
    controller = ControllerMetrics(ServiceMetrics("controller"))
    before = len(samples(metrics))
    for number in range(10_000):
        name = f"name-{number}"
        broker.decided(name, f"because of {name}", 0.001)
        broker.completed(name, 1.0, 2.0, 0.5)
        broker.ended("rejected", name, name.upper())
        broker.rerouted(name)
        broker.scored(name, 1.0)
        controller._edge(name)
        metrics.rpcs.refused(f"/{name}/Method", grpc.StatusCode.UNIMPLEMENTED)
    found = samples(metrics)
    assert len(found) - before < 1200
    assert of(found, "moedge_broker_tasks_total", outcome="completed", task_type="other") == 10_000 - 32
    assert of(found, "moedge_broker_rejections_total", reason="other") == 10_000
    assert of(found, "moedge_rpc_calls_total", method="_OTHER", code="UNIMPLEMENTED") == 10_000
    assert sum(value for (name, *_), value in found.items() if name == "moedge_broker_offloads_total") == 10_000


async def test_users_are_no_label():
    async with running(metrics_port=0) as house:
        await house.worker("west")
        await house.ask(user_id="first")
        before = set(samples(house.broker._telemetry.metrics))
        for number in range(200):
            answer = await house.ask(user_id=f"user-{number}", idempotency_key=f"key-{number}")
            assert answer.failure is None
        found = samples(house.broker._telemetry.metrics)
        assert set(found) == before
        assert of(found, "moedge_rpc_calls_total", method=GENERATE, code="OK") == 201


async def test_a_broker_counts_what_became_of_its_tasks():
    async with running(metrics_port=0) as house:
        refused, invalid = (await house.ask()).failure, (await house.ask("")).failure
        assert refused is not None
        assert invalid is not None
        assert (refused.reason, invalid.reason) == ("NO_EDGE", "INVALID_FIELD")
        await house.worker("west")
        assert (await house.ask()).failure is None
        found = {key[0]: value for key, value in samples(house.broker._telemetry.metrics).items() if len(key) == 1}
        labelled = samples(house.broker._telemetry.metrics)
        over, under = (found[f"moedge_broker_prediction_error_{side}_seconds_count"] for side in ("over", "under"))
        assert found["moedge_broker_decision_seconds_count"] == found["moedge_broker_completion_seconds_count"] == over + under == 1
        assert of(labelled, "moedge_broker_rejections_total", reason="no_edge") == 1
        assert of(labelled, "moedge_broker_rejections_total", reason="invalid_field") == 1
        assert of(labelled, "moedge_broker_offloads_total", edge="west", reason="lowest predicted cost") == 1
        assert of(labelled, "moedge_broker_edges", state="ready") == 1
        assert of(labelled, "moedge_rpc_calls_total", method=GENERATE, code="UNAVAILABLE") == 1
        assert of(labelled, "moedge_rpc_calls_total", method=GENERATE, code="INVALID_ARGUMENT") == 1
        assert found["moedge_rpc_active"] == 0


async def test_an_edge_that_refuses_shows_as_a_reroute():
    async with running(metrics_port=0, quality_scale=100.0) as house:
        better = await house.worker("better", quality={"facts": 0.9})
        await house.worker("other", quality={"facts": 0.1})
        better.refuse = queue_full()
        assert (await house.ask(task_type="facts")).summary.edge_id == "other"
        found = samples(house.broker._telemetry.metrics)
        assert of(found, "moedge_broker_reroutes_total", cause="queue_full") == 1
        reason = "lowest predicted cost"
        assert [of(found, "moedge_broker_offloads_total", edge=edge, reason=reason) for edge in ("better", "other")] == [1, 1]


async def test_without_a_port_metrics_count_and_nothing_listens():
    metrics = ServiceMetrics("broker", METHODS)
    async with MetricsServer(metrics, "127.0.0.1", None):
        assert metrics.port is None
        metrics.rpcs.refused(GENERATE, grpc.StatusCode.OK)
    assert of(samples(metrics), "moedge_rpc_calls_total", method=GENERATE, code="OK") == 1


async def test_gauges_are_read_on_the_event_loop_at_the_scrape():
    metrics, threads = ServiceMetrics("broker"), []

    def sample():
        threads.append(threading.get_ident())
        yield gauge("moedge_test", "Test.", len(threads))

    metrics.at_scrape(sample)
    async with MetricsServer(metrics, "127.0.0.1", 0):
        first = await asyncio.to_thread(read, metrics.port)
        second = await asyncio.to_thread(read, metrics.port)
    assert set(threads) == {threading.get_ident()}
    assert "moedge_test 1.0" in first
    assert "moedge_test 2.0" in second
    assert 'moedge_build_info{service="broker",version="' in first


async def test_a_stuck_event_loop_still_shows_its_counters(monkeypatch):
    monkeypatch.setattr("services.runtime.metrics.SAMPLE_WITHIN_S", 0.05)
    metrics = ServiceMetrics("broker")
    metrics.at_scrape(lambda: [gauge("moedge_test", "Test.", 1)])
    async with MetricsServer(metrics, "127.0.0.1", 0):
        scrape = threading.Thread(target=lambda: texts.append(read(metrics.port)))
        texts: list[str] = []
        scrape.start()
        scrape.join(10)  # the loop stands still meanwhile
        assert "moedge_test" not in texts[0]
        assert "moedge_rpc_active 0.0" in texts[0]


async def test_a_taken_port_ends_the_start_with_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"metrics_port: cannot listen on 127.0.0.1:{port}") as caught:
            async with MetricsServer(ServiceMetrics("broker"), "127.0.0.1", port):
                pass
    assert "\n" not in str(caught.value)


async def test_the_event_log_shows():
    log, metrics = MemoryEventLog(SystemClock()), ServiceMetrics("controller")
    metrics.watch_event_log(log)

    async def handle(record):
        pass

    async with log.subscribe("topic", "group", handle):
        found = samples(metrics)
    assert of(found, "moedge_kafka_consumer_lag", topic="topic", group="group") == 0
    assert of(found, "moedge_kafka_connected") == 1
    assert of(found, "moedge_kafka_outbox_dropped_total") == 0


async def test_an_endpoint_without_the_extra_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "services.runtime.tracing_otel", None)
    settings = ServiceSettings.load(otlp_endpoint="127.0.0.1:4317")
    with pytest.raises(SettingsError, match=r"MOEDGE_OTLP_ENDPOINT: .*pip install 'moedge\[otel\]'"):
        Telemetry("broker", settings, SystemClock())
