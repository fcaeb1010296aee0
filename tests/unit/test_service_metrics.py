"""What single services count: the worker its tasks, tokens, updates and balance; the controller and the merger what updates cost."""

import math

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moedge.v1 import inference_pb2, worker_pb2
from services.controller.metrics import ControllerMetrics
from services.runtime.codec import duration
from services.runtime.metrics import ServiceMetrics
from services.runtime.net import open_stream
from services.worker.metrics import WorkerMetrics
from tests.unit.serving_builders import budget_of, built, eventually, make_edge, running_merger, running_site


def values(registry, **labels):
    """By sample name, of the series with these labels and no others but `edge`."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    wanted = {"edge": "small", **labels}
    return {s.name: s.value for family in families for s in family.samples if {"edge": "small", **s.labels} == wanted}


@pytest.fixture
async def merger(tmp_path):
    async with running_merger(tmp_path) as merger:
        yield merger


@pytest.fixture
async def site(tmp_path, merger):
    async with running_site(tmp_path, merger.address, make_edge(budget_of(merger, 8))) as site:
        yield site


async def test_a_worker_counts_tasks_tokens_and_times(site):
    summaries = [await site.answer() for _ in range(3)]
    registry = site.worker._telemetry.metrics.registry
    plain = values(registry)
    assert plain["moedge_edge_e2e_seconds_count"] == plain["moedge_edge_ttft_seconds_count"] == 3
    assert plain["moedge_edge_queue_wait_seconds_sum"] < plain["moedge_edge_ttft_seconds_sum"] <= plain["moedge_edge_e2e_seconds_sum"]
    assert plain["moedge_edge_tpot_seconds_count"] == 3
    assert values(registry, outcome="completed")["moedge_edge_tasks_total"] == 3
    for kind, num_tokens in (("output", sum(s.output_tokens for s in summaries)), ("prompt", sum(s.prompt_tokens for s in summaries))):
        assert values(registry, kind=kind)["moedge_edge_tokens_total"] == num_tokens
    version, model = site.worker.version, site.worker._parts.updater.present.base_model
    assert values(registry, model=model, version=version)["moedge_edge_model_info"] == 1
    assert plain["moedge_edge_ready"] == 1


async def test_a_task_that_its_user_leaves_is_cancelled_not_failed(site):
    async with open_stream(site.inference.Generate(inference_pb2.GenerateRequest(prompt="w1", max_tokens=200), timeout=20)) as stream:
        await stream.read()
    registry = site.worker._telemetry.metrics.registry

    async def counted():
        return values(registry, outcome="cancelled")["moedge_edge_tasks_total"] == 1

    await eventually(counted)
    assert values(registry, outcome="failed")["moedge_edge_tasks_total"] == 0


async def test_an_update_and_a_failed_one_show_with_the_pause(site, merger):
    manifest = await built(merger, {"right": 1.0}, budget_of(merger, 8))
    await site.control.LoadVersion(worker_pb2.LoadVersionRequest(version=manifest.version), timeout=30)
    with pytest.raises(Exception, match="StatusCode"):
        await site.control.LoadVersion(worker_pb2.LoadVersionRequest(version="0" * 16), timeout=30)
    registry = site.worker._telemetry.metrics.registry
    assert values(registry, outcome="swapped")["moedge_edge_updates_total"] == 1
    assert values(registry, outcome="failed")["moedge_edge_updates_total"] == 1
    assert values(registry)["moedge_edge_swap_pause_seconds_count"] == 1
    of_merger = values(merger._telemetry.metrics.registry, outcome="built")
    assert of_merger["moedge_merger_builds_total"] == 2
    assert values(merger._telemetry.metrics.registry)["moedge_merger_sent_bytes_total"] > 0


def test_the_balance_of_experts_is_summed_up_in_four_figures():
    metrics = ServiceMetrics("worker")
    worker = WorkerMetrics(metrics, "small")
    assert math.isnan(values(metrics.registry, layers="mean")["moedge_edge_expert_balance"])
    worker.reported(np.array([[2, 2], [4, 0], [0, 0]]))
    mean, worst = (values(metrics.registry, layers=layers) for layers in ("mean", "worst"))
    assert (mean["moedge_edge_expert_balance"], worst["moedge_edge_expert_balance"]) == (0.75, 0.5)
    assert (mean["moedge_edge_expert_jain"], worst["moedge_edge_expert_jain"]) == (0.75, 0.5)
    worker.reported(np.zeros((3, 2), dtype=np.int64))
    assert values(metrics.registry, layers="mean")["moedge_edge_expert_jain"] == 0.75


def test_the_controller_sums_up_what_rollouts_cost():
    metrics = ServiceMetrics("controller")
    controller = ControllerMetrics(metrics)
    controller.built(2.0)
    report = worker_pb2.SwapReport(
        fetch=duration(0.5), load=duration(0.25), stall=duration(0.004), downtime=duration(0.0), bytes_fetched=10, bytes_full=100
    )
    controller.swapped(report)
    phases = {p: values(metrics.registry, phase=p)["moedge_merge_duration_seconds_sum"] for p in ("build", "transfer", "load")}
    assert phases == {"build": 2.0, "transfer": 0.5, "load": 0.25}
    assert values(metrics.registry)["moedge_merge_swap_pause_seconds_sum"] == 0.004
    assert [values(metrics.registry, kind=kind)["moedge_merge_bytes_total"] for kind in ("shipped", "full")] == [10, 100]
