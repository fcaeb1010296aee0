"""The embedded stack and the commands around it, on a random pico model: start, answer, explain, drain, merge, profile, replay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.cli.client import broker_at
from loadgen.cli.main import app
from loadgen.cli.stacks import StackOptions, stack_settings
from moedge.v1 import broker_pb2, inference_pb2
from services.model.errors import CheckpointError
from services.runtime.edges import EdgesFileError
from services.stack import Stack, StackSettings
from tests.unit.pico import pico_tasks, write_pico_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    """A checkpoint directory with its tasks.jsonl, and a cache that the tests of this module share."""
    directory = tmp_path_factory.mktemp("pico")
    model = write_pico_checkpoint(directory / "model")
    rows = [
        {"task": item.task_type, "id": item.item_id, "prompt": item.prompt, "references": list(item.references)}
        for item in pico_tasks().items
    ]
    (model / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def settings(pico: Path, **overrides) -> StackSettings:
    model = pico / "model"
    return StackSettings(**{"model": str(model), "tasks": str(model / "tasks.jsonl"), "cache_dir": pico / "cache", **overrides})


def run(*args: str):
    return CliRunner().invoke(app, list(args))


async def test_a_stack_serves_from_unlike_edges_and_drains(pico):
    phases: list[str] = []
    async with Stack(settings(pico), on_phase=phases.append) as stack:
        prompt, task_type = stack.example
        async with broker_at(stack.broker_address) as client:
            listed = await client.list_edges()
            explained = await client.explain(broker_pb2.ExplainRequest(prompt=prompt, task_type=task_type))
            request = inference_pb2.GenerateRequest(prompt=prompt, task_type=task_type, max_tokens=4)
            answers = [answer async for answer in client.generate(request, 20.0)]
        address = stack.broker_address
        workers_at = [worker.address for worker in stack.workers.values()]
    memory_bytes = {edge.edge_id: edge.memory_bytes for edge in listed.edges}
    assert memory_bytes["small"] < memory_bytes["medium"] < memory_bytes["large"]
    assert all(edge.model_bytes <= edge.memory_bytes for edge in listed.edges)
    assert dict(listed.edges[0].mix) == pytest.approx({"left": 0.8, "right": 0.2})  # every edge is led by another task type
    assert {candidate.edge_id for candidate in explained.candidates} == {"small", "medium", "large"}
    assert answers[-1].summary.edge_id in memory_bytes
    assert phases[0].startswith("merger")
    assert phases[-1] == "draining"
    assert len({address, *workers_at}) == 4
    for host, port in (where.rsplit(":", 1) for where in (address, *workers_at)):
        with pytest.raises(OSError):  # noqa: PT011  any kind of "nobody listens"
            await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"model": "nowhere"}, CheckpointError),
        ({"edges": Path("none.toml")}, EdgesFileError),
    ],
)
async def test_a_stack_that_cannot_start_leaves_nothing_running(pico, overrides, error):
    before = asyncio.all_tasks()
    with pytest.raises(error):
        async with Stack(settings(pico, **overrides)):
            pytest.fail("it started")
    assert asyncio.all_tasks() == before


def test_a_method_given_is_that_of_first_versions_and_of_updates(pico):
    chosen = StackOptions("1", str(pico / "model"), None, "onto", "jtom", 1.0, "float32", "cpu", 1, None, "fitted")
    given = stack_settings(chosen)
    assert given["merger"] == given["controller"] == {"method": "fitted"}
    assert "merger" not in stack_settings(replace(chosen, method=""))


async def test_edges_of_a_file_hold_the_unmerged_model(pico):
    async with Stack(settings(pico, edges=ROOT / "infra" / "edges" / "unmerged.toml", trigger="never")) as stack:
        base = stack.merger.builder.base
        assert {worker.version for worker in stack.workers.values()} == {next(iter(stack.workers.values())).version}
        async with broker_at(stack.broker_address) as client:
            assert {edge.model_bytes for edge in (await client.list_edges()).edges} == {base.full_bytes}


def merge(pico: Path, budget_bytes: int, out: Path, *more: str):
    fixed = ("--model", str(pico / "model"), "--cache", str(pico / "cache"), "--threads", "1", "--json")
    return run("merge", *fixed, "--task", "left", "--budget-bytes", str(budget_bytes), "--out", str(out), *more)


def test_merge_fills_the_budget_and_gives_the_same_version_twice(pico, tmp_path):
    full = json.loads(merge(pico, 10**9, tmp_path / "full").stdout)
    assert full["bytes"] == full["full_bytes"]
    assert full["experts_kept"] == full["experts_total"] == 32
    expert_bytes = 2 * 32 * 48 * 4
    budget_bytes = full["full_bytes"] - 20 * expert_bytes
    first, second = (json.loads(merge(pico, budget_bytes, tmp_path / name).stdout) for name in ("a", "b"))
    assert first["version"] == second["version"] != full["version"]
    assert first["bytes"] == budget_bytes
    assert first["experts_kept"] == 12
    assert set(first["quality"]) == {"left", "right"}
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["version"] == first["version"]
    assert len(list((tmp_path / "a" / "blobs").iterdir())) == 13
    half = json.loads(merge(pico, budget_bytes, tmp_path / "c", "--dtype", "bfloat16").stdout)
    assert half["full_bytes"] * 2 == full["full_bytes"]


def test_a_budget_that_is_too_small_says_the_smallest_that_works(pico, tmp_path):
    refused = merge(pico, 1, tmp_path / "out")
    assert refused.exit_code == 2
    smallest_bytes = int(refused.stderr.strip().rsplit(" ", 1)[1])
    assert merge(pico, smallest_bytes - 1, tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()
    assert json.loads(merge(pico, smallest_bytes, tmp_path / "out").stdout)["bytes"] == smallest_bytes


def test_profile_writes_its_figures_and_a_heat_map_for_each_task_type(pico, tmp_path):
    places = ("--model", str(pico / "model"), "--cache", str(pico / "cache"), "--out", str(tmp_path / "out"))
    result = run("profile", *places, "--threads", "1", "--items", "6")
    assert result.exit_code == 0, result.output
    assert "Merged to 25% of the experts" in result.stdout
    data = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert set(data["merged"]) == {"left", "right", "uniform"}
    assert [row["bits"] for row in data["quantised"]] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert set(data["own_and_others"]["left"]) == {"own", "others"}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"heat_map_left.png", "heat_map_right.png"}


def test_replay_starts_its_own_stack_and_tells_accuracy_by_task_type(pico, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{n / 2},5,5\n" for n in range(40)))
    result = run(
        "replay", "--model", str(pico / "model"), "--cache", str(pico / "cache"), "--edges", "1", "--trigger", "never",
        "--trace", str(trace), "--speed", "5", "--duration", "2", "--max-tokens", "4", "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["runs"]["replay"]["tasks"]["completed"] == 20
    assert sum(figures["tasks"] for figures in printed["accuracy"].values()) == 20
    assert (tmp_path / "out" / "report.html").exists()
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 20


def test_up_announces_itself_and_ctrl_c_drains_within_five_seconds(pico):
    command = [sys.executable, "-c", "from loadgen.cli.main import app; app()", "up", "--edges", "2", "--port", "0", "--json"]
    command += ["--model", str(pico / "model"), "--cache", str(pico / "cache")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1].rstrip() != "}":
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended before it was ready"
        description = json.loads("".join(lines))
        status = run("status", "--target", description["broker"], "--json")
        asked_at_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        drained_s = time.monotonic() - asked_at_s
    assert len(json.loads(status.stdout)["edges"]) == 2
    assert drained_s < 5
