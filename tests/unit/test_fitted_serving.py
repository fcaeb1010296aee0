"""Fitted experts served: swapped under load, from merged ones too, kept over a restart, and built again when traffic turns."""

from __future__ import annotations

import asyncio

import pytest

from moedge.v1 import events_pb2, inference_pb2, merger_pb2
from services.model.families.packed_weights import PackedWeights
from services.model.greedy import greedy
from services.runtime.eventlog import MERGE_EVENTS
from services.runtime.events import read_merge
from tests.fakes.waiting import until
from tests.unit.pico import pico_tasks
from tests.unit.pico_stack import answered, running_stack
from tests.unit.serving_builders import budget_of, built, make_edge, running_merger, running_site
from tests.unit.test_worker_updates import Load, load

CONTROLLER = {"interval_s": 0.5, "adjustment_s": 0.0, "min_tokens": 20, "threshold": 0.1, "min_gain": 0.0, "tick_s": 0.05, "confirm": False}
FITTED = merger_pb2.PlanOptions(method="fitted")
MAX_TOKENS = 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("fitted")


async def test_an_edge_swaps_between_merged_and_fitted_versions_under_load_and_a_restart_serves_the_last_one(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 4)
        left = await built(merger, {"left": 1.0}, budget, options=FITTED)
        right = await built(merger, {"right": 1.0}, budget, options=FITTED)
        assert {blob.kind for blob in right.blobs} == {"packed", "rest"}
        assert right.model_bytes <= budget
        edge = make_edge(budget)
        async with running_site(tmp_path, merger.address, edge) as site:
            merged = site.worker.version
            async with Load(site) as sent:
                there = await load(site, left.version)
                report = await load(site, right.version)
            assert {summary.version for summary in sent.summaries} >= {merged, right.version}
            assert there.ok
            assert report.ok
            assert 0 < report.bytes_fetched < report.bytes_full
            assert report.downtime.ToNanoseconds() == 0
            assert right.model_bytes < report.peak_model_bytes < right.model_bytes + left.model_bytes
            answer = (await site.answer("w40 w41")).text
        async with running_site(tmp_path, None, edge) as site:
            assert site.worker.version == right.version
            assert (await site.answer("w40 w41")).text == answer


async def test_where_memory_holds_one_version_an_edge_drains_before_it_loads_fitted_experts(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 4)
        other = await built(merger, {"right": 1.0}, budget, options=FITTED)
        async with running_site(tmp_path, merger.address, make_edge(budget), swap_reserve_bytes=0) as site:
            async with Load(site):
                report = await load(site, other.version)
            assert report.ok
            assert report.downtime.ToNanoseconds() > 0
            assert report.peak_model_bytes <= budget
            assert (await site.answer()).version == other.version


async def test_a_stack_that_fits_experts_builds_them_again_when_its_traffic_turns(tmp_path):
    options = {
        "edges": 1, "trigger": "jtom", "initial_mix": {"left": 1.0}, "worker": {"report_interval_s": 0.2},
        "controller": CONTROLLER | {"method": "fitted"},
        "merger": {"profiled_items": 8, "measured_items": 4, "method": "fitted"},
    }  # fmt: skip
    prompts = [item.prompt for item in pico_tasks().of_type("right")]
    summaries: list[tuple[str, inference_pb2.Summary]] = []
    merges: list[events_pb2.MergeEvent] = []

    async def hear(record):
        merges.append(read_merge(record))

    async with running_stack(tmp_path, **options) as (stack, stub), asyncio.timeout(45):
        [worker] = stack.workers.values()
        first = worker.version
        async with stack.event_log.subscribe(MERGE_EVENTS, "readers", hear):
            while not summaries or summaries[-1][1].version == first:
                asked = (answered(stub, prompt, task_type="right", max_tokens=MAX_TOKENS) for prompt in prompts)
                summaries += zip(prompts, await asyncio.gather(*asked), strict=True)
            await until(lambda: len(merges) >= 3, what="the end of the update")
        builder = stack.merger.builder
        manifests = {version: builder.manifest(version) for version in {summary.version for _, summary in summaries}}
        served = {version: builder.model(manifest) for version, manifest in manifests.items()}
    assert len(served) == 2
    assert merges[2].mix["right"] > 0.5
    assert 0 < merges[2].swap.bytes_fetched < merges[2].swap.bytes_full
    for version, manifest in manifests.items():
        assert manifest.method == "fitted"
        assert all(isinstance(experts.weights, PackedWeights) for experts in served[version].model.experts)
    for prompt, summary in summaries:
        model, tokenizer = served[summary.version].model, served[summary.version].tokenizer
        [answer] = greedy(model, [tokenizer.encode(prompt)], MAX_TOKENS)
        assert summary.text == tokenizer.decode(answer)
