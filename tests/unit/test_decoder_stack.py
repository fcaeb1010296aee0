"""A decoder-only model in the embedded stack: answered, counted, and merged again when its traffic turns, with no task lost."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from moedge.v1 import events_pb2, inference_pb2
from services.model.greedy import greedy
from services.runtime.codec import layers_to_counts
from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS
from services.runtime.events import read_activations, read_merge
from tests.fakes.waiting import until
from tests.unit.pico import pico_tasks
from tests.unit.pico_decoders import write_pico_decoder
from tests.unit.pico_stack import answered, running_stack
from tests.unit.serving_builders import write_tasks

MAX_TOKENS = 6
TOP_K = 2
CONTROLLER = {"interval_s": 0.5, "adjustment_s": 0.0, "min_tokens": 20, "threshold": 0.1, "min_gain": 0.0, "tick_s": 0.05, "confirm": False}


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe"])
async def test_a_decoder_only_model_is_answered_counted_and_merged_again_when_traffic_turns(tmp_path, family):
    write_pico_decoder(tmp_path / "model", family)
    write_tasks(tmp_path / "tasks.jsonl")
    options = {"edges": 1, "trigger": "jtom", "initial_mix": {"left": 1.0}, "controller": CONTROLLER, "worker": {"report_interval_s": 0.2}}
    prompts = [item.prompt for item in pico_tasks().of_type("right")]
    summaries: list[tuple[str, inference_pb2.Summary]] = []
    async with running_stack(tmp_path, **options) as (stack, stub), asyncio.timeout(45):
        heard = Heard()
        [worker] = stack.workers.values()
        first = worker.version
        async with (
            stack.event_log.subscribe(ACTIVATIONS, "readers", heard.report),
            stack.event_log.subscribe(MERGE_EVENTS, "readers", heard.merge),
        ):
            while not summaries or summaries[-1][1].version == first:
                asked = (answered(stub, prompt, task_type="right", max_tokens=MAX_TOKENS) for prompt in prompts)
                summaries += zip(prompts, await asyncio.gather(*asked), strict=True)
            await until(lambda: "SWAPPED" in heard.kinds, what="the end of the update")
        builder = stack.merger.builder
        served = {version: builder.model(builder.manifest(version)) for version in {summary.version for _, summary in summaries}}
    for prompt, summary in summaries:
        model, tokenizer = served[summary.version].model, served[summary.version].tokenizer
        [answer] = greedy(model, [tokenizer.encode(prompt)], MAX_TOKENS)
        assert (summary.text, summary.output_tokens) == (tokenizer.decode(answer), len(answer))
        assert not summary.text.startswith(prompt)
    assert heard.kinds[:3] == ["REQUESTED", "BUILT", "SWAPPED"]
    assert 0 < heard.merges[2].swap.bytes_fetched < heard.merges[2].swap.bytes_full
    assert heard.merges[2].mix["right"] > 0.5
    num_tokens = [summary.prompt_tokens + summary.output_tokens - 1 for _, summary in summaries]
    counts = [layers_to_counts(report.layers).sum(axis=1) for report in heard.reports]
    assert all(layers.tolist() == [layers[0]] * 2 for layers in counts)
    num_reported = sum(report.num_tasks for report in heard.reports)
    assert num_reported >= 20
    assert num_reported * min(num_tokens) <= sum(layers[0] for layers in counts) / TOP_K <= sum(num_tokens)


def test_merge_fills_its_budget_with_experts_of_three_matrices(tmp_path):
    write_pico_decoder(tmp_path / "model", "mixtral")
    tasks = write_tasks(tmp_path / "tasks.jsonl")
    places = ["--model", str(tmp_path / "model"), "--tasks", str(tasks), "--cache", str(tmp_path / "cache"), "--threads", "1", "--json"]

    def merged(budget_bytes: int):
        command = ["merge", *places, "--task", "left", "--budget-bytes", str(budget_bytes), "--out", str(tmp_path / "out")]
        return json.loads(CliRunner().invoke(app, command).stdout)

    full = merged(10**9)
    assert full["bytes"] == full["full_bytes"]
    assert full["experts_kept"] == full["experts_total"] == 16
    budget_bytes = full["full_bytes"] - 9 * 3 * 32 * 24 * 4
    less = merged(budget_bytes)
    assert (less["bytes"], less["experts_kept"]) == (budget_bytes, 7)
    assert less["version"] != full["version"]


class Heard:
    """What the log says, as it comes."""

    def __init__(self) -> None:
        self.reports: list[events_pb2.ActivationReport] = []
        self.merges: list[events_pb2.MergeEvent] = []

    @property
    def kinds(self) -> list[str]:
        return [events_pb2.MergeEventKind.Name(event.kind).removeprefix("MERGE_EVENT_KIND_") for event in self.merges]

    async def report(self, record):
        self.reports.append(read_activations(record))

    async def merge(self, record):
        self.merges.append(read_merge(record))
